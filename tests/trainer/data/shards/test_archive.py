"""Archives as people make them: litter, dots in names, compressed, cut at the worst place, joined, damaged."""

import io
import logging
import random
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.trainer.data.shards_on_disk import jpeg, pair, write_shard, write_shards
from trainer.data.shards.litter import is_litter
from trainer.data.shards.samples import Sample, read_samples

LITTER = [
    "._000.jpg",
    "photos/._000.jpg",
    ".DS_Store",
    "photos/.DS_Store",
    "__MACOSX/photos/._000.jpg",
    "__MACOSX/000.jpg",
    "Thumbs.db",
    "photos/Desktop.ini",
    "lost+found/000.jpg",
    "./PaxHeaders/000.jpg",
    "PaxHeaders.1234/000.jpg",
    "@PaxHeader",
    "pax_global_header",
    "photos/000.jpg~",
    "photos/.000.txt.swp",
    "#000.txt#",
    "000.txt.bak",
    "000.jpg.part",
    "@eaDir/000.jpg/SYNOPHOTO_THUMB_M.jpg",
    "$RECYCLE.BIN/000.jpg",
    ".ipynb_checkpoints/000.jpg",
    ".nfs000000001",
    "__meta__/info.json",
]
DATA = ["000.jpg", "./000.jpg", "../000.jpg", "/data/000.jpg", "a/b/000.txt", "part.jpg", "tmp/000.jpg", "000.seg.png", "a~b.jpg"]


def tar_of(path: Path, names: Sequence[str], form: int = tarfile.GNU_FORMAT) -> str:
    """An archive of files of these names, in this order; the content of each is its name."""
    with tarfile.open(path, "w", format=form) as archive:
        for name in names:
            if name.endswith("/"):
                folder = tarfile.TarInfo(name)
                folder.type = tarfile.DIRTYPE
                archive.addfile(folder)
                continue
            info = tarfile.TarInfo(name)
            content = name.encode(errors="surrogateescape")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def grouped(samples: Sequence[Sample]) -> list[tuple[str, set[str]]]:
    return [(sample.key, set(sample.files)) for sample in samples]


def read(tmp_path: Path, *names: str) -> list[tuple[str, set[str]]]:
    samples = list(read_samples(tar_of(tmp_path / "a.tar", names)))
    for sample in samples:
        for extension, content in sample.files.items():
            assert content.decode().lower().removeprefix("./") == f"{sample.key}.{extension}".lower()
    return grouped(samples)


@pytest.mark.parametrize("name", LITTER)
def test_litter_between_the_files_of_a_sample_is_not_there(tmp_path: Path, name: str) -> None:
    assert is_litter(name)
    assert read(tmp_path, "photos/000.jpg", name, "photos/000.txt", name) == [("photos/000", {"jpg", "txt"})]


