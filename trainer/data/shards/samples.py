"""The samples of a shard, in order: files with the same key, whatever the archive looks like."""

import logging
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from trainer.data.shards.archive import Archive, Files, warn_once
from trainer.data.shards.opening import Remote

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """Files with the same key. Where a shard ends early, there is a sample without files whose `broken` says why."""

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


def read_samples(shard: str, remote: Remote | None = None) -> Generator[Sample, None, None]:
    """The samples of a path, `pipe:` command or URL in their order, one at a time.

    Never raises for a broken shard: the complete samples before the break come first, then one with `broken` set, and the
    break is logged once. `remote`: limits for a remote shard.
    """
    archive = Archive(shard, remote)
    empty = True
    try:
        for key, files in whole_samples(shard, archive):
            empty = False
            yield Sample(shard, key, files)
    finally:
        archive.close()
    if archive.problem:
        warn_once(shard, "the shard ends early", archive.problem)
        yield Sample(shard, "(break)", broken=archive.problem)
    elif empty:
        warn_once(shard, "it holds no samples", archive.contents())


def whole_samples(shard: str, archive: Files[T]) -> Iterator[tuple[str, dict[str, T]]]:
    """The keys of the complete samples of a shard, each with what `archive` gives of its files, by extension."""
    extensions: set[str] = set()
    for key, files in _grouped(shard, archive):
        # The last sample before a break counts as complete only if it has every file that its predecessor has.
        if archive.problem and not (extensions and extensions.issubset(files)):
            break
        extensions = set(files)
        yield key, files


@dataclass
class _Group(Generic[T]):
    """Adjacent files with the same key. Their names: `key.extension`, split at the first dot after the last slash.

    A name with more dots has two readings: `photo.1.jpg` is `1.jpg` of `photo`, as webdataset has it, or `jpg` of `photo.1`.
    `stem` is `photo.1` while the second reading fits every file so far, else None.
    """

    key: str
    stem: str | None
    files: dict[str, T] = field(default_factory=dict)

    def is_followed_by(self, key: str, stem: str | None) -> bool:
        """Whether a file of this key and stem belongs to another sample."""
        if key != self.key:
            return True
        # photo.1.jpg photo.1.txt photo.2.jpg: each pair is a sample, or `photo` would be the whole shard.
        return self._has_dotted_key() and stem is not None and stem != self.stem

    def _has_dotted_key(self) -> bool:
        return self.stem is not None and len(self.files) > 1

    def named(self, shard: str) -> tuple[str, dict[str, T]]:
        """Key and files of the sample, with the reading of its names that fits."""
        if self._has_dotted_key():
            return str(self.stem), {extension.rpartition(".")[2]: file for extension, file in self.files.items()}
        if self.files and all("." in extension for extension in self.files):
            first = next(iter(self.files))
            warn_once(
                shard,
                "dots in the names",
                f"{self.key}.{first} is read as the file '{first}' of sample '{self.key}', since the first dot ends the key: "
                "use names with one dot",
            )
        return self.key, self.files


def _grouped(shard: str, files: Iterator[tuple[str, T]]) -> Iterator[tuple[str, dict[str, T]]]:
    """The samples of files in archive order, grouped as in webdataset except for keys with dots."""
    group: _Group[T] | None = None
    seen: dict[str, frozenset[str]] = {}
    for name, content in files:
        folder, slash, base = name.rpartition("/")
        start, dot, extension = base.partition(".")
        if not start or not dot or not extension:
            continue  # a README or LICENSE
        key, extension = folder + slash + start, extension.lower()
        stem = folder + slash + base.rpartition(".")[0] if "." in extension else None
        if group is None or group.is_followed_by(key, stem):
            if group is not None:
                yield _told(shard, *group.named(shard), seen)
            group = _Group(key, stem)
        if extension in group.files:
            warn_once(shard, "a file is ignored", f"{name} appears twice in one sample")
            continue
        group.files[extension] = content
        group.stem = group.stem if stem == group.stem else None
    if group is not None:
        yield _told(shard, *group.named(shard), seen)


def _told(shard: str, key: str, files: dict[str, T], seen: dict[str, frozenset[str]]) -> tuple[str, dict[str, T]]:
    """Key and files of a sample; logs if its key has appeared before."""
    before, extensions = seen.get(key), frozenset(files)
    if before is not None and before.isdisjoint(extensions):
        apart = " ".join(f".{extension}" for extension in sorted(before | extensions))
        warn_once(
            shard,
            "files of one sample are not next to each other",
            f"{key} ({apart}): they are read as separate samples; write the archive sorted by name (tar --sort=name)",
        )
    elif before is not None:
        warn_once(shard, "a key appears more than once", f"{key}: each is read as a separate sample")
    seen[key] = extensions if before is None else before | extensions
    return key, files
