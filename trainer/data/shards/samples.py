"""The samples of a shard as they lie in it: a stream of names and bytes that survives broken archives."""

import logging
import tarfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from webdataset.gopen import Pipe, gopen
from webdataset.tariterators import group_by_keys

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """Files of one key. Where a shard breaks off stands one sample without files, whose `broken` says why."""

    shard: str
    key: str
    files: dict[str, bytes] = field(default_factory=dict)  # by extension in lower case, without the dot
    broken: str = ""

    @property
    def id(self) -> str:
        """`shard/key`."""
        return f"{self.shard}/{self.key}"


class Unusable(Exception):
    """A sample that cannot be used; the message says why."""


_warned: set[tuple[str, str]] = set()


def warn_once(shard: str, kind: str, detail: object) -> None:
    """Log the first problem of a kind that a shard has in this process; a shard is read again every epoch."""
    if (shard, kind) not in _warned:
        _warned.add((shard, kind))
        logger.warning("%s: %s: %s", shard, kind, detail)


def read_samples(shard: str) -> Generator[Sample, None, None]:
    """The samples of a path, `pipe:` command or URL in their order, one at a time.

    Never raises for a broken shard: the whole samples before the break come first, then one with `broken` set, and the
    break is logged once.
    """
    files = _FilesUntilBreak(shard)
    extensions: set[str] = set()
    try:
        for grouped in group_by_keys(files, handler=lambda problem: _skip_file(shard, problem)):
            contents = {name: value for name, value in grouped.items() if not name.startswith("__")}
            # The last sample before a break is whole only when it has every file that its predecessor has.
            if files.problem and not extensions.issubset(contents):
                break
            extensions = set(contents)
            yield Sample(shard, grouped["__key__"], contents)
    finally:
        files.close()
    if files.problem:
        warn_once(shard, "the shard breaks off", files.problem)
        yield Sample(shard, "(break)", broken=files.problem)


def _skip_file(shard: str, problem: Exception) -> bool:
    warn_once(shard, "a file is ignored", problem.args[0] if problem.args else problem)
    return True


class _FilesUntilBreak:
    """Iterates over the files of a tar archive in webdataset's form; a break ends it, and `problem` says why."""

    def __init__(self, shard: str) -> None:
        self.problem = ""
        self._shard = shard
        self._stream: Any = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            self._stream = gopen(self._shard)
            # A command's own pipe: webdataset's wrapper fails as soon as the command has, before its output is read.
            content_stream = self._stream.stream if isinstance(self._stream, Pipe) else self._stream
            with tarfile.open(fileobj=content_stream, mode="r|*", tarinfo=_StrictTarInfo) as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isreg() else None
                    if content is not None:
                        yield {"fname": member.name, "data": content.read(), "__url__": self._shard}
                    archive.members = []  # type: ignore[attr-defined]  # or it keeps every header of the shard
            # A command that is cut off while it writes the padding behind the archive would report a failure.
            while content_stream.read(1 << 20):
                pass
            self._stream.close()
        # From a truncated or foreign archive, a lost mount, a failing command; a ValueError for an unknown scheme.
        except (tarfile.TarError, OSError, EOFError, ValueError) as problem:
            self.problem = str(problem) or type(problem).__name__

    def close(self) -> None:
        """Let go of the file or command, also in the middle, where a command ends with a failure that means nothing."""
        try:
            if self._stream is not None:
                self._stream.close()
        except OSError:
            pass


class _StrictTarInfo(tarfile.TarInfo):
    """Reports a damaged header in the middle of an archive, which tarfile takes for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_StrictTarInfo":
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as problem:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"damaged header: {problem}") from None
