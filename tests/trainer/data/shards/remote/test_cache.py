"""The cache of shards: one download for all, never a broken file, never more bytes than allowed, and streaming when it fails."""

import contextlib
import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from trainer.config.schema import DataConfig
from trainer.data.shards.opening import Remote, check_shard_cache, open_shard
from trainer.data.shards.remote import cache, persistent, store
from trainer.data.shards.remote.cache import ShardCache
from trainer.data.shards.remote.store import Parts
from trainer.errors import UserError

SIZE = 5000


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Files `0.tar`, …, `9.tar` of 5000 different bytes each."""
    monkeypatch.setattr(persistent, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(cache, "AT_ONCE", 1000)
    monkeypatch.setattr(store, "FIRST_PART", 500)
    cache._told.clear()
    system = fsspec.filesystem("memory")
    for number in range(10):
        system.pipe_file(f"/bucket/{number}.tar", content(number))
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def fetched(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges that are asked for."""
    asked: list[tuple[int, int]] = []
    fetch = Parts._fetch

    def counting(parts: Parts, start: int, end: int, into: Any) -> None:
        asked.append((start, end))
        fetch(parts, start, end, into)

    monkeypatch.setattr(Parts, "_fetch", counting)
    return asked


def content(number: int) -> bytes:
    return bytes((number * 31 + index * 7 + index // 256) % 256 for index in range(SIZE))


def limits(folder: Path, shards: float = 100) -> Remote:
    return Remote(timeout=1.0, tries=3, cache=ShardCache(str(folder), round(shards * SIZE)))


def read(number: int, remote: Remote) -> bytes:
    with open_shard(f"memory://bucket/{number}.tar", remote) as stream:
        return stream.read()


def kept(folder: Path) -> list[str]:
    """The names of whole shards, the rest of the folder as it is."""
    return sorted(path.name.rpartition("-")[2] for path in folder.iterdir() if not path.name.startswith("."))


def test_a_shard_is_fetched_once(bucket: Any, fetched: list[Any], tmp_path: Path) -> None:
    assert read(3, limits(tmp_path)) == content(3)
    assert kept(tmp_path) == ["3.tar"]
    before = len(fetched)
    assert before
    assert read(3, limits(tmp_path)) == content(3)
    assert len(fetched) == before


def test_readers_of_one_shard_share_what_each_of_them_fetches(bucket: Any, fetched: list[Any], tmp_path: Path) -> None:
    streams = [open_shard("memory://bucket/1.tar", limits(tmp_path)) for _ in range(2)]
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(stream) for stream in streams)
        found = first.raw.read(800), second.raw.read(800)  # type: ignore[attr-defined]
        assert found == (content(1)[:800],) * 2
        assert second.read() == content(1)[800:], "it does not wait for the first one, which does not read on"
        assert first.read() == content(1)[800:]
    assert kept(tmp_path) == ["1.tar"]


def test_a_reader_that_leaves_early_leaves_nothing_broken(bucket: Any, tmp_path: Path) -> None:
    with open_shard("memory://bucket/2.tar", limits(tmp_path)) as stream:
        stream.raw.read(10)  # type: ignore[attr-defined]
    assert [name for name in kept(tmp_path) if name == "2.tar"] == []
    assert read(2, limits(tmp_path)) == content(2)
    assert kept(tmp_path) == ["2.tar"]


def test_the_least_recently_used_make_room_and_bytes_stay_bounded(bucket: Any, tmp_path: Path) -> None:
    remote = limits(tmp_path, 3)
    for number in (0, 1, 2):
        read(number, remote)
        _age(tmp_path)
    read(0, remote)
    _age(tmp_path)
    read(3, remote)
    assert kept(tmp_path) == ["0.tar", "2.tar", "3.tar"]
    for number in range(10):
        read(number, remote)
        assert sum(path.stat().st_size for path in tmp_path.iterdir() if path.is_file()) <= 3 * SIZE


def _age(folder: Path) -> None:
    """As if a minute passed."""
    for path in folder.iterdir():
        os.utime(path, (path.stat().st_atime - 60, path.stat().st_mtime - 60))


def test_a_shard_in_use_stays_and_others_are_streamed_meanwhile(
    bucket: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote = limits(tmp_path, 1.5)
    with open_shard("memory://bucket/0.tar", remote) as stream:
        assert stream.raw.read(10) == content(0)[:10]  # type: ignore[attr-defined]
        assert [read(number, remote) for number in (1, 2)] == [content(1), content(2)]
        assert caplog.text.count("shards that are being read fill data.shard_cache_gib") == 1
        assert stream.read() == content(0)[10:]
    assert kept(tmp_path) == ["0.tar"]
    read(1, remote)
    assert kept(tmp_path) == ["1.tar"]


def test_a_shard_larger_than_the_bound_is_streamed_and_told_once(
    bucket: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remote = limits(tmp_path, 0.9)
    assert [read(1, remote), read(1, remote)] == [content(1), content(1)]
    assert caplog.text.count("has more bytes than data.shard_cache_gib allows") == 1
    assert kept(tmp_path) == []


def test_a_shard_that_changed_at_its_source_is_fetched_again(bucket: Any, tmp_path: Path) -> None:
    read(1, limits(tmp_path))
    bucket.pipe_file("/bucket/1.tar", content(7))
    assert read(1, limits(tmp_path)) == content(7)


def test_a_file_that_lost_bytes_is_replaced(bucket: Any, tmp_path: Path) -> None:
    read(1, limits(tmp_path))
    (path,) = tmp_path.glob("*-1.tar")
    os.truncate(path, 100)
    assert read(1, limits(tmp_path)) == content(1)
    assert path.stat().st_size == SIZE


def test_files_of_others_in_the_folder_are_left_alone(bucket: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.tar").write_bytes(b"x" * 3 * SIZE)
    for number in range(4):
        read(number, limits(tmp_path, 1))
    assert (tmp_path / "thesis.tar").exists()


@pytest.mark.parametrize("problem", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_ends_the_keeping_and_not_the_reading(
    bucket: Any, tmp_path: Path, problem: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pwrite = os.pwrite

    def full(descriptor: int, part: bytes, position: int) -> int:
        if position >= 2000:
            raise OSError(problem, os.strerror(problem))
        return pwrite(descriptor, part, position)

    monkeypatch.setattr(os, "pwrite", full)
    assert [read(1, limits(tmp_path)), read(1, limits(tmp_path))] == [content(1), content(1)]
    assert caplog.text.count(f"{tmp_path}: {os.strerror(problem)}: shards are not kept there") == 1
    assert kept(tmp_path) == [], "nothing half done takes the room that is left"


def test_a_folder_that_cannot_be_is_told_and_shards_are_streamed(
    bucket: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert read(1, limits(tmp_path / "file")) == content(1)
    with pytest.raises(UserError, match=r"^data.shard_cache=.*/file: Not a directory: give a folder on the node's own disk"):
        check_shard_cache(DataConfig(shard_cache=str(tmp_path / "file")))
    check_shard_cache(DataConfig(shard_cache=str(tmp_path / "new" / "folder")))
    check_shard_cache(DataConfig())
    assert f"{tmp_path}/file: Not a directory: shards are not kept there (data.shard_cache)" in caplog.text


def _read_some_and_hang(folder: Path, bytes_read: int, ready: Any) -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/1.tar", content(1))
    cache.AT_ONCE = 1000
    with open_shard("memory://bucket/1.tar", limits(folder)) as stream:
        stream.raw.read(bytes_read)
        ready.set()
        time.sleep(60)


def test_a_process_that_is_killed_leaves_neither_a_lock_nor_a_broken_shard(bucket: Any, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_read_some_and_hang, args=(tmp_path, 1500, ready))
    process.start()
    assert ready.wait(30)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert "1.tar" not in kept(tmp_path)
    assert read(1, limits(tmp_path, 1)) == content(1), "what it left does not take the room either"
    assert kept(tmp_path) == ["1.tar"]


def test_many_readers_at_once(bucket: Any, fetched: list[Any], tmp_path: Path) -> None:
    """Few places: everybody reads the right bytes, and the bound holds all the time."""
    remote = limits(tmp_path, 4)
    wrong: list[int] = []
    largest = [0]

    def watch(done: threading.Event) -> None:
        while not done.is_set():
            with cache._locked(tmp_path / ".lock"):  # or a file that makes room is counted together with the next one
                largest[0] = max(largest[0], sum(path.stat().st_size for path in tmp_path.glob("*.tar*")))
            time.sleep(0.001)

    def many(seed: int) -> None:
        for turn in range(12):
            number = (seed * 3 + turn * 7) % 10
            if read(number, remote) != content(number):
                wrong.append(number)

    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(done,))
    watcher.start()
    threads = [threading.Thread(target=many, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    assert wrong == []
    assert 0 < largest[0] <= 4 * SIZE
