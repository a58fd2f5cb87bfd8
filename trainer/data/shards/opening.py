"""A shard as one stream of bytes: a file, a command's output, or a URL, whose file may be kept on the node's own disk.

Remote reads fail halfway, stall, and end early. Each try continues after the bytes that were read: a server is asked for the
rest; a command is run again, and the part of its output that is already known is skipped. Waits double from try to try.
"""

import io
import re
import urllib.parse
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from webdataset.gopen import gopen_schemes, rewrite_url

from trainer.config.schema import DataConfig
from trainer.data.shards.remote.cache import GIB, ShardCache
from trainer.data.shards.remote.command import TRIES as COMMAND_TRIES
from trainer.data.shards.remote.command import Output, ask_webdataset, run_command
from trainer.data.shards.remote.persistent import Persistent, ReadFailed, RemoteFile, persistently
from trainer.data.shards.remote.secret import address_of
from trainer.data.shards.remote.store import STORES, StoreFile, missing_package, scheme_of
from trainer.data.shards.remote.web import WebFile
from trainer.errors import UserError, reason


@dataclass(frozen=True)
class Remote:
    """Limits of a remote read, and what keeps it. timeout: seconds without data that end a try; tries: in a row without data."""

    timeout: float = 60.0
    tries: int = 6
    cache: ShardCache | None = None

    @classmethod
    def of(cls, data: DataConfig) -> "Remote":
        """What a configuration says."""
        cache = ShardCache(data.shard_cache, round(data.shard_cache_gib * GIB)) if data.shard_cache else None
        return cls(data.remote_timeout, data.remote_tries, cache)


def check_shard_cache(data: DataConfig) -> None:
    """Raise UserError when data.shard_cache cannot be used on this machine. Where it fails later, shards are streamed."""
    cache = Remote.of(data).cache
    try:
        if cache is not None:
            cache.check()
    except OSError as problem:
        remedy = "give a folder on the node's own disk, or null to stream shards"
        raise UserError(f"data.shard_cache={data.shard_cache}: {reason(problem)}: {remedy}") from None


def is_remote(shard: str) -> bool:
    """Whether a shard is a command or a URL, not a file."""
    return re.match(r"pipe:|[a-zA-Z][a-zA-Z0-9+.-]*://", shard) is not None


def unreadable_scheme(shard: str) -> str | None:
    """What to do about a URL that nothing here can read, or None."""
    scheme = shard.partition(":")[0].lower()
    if not is_remote(shard) or scheme in ("file", "pipe"):
        return None
    if scheme in STORES:
        return missing_package(shard)
    if scheme in gopen_schemes:
        return None
    command = {"az": "az storage blob download --file /dev/stdout --blob-url"}.get(scheme, "COMMAND")
    return f"{scheme}:// cannot be read directly: give a command that writes the shard, such as 'pipe:{command} {shard}'"


def open_shard(shard: str, remote: Remote | None = None) -> BinaryIO:
    """The bytes of a path, `pipe:COMMAND` or URL. Raises OSError here or while it is read, ReadFailed if it is remote."""
    if not is_remote(shard):
        return Path(shard).open("rb")
    remote = remote or Remote()
    url = rewrite_url(address_of(shard))
    scheme = url.partition(":")[0].lower()
    if advice := unreadable_scheme(url):
        raise ReadFailed(advice)
    if scheme == "file":
        return Path(urllib.request.url2pathname(urllib.parse.urlparse(url).path)).open("rb")
    if file := file_at(url, remote.timeout):
        return _buffered(_open_file(shard, file, remote))
    start = partial(run_command, url.removeprefix("pipe:")) if scheme == "pipe" else partial(ask_webdataset, url)
    return _buffered(Persistent(shard, partial(Output, start, remote.timeout), min(remote.tries, COMMAND_TRIES)))


def file_at(url: str, timeout: float) -> RemoteFile | None:
    """What can be read from any byte on; None if the URL is of another kind."""
    scheme = scheme_of(url)
    if scheme in ("http", "https"):
        return WebFile(url, timeout)
    return StoreFile(url, timeout) if scheme in STORES else None


def _open_file(shard: str, file: RemoteFile, remote: Remote) -> io.RawIOBase:
    stream = Persistent(shard, file.at, remote.tries)
    if remote.cache is None:
        return stream
    description = persistently(shard, remote.tries, file.describe)
    return remote.cache.open(shard, description, stream) or stream


def _buffered(stream: io.RawIOBase) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(stream, buffer_size=1 << 18))
