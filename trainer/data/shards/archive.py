"""The files in a tar archive, up to its end or to where it is cut off."""

import bz2
import gzip
import io
import logging
import lzma
import os
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Generic, TypeVar, cast

from trainer.data.shards.litter import is_litter
from trainer.data.shards.names import printable
from trainer.data.shards.opening import Remote, open_shard

MOST_PADDING = 1 << 20  # bytes of zeros behind an archive: programs fill up a record, of 10 KiB unless they are asked for more
ZEROS = (
    "more than a mebibyte of zeros follows its end: perhaps a download that reserved its space was cut off "
    "(data.max_bad_shards=1 lets such shards pass)"
)
NO_END = (
    "it has no end-of-archive marker: it was cut off between two files, or the program that wrote it did not close it "
    "(data.max_bad_shards=1 accepts such shards)"
)

READ_AT_ONCE = 1 << 20
BLOCK = tarfile.BLOCKSIZE
DECOMPRESSORS: dict[bytes, Callable[[BinaryIO], BinaryIO]] = {
    b"\x1f\x8b": lambda stream: cast(BinaryIO, gzip.GzipFile(fileobj=stream)),
    b"BZh": lambda stream: cast(BinaryIO, bz2.BZ2File(stream)),
    b"\xfd7zXZ\0": lambda stream: cast(BinaryIO, lzma.LZMAFile(stream)),  # noqa: SIM115 - closed with the stream below it
}
# From truncated, damaged and foreign archives (of thousands of extended headers, too), lost mounts, commands and servers.
BREAKS = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError, zlib.error, lzma.LZMAError)
ZSTD = b"\x28\xb5\x2f\xfd"

T = TypeVar("T")
logger = logging.getLogger(__name__)

_warned: set[tuple[str, str]] = set()


def warn_once(shard: str, kind: str, detail: object) -> None:
    """Log the first problem of a kind that a shard has in this process; a shard is read again every epoch."""
    if is_news(shard, kind):
        logger.warning("%s: %s: %s", shard, kind, detail, extra={"news": (shard, kind)})


def is_news(shard: str, kind: str) -> bool:
    """Whether this process has told nothing of the kind about a shard yet; from now on it has."""
    known = (shard, kind) in _warned
    _warned.add((shard, kind))
    return not known


