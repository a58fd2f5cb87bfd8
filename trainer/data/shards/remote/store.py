"""A file in an object store: s3://, gs://, hf:// and whatever else fsspec has a package for.

The package brings the protocol and the credentials, from the environment or its own files. Here are the limits: each request is
for a part of the file, so that none is kept open while its reader is busy, and a part that fails is asked for again.
"""

import importlib.util
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from queue import SimpleQueue
from typing import Any, BinaryIO, cast

import fsspec

from model.secrets import without_secrets
from trainer.data.shards.names import printable
from trainer.data.shards.remote.persistent import Description, Failure
from trainer.data.shards.remote.web import WORTH_ANOTHER_TRY

FIRST_PART, LARGEST_PART = 1 << 18, 1 << 22
"""Bytes: a look at a few samples fetches little; what is read on is fetched in larger parts, each while the last is in use."""
VERSIONS = ("ETag", "etag", "generation", "blob_id", "md5Hash", "sha256", "LastModified", "updated", "mtime", "created")
"""What the stores call something that changes with a file's content, the best first."""
LONGEST_REASON = 100  # characters of a package's own words
FINAL_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, ImportError)


@dataclass(frozen=True)
class Store:
    """module: what reads it, and pip's name of its package; version: of the package; login: where credentials come from."""

    module: str
    package: str
    login: str


S3 = Store(
    "s3fs",
    "s3fs==2026.9.0",
    "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (for a public bucket FSSPEC_S3_ANON=true)",
)
GOOGLE = Store(
    "gcsfs",
    "gcsfs==2026.10.1",
    "set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login (for a public bucket FSSPEC_GS_TOKEN=anon)",
)
HUGGING_FACE = Store("huggingface_hub", "huggingface_hub==2.4.0", "set HF_TOKEN, or run hf auth login")
STORES = {"s3": S3, "s3a": S3, "gs": GOOGLE, "gcs": GOOGLE, "hf": HUGGING_FACE, "memory": Store("fsspec", "fsspec", "")}
"""By scheme, those that we test. The versions are those of requirements-{s3,gs,hf}.txt."""


def scheme_of(url: str) -> str:
    """`s3` of s3://bucket/name."""
    return url.partition("://")[0].lower()


def missing_package(url: str) -> str | None:
    """What to install before a store's URL can be read, None if it can."""
    scheme = scheme_of(url)
    store = STORES.get(scheme)
    if store is None or importlib.util.find_spec(store.module) is not None:
        return None
    return f"{scheme}:// is read by {store.module}, which is not installed: pip install {store.package}"


@lru_cache
def file_system(scheme: str, timeout: float) -> fsspec.AbstractFileSystem:
    """fsspec's reader of a scheme, one for each process. timeout: seconds without data that end a request. Raises Failure.

    Its event loop, if it has one, begins with the first request: never in the process that loader workers are forked from.
    """
    options: dict[str, Any] = {"use_listings_cache": False}  # a listing is asked for once, and may be old by the second time
    store = STORES[scheme]
    if store is S3:
        # Its own retries would be silent, and multiply with ours.
        options["config_kwargs"] = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"max_attempts": 0}}
    elif store is GOOGLE:
        options["requests_timeout"] = timeout
    try:
        system = fsspec.filesystem(scheme, **options)
    except Exception as problem:
        raise failure_of(problem, scheme) from None
    if store is S3:
        system.retries = 1
    return system


