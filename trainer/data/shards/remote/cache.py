"""Remote shards on the node's own disk: a folder bounded in bytes, which the processes of a node share.

A shard that is read for the first time is written to the folder while it is read. Whoever needs its next part first fetches it,
the others wait for that part and read it from the file, so that each part is fetched once and nobody waits for a reader that is
busy. The whole file gets its name in one step. What a process that was killed leaves behind is nobody's lock and no shard's name.

    0123456789abcdef-name.tar               a whole shard; its lock (flock, shared) is held while somebody reads it
    0123456789abcdef-name.tar.5120.node.part  the beginning of one of 5120 bytes, written by the processes of `node`
    .lock                                   held while the folder is looked over: to open, make room, remove
    .locks/07                               held while a part of a shard is fetched; a shard's file is fixed by its name
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.shards.remote.persistent import Description, Persistent

AT_ONCE = 1 << 22  # bytes fetched while the lock is held
STRIPES = 64
GIB = 1 << 30
_OURS = re.compile(r"[0-9a-f]{16}-.*")  # whatever else is in the folder is left alone
_PART = re.compile(r".+\.(\d+)\.[^.]*\.part")

logger = logging.getLogger(__name__)

_told: set[str] = set()


@dataclass(frozen=True)
class ShardCache:
    """folder: made when it is needed; limit: bytes that all files in it may take."""

    folder: str
    limit: int

    def open(self, name: str, description: Description, stream: Persistent) -> io.RawIOBase | None:
        """A shard through the cache; None, and a line, where it must be streamed instead. Takes over the stream.

        name: the shard's; description: its size and version, which say whether a file in the cache is still the same.
        """
        size = description.size
        if size is None:
            return None
        if size > self.limit:
            _tell_once(f"{self.folder}: {name} has more bytes than data.shard_cache_gib allows: such shards are not kept")
            return None
        key = _key(name, description)
        try:
            self.check()
            with _locked(Path(self.folder) / ".lock"):
                file = self._opened(key, size)
        except OSError as problem:
            _tell_once(f"{self.folder}: {problem.strerror}: shards are not kept there (data.shard_cache)")
            return None
        if file is None:
            _tell_once(f"{self.folder}: shards that are being read fill data.shard_cache_gib: others are not kept meanwhile")
            return None
        return _Kept(file, size, stream, Path(self.folder) / ".locks" / f"{int(key[:8], 16) % STRIPES:02}")

    def check(self) -> None:
        """Raise OSError when the folder cannot be made, written or locked on this machine."""
        (Path(self.folder) / ".locks").mkdir(parents=True, exist_ok=True)
        with _locked(Path(self.folder) / ".lock"):
            pass

    def _opened(self, key: str, size: int) -> "_File | None":
        """The file of a shard, new or known, in use from now on; None if there is no room. Under the folder's lock."""
        whole, part = Path(self.folder) / key, Path(self.folder) / f"{key}.{size}.{socket.gethostname().partition('.')[0]}.part"
        file = _File.existing(whole)
        if file is not None:
            if file.length() == size:
                file.touch(whole)
                return file
            file.close()
            whole.unlink(missing_ok=True)
        file = _File.existing(part)
        if file is not None:
            if file.is_shared():
                return file
            # Its writers are gone; after a power failure what they wrote may not be there.
            file.close()
            part.unlink(missing_ok=True)
        return _File.new(part, whole) if self._make_room(size) else None

    def _make_room(self, size: int) -> bool:
        """Remove what nobody reads, the longest unused first, until `size` bytes fit."""
        entries = []
        for path in Path(self.folder).iterdir():
            if _OURS.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    reserved = _PART.fullmatch(path.name)
                    entries.append((status.st_mtime, path, int(reserved[1]) if reserved else status.st_size))
        taken = sum(of_file for _, _, of_file in entries)
        for _, path, of_file in sorted(entries):
            if taken + size <= self.limit:
                break
            if _is_unused(path):
                path.unlink(missing_ok=True)
                taken -= of_file
        return taken + size <= self.limit


