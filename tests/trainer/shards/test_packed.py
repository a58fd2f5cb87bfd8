"""Shards packed anew: nothing is lost or read differently, whatever they look like."""

import gzip
import json
import tarfile
from pathlib import Path

import pytest

from tests.trainer.data.shards_on_disk import jpeg, pair, write_shard
from tests.trainer.shards.made import pairs, samples, write
from trainer.errors import UserError
from trainer.shards import packed


def uneven(folder: Path) -> list[Path]:
    """Shards of 1, 7 and 3 pairs, all different, whose keys begin with 000000 in each."""
    folder.mkdir(parents=True)
    shards, number = [], 0
    for index, count in enumerate((1, 7, 3)):
        shards.append(Path(write_shard(folder / f"{index:05}.tar", [pair(number + each) for each in range(count)])))
        number += count
    return shards


def captions(folder: Path) -> list[str]:
    return sorted(texts[0] for _, _, texts in pairs(folder))


def test_uneven_shards_become_even_ones_without_a_loss(tmp_path: Path):
    uneven(tmp_path / "in")
    write(tmp_path / "in", f"output={tmp_path / 'out'}", "pairs=4")
    assert json.loads((tmp_path / "out" / "sizes.json").read_text()) == {
        "train-000000.tar": 4,
        "train-000001.tar": 4,
        "train-000002.tar": 3,
    }
    assert captions(tmp_path / "out") == sorted(f"picture number {number} of a small set" for number in range(11))
    written = samples(tmp_path / "out")
    assert len({sample.key for sample in written}) == 11, "keys that were in several shards are told apart"
    assert sorted(sample.files["jpg"] for sample in written) == sorted(jpeg(number) for number in range(11))


def test_dedup_keeps_the_first_of_each_key(tmp_path: Path):
    uneven(tmp_path / "in")
    write(tmp_path / "in", f"output={tmp_path / 'out'}", "dedup=true", "shuffle=false")
    assert [key for key, _, _ in pairs(tmp_path / "out")] == [f"{number:06}" for number in range(7)]
    assert pairs(tmp_path / "out")[0][2] == ["picture number 0 of a small set"]
    assert json.loads((tmp_path / "out" / "shards.json").read_text())["left_out"] == {"key was seen before": 4}


def test_what_else_a_sample_has_travels_along(tmp_path: Path):
    sample = {"jpg": jpeg(1), "txt": "one", "json": {"a": 1}, "cls": 7, "mask.npz": b"mask", "png": b"not used"}
    (tmp_path / "in").mkdir()
    write_shard(tmp_path / "in" / "0.tar", [{"png": jpeg(2), "cls": 3}, sample])
    write(tmp_path / "in", f"output={tmp_path / 'out'}", "shuffle=false")
    labelled, whole = samples(tmp_path / "out")
    assert set(labelled.files) == {"jpg", "cls"}, "its extension says what it is"
    assert set(whole.files) == {"jpg", "txt", "json", "cls", "mask.npz"}


def test_img2datasets_shards_with_their_records_beside(tmp_path: Path):
    source = tmp_path / "in"
    source.mkdir()
    for index in range(2):
        made = [{**pair(index), "json": {"caption": "alt", "status": "success"}}]
        write_shard(source / f"{index:05}.tar", made)
        (source / f"{index:05}.parquet").write_bytes(b"PAR1")
        (source / f"{index:05}_stats.json").write_text("{}")
    write(source, f"output={tmp_path / 'out'}")
    assert captions(tmp_path / "out") == ["picture number 0 of a small set", "picture number 1 of a small set"]


@pytest.mark.parametrize("pattern", ["{00000..00002}.tar", "*.tar", "0000[0-2].tar", ""])
def test_shards_are_named_as_in_training(tmp_path: Path, pattern: str):
    uneven(tmp_path / "in")
    write(f"{tmp_path}/in/{pattern}", f"output={tmp_path / 'out'}")
    assert len(captions(tmp_path / "out")) == 11


def test_compressed_shards_and_commands_are_read_too(tmp_path: Path):
    first, *_ = uneven(tmp_path / "in")
    first.with_suffix(".tar.gz").write_bytes(gzip.compress(first.read_bytes()))
    write(first.with_suffix(".tar.gz"), f"output={tmp_path / 'gz'}")
    assert len(captions(tmp_path / "gz")) == 1
    write(f"pipe:cat {tmp_path}/in/0000{{1,2}}.tar", f"output={tmp_path / 'pipe'}")
    assert len(captions(tmp_path / "pipe")) == 10
    assert not [path for path in (tmp_path / "pipe").iterdir() if path.name.startswith(".")]


def test_a_full_disk_is_no_broken_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    uneven(tmp_path / "in")

    def full(shard: str, path: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed, "_copy", full)
    with pytest.raises(UserError, match="No space left on device"):
        write(f"pipe:cat {tmp_path}/in/00000.tar", f"output={tmp_path / 'out'}")


def test_a_broken_shard_gives_what_is_before_the_break(tmp_path: Path):
    _, second, _ = uneven(tmp_path / "in")
    with tarfile.open(second) as archive:
        middle = archive.getmember("000004.jpg").offset_data
    second.write_bytes(second.read_bytes()[: middle + 10])
    (tmp_path / "in" / "00003.tar").write_bytes(b"")
    (tmp_path / "in" / "00004.tar").write_bytes(b"<html>" * 1000)
    write(tmp_path / "in", f"output={tmp_path / 'out'}")
    assert captions(tmp_path / "out") == sorted(f"picture number {number} of a small set" for number in (*range(5), 8, 9, 10))
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert [(Path(entry["key"]).name, entry["kind"]) for entry in bad] == [
        (name, "shard ends early") for name in ("00001.tar", "00003.tar", "00004.tar")
    ]


def test_images_are_made_smaller_only_when_that_is_asked_for(tmp_path: Path):
    (tmp_path / "in").mkdir()
    write_shard(tmp_path / "in" / "0.tar", [{"jpg": jpeg(1, 600, 300), "txt": "one"}])
    write(tmp_path / "in", f"output={tmp_path / 'as_is'}")
    write(tmp_path / "in", f"output={tmp_path / 'none'}", "short_side=none")
    write(tmp_path / "in", f"output={tmp_path / 'small'}", "short_side=100")
    assert [pairs(tmp_path / name)[0][1] for name in ("as_is", "none", "small")] == [(600, 300), (600, 300), (200, 100)]


def test_several_parts_of_a_data_set_are_not_mixed(tmp_path: Path):
    (tmp_path / "in").mkdir()
    for name in ("train-000.tar", "val-000.tar"):
        write_shard(tmp_path / "in" / name, [pair(1)])
    with pytest.raises(UserError, match=r"shards of several parts of a data set by name .*: name those of one part"):
        write(tmp_path / "in", f"output={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()