class StoreFile:
    """A file of a store."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._scheme = scheme_of(url)
        self._timeout = timeout
        self._known: Description | None = None
        self._file: BinaryIO | None = None  # just described, not read yet

    def describe(self) -> Description:
        """Its size and version. Raises Failure, also when they are not what they were."""
        system = file_system(self._scheme, self._timeout)
        try:
            self._file = cast(BinaryIO, system.open(self._url, "rb", cache_type="none"))
            info = getattr(self._file, "details", None) or system.info(self._url)
        except Exception as problem:
            raise failure_of(problem, self._scheme) from None
        if info.get("type") == "directory":
            raise Failure("it is a folder, not a shard", again=False)
        if info.get("size") is None:
            raise Failure(f"{self._scheme}:// does not say how large the file is", again=False)
        known = Description(int(info["size"]), next((str(info[name]) for name in VERSIONS if info.get(name)), ""))
        if self._known not in (None, known):
            raise Failure("the file changed while it was read", again=False)
        self._known = known
        return known

    def at(self, start: int) -> "Parts":
        """The file from a byte on. Raises Failure."""
        if self._file is None:  # after a failure: it may have been replaced meanwhile
            self.describe()
        file, self._file = self._file, None
        assert file is not None and self._known is not None and self._known.size is not None
        return Parts(file, self._scheme, start, self._known.size)


class Parts:
    """A file from a byte on, fetched part by part, the next one in a thread while this one is read."""

    def __init__(self, file: BinaryIO, scheme: str, start: int, size: int) -> None:
        self._file = file
        self._scheme = scheme
        self._ranges = _ranges(start, size)
        self._part = memoryview(b"")
        self._coming: SimpleQueue[bytes | Failure] | None = None
        self._fetch_next()

    def read(self, size: int) -> bytes:
        """Some bytes, at most `size`. Raises Failure."""
        if not self._part and self._coming is not None:
            part = self._coming.get()
            if isinstance(part, Failure):
                raise part
            self._part = memoryview(part)
            self._fetch_next()
        content, self._part = self._part[:size], self._part[size:]
        return bytes(content)

    def close(self) -> None:
        """Leave the file; a request that is under way ends by itself."""
        self._ranges, self._coming = iter(()), None

    def _fetch_next(self) -> None:
        wanted = next(self._ranges, None)
        self._coming = None
        if wanted is not None:
            self._coming = SimpleQueue()
            # A daemon: a process that ends does not wait for a server.
            threading.Thread(target=self._fetch, args=(*wanted, self._coming), daemon=True).start()

    def _fetch(self, start: int, end: int, into: "SimpleQueue[bytes | Failure]") -> None:
        try:
            self._file.seek(start)
            part = self._file.read(end - start)
        except Exception as problem:
            into.put(failure_of(problem, self._scheme))
            return
        missing = end - start - len(part)
        into.put(Failure(f"the store sent {missing} bytes too few") if missing else part)


def _ranges(start: int, size: int) -> Iterator[tuple[int, int]]:
    """Parts of a file that grow, as (first byte, byte after the last)."""
    part = FIRST_PART
    while start < size:
        end = min(start + part, size)
        yield start, end
        start, part = end, min(2 * part, LARGEST_PART)


def failure_of(problem: Exception, scheme: str) -> Failure:
    """A package's error in our words: what happened, whether another try may succeed, and what to do if not."""
    if isinstance(problem, Failure):
        return problem
    if isinstance(problem, IndexError) and isinstance(problem.__context__, OSError):
        problem = problem.__context__  # s3fs looks for a number in every OSError, and not every one has one
    status = _status_of(problem)
    words = str(getattr(problem, "strerror", None) or problem)
    told = " ".join(printable(without_secrets(words)).split())[:LONGEST_REASON] or type(problem).__name__
    login = STORES[scheme].login if scheme in STORES else "check the address"
    if isinstance(problem, FileNotFoundError) or status == 404:
        return Failure("no such file or folder (HTTP 404)", again=False)
    if type(problem).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError"):
        return Failure(f"no credentials ({told.rstrip('.')}): {login}", again=False)
    if isinstance(problem, PermissionError) or status in (401, 403) or told.startswith("Forbidden"):
        return Failure(f"access is denied ({told}): {login}", again=False)
    if isinstance(problem, TimeoutError) or "timeout" in type(problem).__name__.lower() or "timed out" in told.lower():
        return Failure(f"no data came in time ({told})")
    if status is not None:
        return Failure(f"HTTP {status} ({told})", status >= 500 or status in WORTH_ANOTHER_TRY)
    return Failure(told, not isinstance(problem, FINAL_ERRORS))


def _status_of(problem: Exception) -> int | None:
    """The HTTP status that an error of a package is about.

    Only an answer's own: what a client calls the end of a connection has a number too, 400.
    """
    found: Any = getattr(problem, "code", None) or getattr(problem, "status", None)
    for error in (problem, problem.__cause__):
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            found = found or response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            found = found or getattr(response, "status_code", None)
    return int(found) if str(found).isdigit() else None
