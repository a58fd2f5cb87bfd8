"""Shards as they are written: readable by any tar, the same bytes for the same samples, whole or not there."""

import subprocess
import tarfile
from pathlib import Path

import pytest
import webdataset

from trainer.data.shards.archive import Archive, ArchiveIndex
from trainer.data.shards.samples import read_samples
from trainer.data.shards.write import ShardWriter, packed_sample

SAMPLES = {
    "000000": {"jpg": b"image", "txt": b"a caption"},
    "été/图片": {"jpg": b"x" * 512, "cls": b""},
    "long" * 60: {"jpg": b"y" * 513},
}


def write(path: Path) -> Path:
    with ShardWriter(path) as shard:
        for key, files in SAMPLES.items():
            shard.write(packed_sample(key, files))
    return path


def test_what_is_written_is_read(tmp_path: Path):
    path = write(tmp_path / "0.tar")
    assert {sample.key: sample.files for sample in read_samples(str(path))} == SAMPLES
    read = [
        {key: value for key, value in each.items() if key[0] != "_"}
        for each in webdataset.WebDataset(str(path), shardshuffle=False)
    ]
    assert read == list(SAMPLES.values())


def test_the_bytes_depend_on_nothing_else(tmp_path: Path):
    first, second = write(tmp_path / "0.tar"), write(tmp_path / "1.tar")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_other_programs_read_it_too(tmp_path: Path):
    path = write(tmp_path / "0.tar")
    assert path.stat().st_size % tarfile.RECORDSIZE == 0
    listed = subprocess.run(["tar", "--list", "--file", path], capture_output=True, text=True, check=True)
    assert listed.stdout.count("\n") == 5 and not listed.stderr


def test_a_failure_leaves_nothing(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), ShardWriter(tmp_path / "0.tar") as shard:
        shard.write(packed_sample("0", {"txt": b"one"}))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_the_index_says_where_the_files_are(tmp_path: Path):
    path = write(tmp_path / "0.tar")
    content = path.read_bytes()
    found = {name: content[span.offset : span.offset + span.size] for name, span in ArchiveIndex(str(path))}
    assert found == dict(Archive(str(path)))


@pytest.mark.parametrize("damage", ["cut off", "no end", "empty", "page"])
def test_a_break_is_the_same_for_both_readers(tmp_path: Path, damage: str):
    path = write(tmp_path / "0.tar")
    content = path.read_bytes()
    end = content.index(b"y" * 513)
    damaged = {"cut off": content[: end + 100], "no end": content[: end + 1024], "empty": b"", "page": b"<html>" * 999}
    path.write_bytes(damaged[damage])
    readers = Archive(str(path)), ArchiveIndex(str(path))
    names = [[name for name, _ in reader] for reader in readers]
    assert names[0] == names[1] and readers[0].problem and readers[1].problem
    assert readers[0].problem == readers[1].problem