class Files(ABC, Generic[T]):
    """Iterates over (name, T) of the files of a shard, without litter; a break ends it, and `problem` says why."""

    def __init__(self, shard: str, remote: Remote | None = None) -> None:
        self.problem = ""
        self._shard = shard
        self._remote = remote
        self._stream: BinaryIO | None = None
        self._files_seen = 0
        self._files = self._until_break()

    def __iter__(self) -> Iterator[tuple[str, T]]:
        return self

    def __next__(self) -> tuple[str, T]:
        return next(self._files)

    @abstractmethod
    def _open(self, stream: BinaryIO) -> tarfile.TarFile:
        """The archive in a stream."""

    @abstractmethod
    def _of(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> T:
        """What to give of a file."""

    def close(self) -> None:
        """Close the file, connection or command, also in the middle."""
        self._files.close()
        if self._stream is not None:
            self._stream.close()

    def contents(self) -> str:
        """In words, how many files there were so far, litter not counted."""
        return f"{self._files_seen} files, none of them called like 000.jpg or 000.txt" if self._files_seen else "no files at all"

    def _until_break(self) -> Generator[tuple[str, T], None, None]:
        try:
            self._stream = open_shard(self._shard, self._remote)
            with self._open(self._stream) as archive:
                for member in archive:
                    name = printable(member.name.removeprefix("./"))
                    if member.isreg() and not is_litter(name):
                        self._files_seen += 1
                        yield name, self._of(archive, member)
                    elif (member.islnk() or member.issym()) and not is_litter(name):
                        self._tell_of_link(name, member)
                    archive.members = []  # type: ignore[attr-defined]  # otherwise it keeps every header of the shard
                self._finish(archive)
        except BREAKS as problem:
            self.problem = _in_one_line(problem)

    def _tell_of_link(self, name: str, member: tarfile.TarInfo) -> None:
        kind, option = ("hard", "--hard-dereference") if member.islnk() else ("symbolic", "--dereference")
        detail = f"{name} points to {printable(member.linkname)}: write the archive with tar {option}"
        warn_once(self._shard, f"{kind} links are not followed", detail)

    def _finish(self, archive: tarfile.TarFile) -> None:
        """Read what follows the end: a command that cannot write it would report a failure, and there may be more data."""
        stream = cast(BinaryIO, archive.fileobj)
        zeros = 0
        while rest := stream.read(READ_AT_ONCE):
            zeros += len(rest)
            if rest.strip(b"\0"):
                zeros = 0
                warn_once(
                    self._shard,
                    "data after the end of the archive is not read",
                    "list the archives one by one, or join them with tar --concatenate: cat leaves an end marker in between",
                )
        if zeros > MOST_PADDING:
            raise tarfile.ReadError(ZEROS)


class Archive(Files[bytes]):
    """The files of a shard with their content, in one reading from its start to its end."""

    def _open(self, stream: BinaryIO) -> tarfile.TarFile:
        return tarfile.open(fileobj=_decompressed(stream), mode="r|", tarinfo=_StrictTarInfo)

    def _of(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
        return _content(archive, member)


@dataclass(frozen=True)
class Span:
    """Where the content of a file is in its shard, in bytes."""

    offset: int
    size: int


class ArchiveIndex(Files[Span]):
    """Where the files of a shard are: reads its headers alone, so it must be an uncompressed archive on a disk."""

    def _open(self, stream: BinaryIO) -> tarfile.TarFile:
        self._size = os.fstat(stream.fileno()).st_size
        return tarfile.open(fileobj=_uncompressed(stream), mode="r:", tarinfo=_StrictTarInfo)

    def _of(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> Span:
        if member.sparse is not None:
            raise tarfile.ReadError(f"{printable(member.name)} is a sparse file: write the archive without tar's --sparse")
        if member.offset_data + member.size > self._size:
            raise tarfile.ReadError("unexpected end of data")
        return Span(member.offset_data, member.size)


@contextmanager
def open_plain(shard: str, remote: Remote | None = None) -> Iterator[BinaryIO]:
    """The bytes of a shard as an uncompressed archive. Raises one of BREAKS, here or while it is read."""
    stream = open_shard(shard, remote)
    try:
        yield _decompressed(stream)
    finally:
        stream.close()


def is_compressed(shard: str) -> bool:
    """Whether a local shard begins as a compressed file does. Raises OSError."""
    with open_shard(shard) as stream:
        head = cast(io.BufferedReader, stream).peek(BLOCK)[:BLOCK]
    return head.startswith((*DECOMPRESSORS, ZSTD))


def _in_one_line(problem: BaseException) -> str:
    """What a problem says; of an OSError without the number and the path, since the shard's name stands before it."""
    text = (problem.strerror if isinstance(problem, OSError) else None) or str(problem)
    return " ".join(text.split()) or type(problem).__name__


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    # Directly: around every file tarfile puts three objects that cost as much as a small one.
    if member.sparse is None and member.size >= 0:
        stream = cast(BinaryIO, archive.fileobj)
        stream.seek(member.offset_data)
        content = stream.read(member.size)
        if len(content) < member.size:
            raise tarfile.ReadError("unexpected end of data")
        return content
    file = archive.extractfile(member)
    return file.read() if file is not None else b""


def _decompressed(stream: BinaryIO) -> BinaryIO:
    """The stream, through a decompressor if its first bytes ask for one. Raises ReadError if it is not a tar archive at all."""
    head = cast(io.BufferedReader, stream).peek(BLOCK)[:BLOCK]
    for magic, opener in DECOMPRESSORS.items():
        if head.startswith(magic):
            return opener(stream)
    return _uncompressed(stream)


def _uncompressed(stream: BinaryIO) -> BinaryIO:
    """The stream. Raises ReadError if it is not a tar archive."""
    head = cast(io.BufferedReader, stream).peek(BLOCK)[:BLOCK]
    if head.startswith(ZSTD):
        raise tarfile.ReadError("it is compressed with zstd, which needs a command: 'pipe:zstd -dc PATH'")
    if head and len(head) == BLOCK and head.strip(b"\0"):
        try:
            tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape")
        except tarfile.HeaderError:
            raise tarfile.ReadError(f"it begins with {head[:16]!r}, which is not a tar header") from None
    return stream


class _StrictTarInfo(tarfile.TarInfo):
    """Reports what tarfile takes for an archive's end: a damaged header in the middle, and an end without its marker."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as problem:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"damaged header: {problem}") from None
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if archive.offset == 0:
                raise tarfile.ReadError("it is empty") from None
            raise tarfile.ReadError(NO_END) from None