@pytest.mark.parametrize("name", DATA)
def test_data_are_no_litter(name: str) -> None:
    assert not is_litter(name)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["photo.1.jpg", "photo.1.txt", "photo.2.jpg", "photo.2.txt"],
            [("photo.1", {"jpg", "txt"}), ("photo.2", {"jpg", "txt"})],
        ),
        (["a.b.c.jpg", "a.b.c.txt", "a.b.d.jpg", "a.b.d.txt"], [("a.b.c", {"jpg", "txt"}), ("a.b.d", {"jpg", "txt"})]),
        (["v1.0/a.jpg", "v1.0/a.txt"], [("v1.0/a", {"jpg", "txt"})]),
        (["photo.1.JPG", "photo.1.TXT"], [("photo.1", {"jpg", "txt"})]),
        # A sample with several files of a kind is what webdataset says it is.
        (["0.jpg", "0.seg.png", "0.txt", "1.jpg", "1.seg.png"], [("0", {"jpg", "seg.png", "txt"}), ("1", {"jpg", "seg.png"})]),
        (["0.seg.png", "0.jpg", "0.txt"], [("0", {"jpg", "seg.png", "txt"})]),
        (["0.meta.json", "0.meta.yaml", "0.jpg", "0.txt"], [("0", {"meta.json", "meta.yaml", "jpg", "txt"})]),
        (["a/0.jpg", "a/0.txt", "b/0.jpg", "b/0.txt"], [("a/0", {"jpg", "txt"}), ("b/0", {"jpg", "txt"})]),
        (["a/", "a/0.jpg", "a/0.txt", "b/"], [("a/0", {"jpg", "txt"})]),
        (["./0.jpg", "0.txt"], [("0", {"jpg", "txt"})]),
        (["/abs/0.jpg", "/abs/0.txt", "../0.jpg"], [("/abs/0", {"jpg", "txt"}), ("../0", {"jpg"})]),
        (["README", "LICENSE", "0.jpg", "0.txt"], [("0", {"jpg", "txt"})]),
        (["x" * 300 + ".jpg", "x" * 300 + ".txt"], [("x" * 300, {"jpg", "txt"})]),
    ],
)
def test_names_are_grouped_into_samples(tmp_path: Path, names: list[str], expected: list[tuple[str, set[str]]]) -> None:
    assert read(tmp_path, *names) == expected


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ["p.1.jpg", "p.2.jpg", "p.1.txt"],
            "p.1.jpg is read as the file '1.jpg' of sample 'p', since the first dot ends the key",
        ),
        (["0.jpg", "1.jpg", "0.txt", "1.txt"], "files of one sample are not next to each other: 0 (.jpg .txt)"),
        (["0.jpg", "0.txt", "1.jpg", "0.jpg", "0.txt"], "a key appears more than once: 0"),
        (["0.jpg", "0.txt", "0.jpg"], "a file is ignored: 0.jpg appears twice in one sample"),
    ],
)
def test_what_may_be_misread_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, names: list[str], told: str) -> None:
    with caplog.at_level(logging.WARNING):
        list(read_samples(tar_of(tmp_path / "a.tar", names)))
    assert told in caplog.text


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_compressed_shard_is_read_and_its_cut_noticed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.tar.{kind}"
    with tarfile.open(path, f"w:{kind}") as archive:
        for name in ("0.jpg", "0.txt"):
            info = tarfile.TarInfo(name)
            info.size = 5000
            archive.addfile(info, io.BytesIO(jpeg(1)[:500] * 10))
    assert grouped(list(read_samples(str(path)))) == [("0", {"jpg", "txt"})]
    path.write_bytes(path.read_bytes()[:-12])
    assert list(read_samples(str(path)))[-1].broken


