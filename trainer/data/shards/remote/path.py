"""A folder or a small file in a store or on a server, asked as a pathlib.Path is."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import TypeVar

import fsspec

from trainer.data.shards.remote.persistent import ReadFailed, persistently
from trainer.data.shards.remote.secret import hide_secret
from trainer.data.shards.remote.store import failure_of, file_system, missing_package, scheme_of
from trainer.data.shards.remote.web import WebFile

TIMEOUT, TRIES = 30.0, 4
WEB = ("http", "https")
INDEX_PACKAGE = "aiohttp==3.14.5"  # with which fsspec reads a server's list of files
COUNT = "nshards.txt"  # in CLIP_benchmark's layout, which needs no list

T = TypeVar("T")


class RemotePath:
    """A URL like `s3://bucket/folder`. What asks the store is tried again as a shard is, and raises ReadFailed in the end.

    A server of files (http) knows no folders: one is an address that ends in a slash, or has CLIP_benchmark's nshards.txt.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._is_web = scheme_of(url) in WEB

    def __str__(self) -> str:
        return str(self.shard)

    @property
    def shard(self) -> str:
        """As the name of a shard, which may be shown."""
        return hide_secret(self._url.rstrip("/"))

    @property
    def parts(self) -> tuple[str, ...]:
        """The scheme, then the names."""
        scheme, _, rest = str(self).partition("://")
        return (f"{scheme}://", *filter(None, rest.partition("?")[0].split("/")))

    @property
    def name(self) -> str:
        """The last of the parts."""
        return self.parts[-1]

    def __truediv__(self, name: str) -> "RemotePath":
        start, mark, query = self._url.partition("?") if self._is_web else (self._url, "", "")
        return RemotePath(f"{start.rstrip('/')}/{name}{mark}{query}")

    def __lt__(self, other: "RemotePath") -> bool:
        return str(self) < str(other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def resolve(self) -> "RemotePath":
        """Itself: there are no links."""
        return self

    def is_file(self) -> bool:
        """Whether it can be read."""
        if not self._is_web:
            return self._ask(lambda system: bool(system.isfile(self._url)))
        try:
            persistently(str(self), TRIES, WebFile(self._url, TIMEOUT).describe)
        except ReadFailed as problem:
            if str(problem).startswith("HTTP 4"):
                return False
            raise
        return True

    def is_dir(self) -> bool:
        """Whether there is something in it."""
        if self._is_web:
            return self._url.endswith("/") or (self / COUNT).is_file()
        return self._ask(lambda system: bool(system.isdir(self._url)))

    def iterdir(self) -> Iterator["RemotePath"]:
        """What is in it, sorted."""
        if self._is_web and importlib.util.find_spec("aiohttp") is None:
            raise self._failed(
                f"to list the shards of a server's folder, pip install {INDEX_PACKAGE}; or name them, {self}/{{00000..00123}}.tar"
            )
        return iter(self._named(self._ask(lambda system: _full_names(system, system.ls(self._url, detail=False)))))

    def glob(self) -> list["RemotePath"]:
        """What matches the wildcards in it, sorted."""
        return self._named(self._ask(lambda system: _full_names(system, system.glob(self._url))))

    def read_bytes(self) -> bytes:
        """Its content."""
        if not self._is_web:
            return self._ask(lambda system: bytes(system.cat_file(self._url)))

        def read() -> bytes:
            with contextlib.closing(WebFile(self._url, TIMEOUT).at(0)) as answer:
                return b"".join(iter(lambda: answer.read(1 << 20), b""))

        return self._persistently(read)

    def read_text(self) -> str:
        """Its content as text."""
        return self.read_bytes().decode()

    def _named(self, found: list[str]) -> list["RemotePath"]:
        scheme = self.parts[0]  # as the user wrote it
        names = {scheme + name.partition("://")[2].strip("/") for name in found}
        return [RemotePath(name) for name in sorted(names) if name != self._url.rstrip("/")]

    def _ask(self, question: Callable[[fsspec.AbstractFileSystem], T]) -> T:
        scheme = scheme_of(self._url)
        if advice := missing_package(self._url):
            raise self._failed(advice)

        def ask() -> T:
            system = fsspec.filesystem(scheme) if self._is_web else file_system(scheme, TIMEOUT)
            try:
                return question(system)
            except Exception as problem:
                raise failure_of(problem, scheme) from None

        return self._persistently(ask)

    def _persistently(self, ask: Callable[[], T]) -> T:
        try:
            return persistently(str(self), TRIES, ask)
        except ReadFailed as problem:
            raise self._failed(str(problem)) from None

    def _failed(self, told: str) -> ReadFailed:
        problem = ReadFailed(told)
        problem.filename = str(self)
        return problem


def _full_names(system: fsspec.AbstractFileSystem, names: list[str]) -> list[str]:
    return [system.unstrip_protocol(name) for name in names]
