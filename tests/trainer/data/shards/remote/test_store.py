"""Shards in a store, here fsspec's own in memory: read in parts, each checked; failures in words."""

import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile

from tests.trainer.data.shards_on_disk import write_shards
from trainer.data.shards.opening import Remote, open_shard
from trainer.data.shards.patterns import list_shards
from trainer.data.shards.remote import persistent, store
from trainer.data.shards.remote.persistent import ReadFailed
from trainer.data.shards.remote.store import STORES, Failure, failure_of
from trainer.data.shards.samples import read_samples
from trainer.errors import UserError

QUICK = Remote(timeout=1.0, tries=3)
ROOT = Path(__file__).parents[5]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A store with three shards in memory://bucket/set/."""
    monkeypatch.setattr(persistent, "FIRST_WAIT", 0.001)
    system = fsspec.filesystem("memory")
    for shard in write_shards(tmp_path, 3, 4):
        system.pipe_file(f"/bucket/set/{Path(shard).name}", Path(shard).read_bytes())
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def content(bucket: Any) -> bytes:
    return bytes(bucket.cat_file("/bucket/set/train-000.tar"))


URL = "memory://bucket/set/train-000.tar"


@pytest.mark.parametrize("largest", [1000, 1 << 22])
def test_a_shard_is_read_part_by_part(bucket: Any, monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    monkeypatch.setattr(store, "FIRST_PART", 700)
    monkeypatch.setattr(store, "LARGEST_PART", largest)
    with open_shard(URL, QUICK) as stream:
        assert stream.read() == content(bucket)
    assert [sample.key for sample in read_samples(URL, QUICK)] == [f"{number:06}" for number in range(4)]


@pytest.mark.parametrize("short", [0, 1, 300])
def test_a_part_that_fails_or_is_cut_is_asked_for_again(bucket: Any, monkeypatch: pytest.MonkeyPatch, short: int) -> None:
    monkeypatch.setattr(store, "FIRST_PART", 700)
    asked, read = [], MemoryFile.read

    def failing(file: MemoryFile, size: int = -1) -> bytes:
        asked.append(file.tell())
        if len(asked) in (2, 4):
            if short:
                return bytes(read(file, size))[:-short]
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        return bytes(read(file, size))

    monkeypatch.setattr(MemoryFile, "read", failing)
    with open_shard(URL, QUICK) as stream:
        found = stream.read()
    monkeypatch.undo()
    assert found == content(bucket)
    assert asked[:5] == [0, 700, 700, 1400, 1400], "the part that failed, not all again"


def test_a_shard_that_is_replaced_meanwhile_is_not_mixed(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FIRST_PART", 700)

    def failing(file: MemoryFile, size: int = -1) -> bytes:
        bucket.pipe_file("/bucket/set/train-000.tar", b"another")
        raise OSError("reset")

    monkeypatch.setattr(MemoryFile, "read", failing)
    with open_shard(URL, QUICK) as stream, pytest.raises(ReadFailed, match="the file changed while it was read"):
        stream.read()


def test_a_shard_that_is_not_there_is_final_at_once(bucket: Any, caplog: pytest.LogCaptureFixture) -> None:
    (sample,) = read_samples("memory://bucket/set/nothing.tar", QUICK)
    assert sample.broken == "no such file or folder (HTTP 404)"
    assert "waiting" not in caplog.text


class NoCredentialsError(Exception):
    """As botocore's is called."""


class Answered(Exception):
    """As the packages raise them."""

    def __init__(self, told: str, **details: Any) -> None:
        super().__init__(told)
        self.__dict__ |= details


def caused_by(cause: Exception, problem: Exception) -> Exception:
    problem.__cause__ = cause
    return problem


@pytest.mark.parametrize(
    ("problem", "scheme", "told", "again"),
    [
        (FileNotFoundError("bucket/a"), "s3", "no such file or folder", False),
        (PermissionError("Forbidden"), "s3", r"access is denied \(Forbidden\): set AWS_PROFILE", False),
        (OSError("Forbidden: https://x\nno"), "gs", r"access is denied .*: set GOOGLE_APPLICATION_CREDENTIALS", False),
        (
            type("NoCredentialsError", (Exception,), {})("Unable to locate credentials"),
            "s3",
            "no credentials .*AWS_PROFILE",
            False,
        ),
        (Answered("gated", code=401), "hf", "access is denied .*: set HF_TOKEN", False),
        (Answered("Bad Request", code="400"), "gs", "HTTP 400", False),
        (Answered("slow down", code=429), "gs", "HTTP 429", True),
        (Answered("x", response={"ResponseMetadata": {"HTTPStatusCode": 503}}), "s3", "HTTP 503", True),
        (caused_by(Answered("Not enough data", code=400), OSError("payload is not completed")), "s3", "not completed", True),
        (TimeoutError("Read timeout on endpoint"), "s3", "no data came in time", True),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), "s3", "reset by peer", True),
        (OSError("https://u:hush@x.example failed"), "s3", "https://x.example failed", True),
    ],
)
def test_what_a_package_says_in_our_words(problem: Exception, scheme: str, told: str, again: bool) -> None:
    failure = failure_of(problem, scheme)
    assert isinstance(failure, Failure)
    assert failure.again is again
    with pytest.raises(Failure, match=told):
        raise failure
    assert "hush" not in str(failure)


@pytest.mark.parametrize("scheme", ["s3", "gs", "hf"])
def test_a_package_that_is_missing_is_named_before_the_run(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    package = STORES[scheme].package
    for url in (f"{scheme}://bucket/{{0..9}}.tar", f"{scheme}://bucket/set/"):
        with pytest.raises(UserError, match=f"^data.train: {scheme}:// is read by .*: pip install {package}$"):
            list_shards(url, "data.train")


@pytest.mark.parametrize("scheme", ["s3", "gs", "hf"])
def test_the_package_that_is_named_is_the_one_that_is_pinned(scheme: str) -> None:
    assert STORES[scheme].package in (ROOT / f"requirements-{scheme}.txt").read_text().split()


def test_folders_wildcards_and_braces_in_a_store(bucket: Any) -> None:
    shards = [f"memory://bucket/set/train-{number:03}.tar" for number in range(3)]
    for pattern in ("memory://bucket/set/", "memory://bucket/set", "memory://bucket/set/*.tar", "memory://bucket/s*"):
        assert list_shards(pattern, "data.train") == shards, pattern
    assert list_shards("memory://bucket/set/train-{000..002}.tar", "data.train") == shards
    for empty in ("memory://bucket", "memory://bucket/nothing/", "memory://bucket/set/x*"):
        with pytest.raises(UserError, match=f"data.train={re.escape(empty)}: .*"):
            list_shards(empty, "data.train")
    with pytest.raises(UserError, match=r"data.val=memory://bucket/set: no shards match; .*train-000.tar.* another part"):
        list_shards("memory://bucket/set/", "data.val")


def test_the_parts_of_a_data_set_in_a_store(bucket: Any) -> None:
    for part, count in (("train", 1), ("test", 11)):
        for number in range(count):
            bucket.pipe_file(f"/wds/{part}/{number}.tar", content(bucket))
        bucket.pipe_file(f"/wds/{part}/nshards.txt", str(count).encode())
    assert list_shards("memory://wds", "data.train") == ["memory://wds/train/0.tar"]
    assert list_shards("memory://wds", "data.val") == [f"memory://wds/test/{number}.tar" for number in range(11)]