def test_what_python_cannot_decompress_says_what_can(tmp_path: Path) -> None:
    (tmp_path / "a.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + b"x" * 1000)
    (sample,) = read_samples(str(tmp_path / "a.tar.zst"))
    assert "pipe:zstd -dc" in sample.broken


def test_every_cut_of_a_shard_is_noticed(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, 1, 3)
    content = Path(shard).read_bytes()
    end = content.rstrip(b"\0")
    blocks = -(-len(end) // 512)
    whole = list(read_samples(shard))
    for block in range(1, blocks + 1):  # the last cut is right behind the last file: no end-of-archive marker
        Path(shard).write_bytes(content[: 512 * block])
        *good, last = read_samples(shard)
        assert last.broken, block
        assert good == whole[: len(good)]
        assert len(good) == (3 if block == blocks else min(2, len(good)))
    assert "no end-of-archive marker" in last.broken
    Path(shard).write_bytes(content[: 512 * (blocks + 1)])  # one block of zeros, and no padding: some writers leave it at that
    assert list(read_samples(shard)) == whole


@pytest.mark.parametrize("program", [["tar", "-cf"], ["tar", "--format=posix", "-cf"], ["tar", "--format=ustar", "-cf"]])
def test_what_tar_writes_has_its_marker(tmp_path: Path, program: list[str]) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "0.txt").write_text("zero")
    subprocess.run([*program, "a.tar", "0.jpg", "0.txt"], cwd=tmp_path, check=True)
    assert grouped(list(read_samples(str(tmp_path / "a.tar")))) == [("0", {"jpg", "txt"})]


def test_a_sparse_file_is_read(tmp_path: Path) -> None:
    with (tmp_path / "0.txt").open("wb") as file:
        file.write(b"begin")
        file.seek(1 << 20)
        file.write(b"end")
    subprocess.run(["tar", "--sparse", "-cf", "a.tar", "0.txt"], cwd=tmp_path, check=True)
    (sample,) = read_samples(str(tmp_path / "a.tar"))
    assert sample.files["txt"] == (tmp_path / "0.txt").read_bytes()


def test_joined_archives_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = (write_shard(tmp_path / f"{name}.tar", [pair(1)]) for name in "ab")
    both = tmp_path / "both.tar"
    both.write_bytes(Path(first).read_bytes() + Path(second).read_bytes())
    with caplog.at_level(logging.WARNING):
        assert len(list(read_samples(str(both)))) == 1
    assert "data after the end of the archive is not read" in caplog.text


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_no_damage_is_fatal(tmp_path: Path, form: int) -> None:
    """Bytes of headers, of long names and of pax records among them, are replaced at random."""
    shard = Path(tar_of(tmp_path / "a.tar", ["0.jpg", "0.txt", "ü" * 90 + ".jpg", "n" * 200 + ".txt", "1.jpg", "1.txt"], form))
    content = shard.read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 8])):
            damaged[rng.randrange(len(content.rstrip(b"\0")))] = rng.randrange(256)
        shard.write_bytes(damaged)
        list(read_samples(str(shard)))


def test_names_that_no_line_can_hold_are_escaped_and_stay_apart(tmp_path: Path) -> None:
    keys = ["caf\udce9", "caf\udcea", "caf\n", "café"]
    shard = tar_of(tmp_path / "a.tar", [f"{key}{ending}" for key in keys for ending in (".jpg", ".txt")])
    found = list(read_samples(shard))
    assert [sample.key for sample in found] == [r"caf\udce9", r"caf\udcea", r"caf\n", "café"]
    assert all(sample.files.keys() == {"jpg", "txt"} for sample in found)


def test_headers_without_end_are_a_break(tmp_path: Path) -> None:
    record = b"13 comment=x\n".ljust(512, b"\0")
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 13
    (tmp_path / "a.tar").write_bytes((header.tobuf() + record) * 3000)
    (only,) = read_samples(str(tmp_path / "a.tar"))
    assert "recursion" in only.broken


@pytest.mark.parametrize("files", [[], ["README"], ["._000.jpg", ".DS_Store"]])
def test_a_whole_shard_without_samples_is_told(tmp_path: Path, files: list[str], caplog: pytest.LogCaptureFixture) -> None:
    shard = tar_of(tmp_path / "a.tar", files)
    with caplog.at_level(logging.WARNING):
        assert not list(read_samples(shard))
    assert f"{shard}: it holds no samples: " in caplog.text
    assert ("1 files, none of them called like 000.jpg" if files == ["README"] else "no files at all") in caplog.text


def test_space_that_a_download_reserved_is_no_padding(tmp_path: Path) -> None:
    shard = Path(write_shard(tmp_path / "a.tar", [pair(number) for number in range(6)]))
    content = shard.read_bytes()
    shard.write_bytes(content + b"\0" * ((1 << 20) - 20480))
    assert not any(sample.broken for sample in read_samples(str(shard))), "a program may fill up a large record"
    shard.write_bytes(content[: content.index(b"000003.jpg")] + b"\0" * (3 << 20))
    *whole, last = read_samples(str(shard))
    assert len(whole) == 3
    assert "zeros follows its end" in last.broken
