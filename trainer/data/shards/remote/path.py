"""A folder or a small file in a store or on a server, asked as a pathlib.Path is."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import fsspec

from model.paths import expand, user_path
from trainer.data.shards.remote.persistent import Failure, ReadFailed, persistently
from trainer.data.shards.remote.secret import address_of, hide_secret
from trainer.data.shards.remote.store import STORES, failure_of, file_system, missing_package, scheme_of
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
        self._scheme = scheme_of(url)
        self._is_web = self._scheme in WEB

    def __str__(self) -> str:
        return str(self.shard)

    @property
    def shard(self) -> str:
        """As the name of a shard, which may be shown."""
        return hide_secret(self._url.rstrip("/"))

    @property
    def folder(self) -> str:
        """As the name of a folder with shards, which may be shown."""
        start, mark, query = self._url.partition("?") if self._is_web else (self._url, "", "")
        return hide_secret(f"{start.rstrip('/')}/{mark}{query}")

    @property
    def parent(self) -> "RemotePath":
        """The folder that it is in."""
        return RemotePath(self._url.partition("?")[0].rstrip("/").rpartition("/")[0])

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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def resolve(self) -> "RemotePath":
        """Itself: there are no links."""
        return self

    def is_file(self) -> bool:
        """Whether it can be read. Many a store denies access to what is not there."""

        def ask() -> bool:
            try:
                if self._is_web:
                    WebFile(self._url, TIMEOUT).describe()
                    return True
                return bool(self._system().info(self._url)["type"] == "file")
            except Exception as problem:
                failure = failure_of(problem, self._scheme)
                if failure.again:
                    raise failure from None
                return False

        return self._persistently(ask)

    def is_dir(self) -> bool:
        """Whether there is something in it."""
        if self._is_web:
            return self._url.endswith("/") or any((self / name).is_file() for name in (COUNT, f"test/{COUNT}"))

        def ask(system: fsspec.AbstractFileSystem) -> bool:
            try:
                return bool(system.info(self._url)["type"] == "directory")
            except FileNotFoundError:
                return False

        return self._ask(ask)

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
        def ask() -> T:
            try:
                return question(self._system())
            except Exception as problem:
                raise failure_of(problem, self._scheme) from None

        return self._persistently(ask)

    def _system(self) -> fsspec.AbstractFileSystem:
        if advice := missing_package(self._url):
            raise Failure(advice, again=False)
        return fsspec.filesystem(self._scheme) if self._is_web else file_system(self._scheme, TIMEOUT)

    def _persistently(self, ask: Callable[[], T]) -> T:
        try:
            return persistently(str(self), TRIES, ask)
        except ReadFailed as problem:
            raise self._failed(str(problem)) from None

    def _failed(self, told: str) -> ReadFailed:
        return ReadFailed(f"{self}: {told}")


def _full_names(system: fsspec.AbstractFileSystem, names: list[str]) -> list[str]:
    return [system.unstrip_protocol(name) for name in names]


Place = Path | RemotePath
"""Where a data set is; both are asked in the same way."""


def is_listed(text: str) -> bool:
    """Whether a text is the URL of a store or server, which knows folders."""
    return "://" in text and scheme_of(text) in (*STORES, *WEB)


def place_of(text: str | Path, what: str) -> Place:
    """The folder or file that a user means (model.paths), also in a store or on a server. Raises UserError for any other URL."""
    written = address_of(text) if isinstance(text, str) else str(text)
    expanded = expand(written, what)
    return RemotePath(expanded) if is_listed(expanded) else user_path(written, what)


def named(place: Place) -> str:
    """A folder as `place_of` reads it again, and as it may be shown."""
    return place.folder if isinstance(place, RemotePath) else str(place)