class _File:
    """An open file of the cache. A shared lock on it says that it is in use."""

    def __init__(self, descriptor: int, part: Path, whole: Path) -> None:
        self.descriptor = descriptor
        self._part, self._whole = part, whole
        fcntl.flock(descriptor, fcntl.LOCK_SH)

    @classmethod
    def existing(cls, path: Path) -> "_File | None":
        """None if there is no such file."""
        try:
            return cls(os.open(path, os.O_RDWR), path, path.with_name(_whole_name(path.name)))
        except FileNotFoundError:
            return None

    @classmethod
    def new(cls, part: Path, whole: Path) -> "_File":
        """An empty one, to be called `whole` when it is."""
        return cls(os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666), part, whole)

    def length(self) -> int:
        """Bytes so far."""
        return os.fstat(self.descriptor).st_size

    def touch(self, path: Path) -> None:
        """It was used just now; another user's file cannot be told so."""
        with contextlib.suppress(OSError):
            os.utime(path)

    def is_shared(self) -> bool:
        """Whether somebody else has it in use too."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self.descriptor, fcntl.LOCK_SH)  # a lock that cannot be changed is lost
            return True
        return False

    def finish(self) -> None:
        """Give the whole file its name, once its bytes are on disk."""
        os.fsync(self.descriptor)
        # Under the lock: whoever makes room meanwhile must count it, under one name or the other.
        with _locked(self._whole.with_name(".lock")), contextlib.suppress(FileNotFoundError):  # another reader was faster
            self._part.rename(self._whole)

    def abandon(self) -> None:
        """Take back what cannot be completed."""
        if self._part != self._whole:
            self._part.unlink(missing_ok=True)

    def close(self) -> None:
        """No longer in use."""
        os.close(self.descriptor)


class _Kept(io.RawIOBase):
    """A shard read from the cache's file as far as that goes, and from its stream into the file after that.

    If the folder fails, because the disk is full, say, the stream alone is read on.
    """

    def __init__(self, file: _File, size: int, stream: Persistent, lock: Path) -> None:
        super().__init__()
        self._file: _File | None = file
        self._size = size
        self._stream = stream
        self._lock = lock
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as data is available; 0 at the end. Raises ReadFailed."""
        view = memoryview(buffer)
        count = self._from_file(view) if self._file is not None else None
        if count is None:
            self._stream.continue_at(self._position)
            count = self._stream.readinto(view)
        self._position += count
        return count

    def close(self) -> None:
        """Leave the file to others."""
        if not self.closed:
            self._leave()
            self._stream.close()
        super().close()

    def _from_file(self, view: memoryview) -> int | None:
        """None if the folder fails."""
        assert self._file is not None
        try:
            if self._position < self._size and self._file.length() <= self._position:
                self._fetch()
            return os.preadv(self._file.descriptor, [view], self._position)
        except _FolderFails as failure:
            problem = failure.problem
            self._file.abandon()
        except OSError as failure:
            if failure.errno is None:  # the shard's, not the folder's
                raise
            problem = failure
        _tell_once(f"{self._lock.parents[1]}: {problem.strerror}: shards are not kept there (data.shard_cache)")
        self._leave()
        return None

    def _fetch(self) -> None:
        """Make the file longer than the position, unless another process does. Raises ReadFailed and _FolderFails."""
        file = self._file
        assert file is not None
        with _locked(self._lock):
            begin = file.length()
            if begin > self._position:
                return
            self._stream.continue_at(begin)
            end = min(begin + AT_ONCE, self._size)
            while begin < end:
                content = self._stream.read(end - begin)
                if not content:
                    return  # shorter than announced: the archive's end will be missed, as in any other shard
                _write(file.descriptor, content, begin)
                begin += len(content)
            if begin == self._size:
                with _folder_may_fail():
                    file.finish()

    def _leave(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


class _FolderFails(Exception):
    """The cache's folder, not the shard's source, has a problem."""

    def __init__(self, problem: OSError) -> None:
        super().__init__(str(problem))
        self.problem = problem


@contextmanager
def _folder_may_fail() -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise _FolderFails(problem) from None


def _write(descriptor: int, content: bytes, position: int) -> None:
    # At a place, not at the end: should two processes do it at once, both write the same.
    with _folder_may_fail():
        while content:
            count = os.pwrite(descriptor, content, position)
            content, position = content[count:], position + count


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the processes of this machine; the lock of a process that dies is free."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_unused(path: Path) -> bool:
    """Whether nobody reads a file; one that is not ours counts as used."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        return problem.errno not in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)
    finally:
        os.close(descriptor)
    return True


def _key(name: str, description: Description) -> str:
    """A file name for one version of a shard, which also tells a person which shard it is."""
    digest = hashlib.sha256(f"{name}\n{description.size}\n{description.version}".encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", name.partition("?")[0].rpartition("/")[2])[-80:]
    return f"{digest}-{readable}"


def _whole_name(name: str) -> str:
    """The name without what says that it is a part."""
    return name.rsplit(".", 3)[0] if _PART.fullmatch(name) else name


def _tell_once(line: str) -> None:
    """Each process tells a thing once; the training process tells once what its workers told (news)."""
    if line not in _told:
        _told.add(line)
        logger.warning("%s", line, extra={"news": (line, "shard cache")})
