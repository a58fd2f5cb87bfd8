"""A shard as one stream of bytes: a file, a command's output or a URL. Remote reads are retried, a limited number of times.

Remote reads fail halfway, stall, and end early. Each try continues after the bytes that were read: a server is asked for the
rest; a command is run again, and the part of its output that is already known is skipped. Waits double from try to try.
"""

import contextlib
import http.client
import io
import logging
import os
import re
import select
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from webdataset.gopen import gopen, gopen_schemes, rewrite_url

from trainer.config.schema import DataConfig
from trainer.data.shards.names import printable

FIRST_WAIT = 1.0  # seconds before the second try; doubled before each further one
LONGEST_WAIT = 60.0
COMMAND_TRIES = 3  # a command may have its own retries
WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)  # HTTP status codes
URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"  # have a meaning in a URL, or are quoted already
SKIPPED_AT_ONCE = 1 << 20
LAST_WORDS = 4096  # bytes of a command's standard error that are looked at

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """Limits of a remote read. timeout: seconds without data that end a try; tries: in a row without data."""

    timeout: float = 60.0
    tries: int = 6

    @classmethod
    def of(cls, data: DataConfig) -> "Remote":
        """What a configuration says."""
        return cls(data.remote_timeout, data.remote_tries)


class ReadFailed(OSError):
    """A shard cannot be read to its end, or not at all; the message says why and what was tried."""


class _Failure(Exception):
    """A try that failed. `again`: whether another may succeed."""

    def __init__(self, reason: str, again: bool = True) -> None:
        super().__init__(reason)
        self.again = again


class _Source(Protocol):
    """One try. `read` gives b"" at the end and raises _Failure."""

    def read(self, size: int) -> bytes: ...

    def close(self) -> None: ...


def is_remote(shard: str) -> bool:
    """Whether a shard is a command or a URL, not a file."""
    return re.match(r"pipe:|[a-zA-Z][a-zA-Z0-9+.-]*://", shard) is not None


def unreadable_scheme(shard: str) -> str | None:
    """What to do about a URL that nothing here can read, or None."""
    scheme = shard.partition(":")[0].lower()
    if not is_remote(shard) or scheme in gopen_schemes or scheme in ("file", "pipe"):
        return None
    command = {"s3": "aws s3 cp", "az": "az storage blob download --file /dev/stdout --blob-url"}.get(scheme, "COMMAND")
    rest = " -" if scheme == "s3" else ""
    return f"{scheme}:// cannot be read directly: give a command that writes the shard, such as 'pipe:{command} {shard}{rest}'"


def open_shard(shard: str, remote: Remote | None = None) -> BinaryIO:
    """The bytes of a path, `pipe:COMMAND` or URL. Raises OSError here or while it is read, ReadFailed if it is remote."""
    if not is_remote(shard):
        return Path(shard).open("rb")
    remote = remote or Remote()
    url = rewrite_url(shard)
    scheme = url.partition(":")[0].lower()
    if advice := unreadable_scheme(url):
        raise ReadFailed(advice)
    if scheme == "file":
        return Path(urllib.request.url2pathname(urllib.parse.urlparse(url).path)).open("rb")
    if scheme in ("http", "https"):
        web = _Web(urllib.parse.quote(url, safe=URL_CHARACTERS), remote.timeout)
        return _buffered(_Persistent(shard, web.at, remote.tries))
    start = partial(_run, url.removeprefix("pipe:")) if scheme == "pipe" else partial(_ask_webdataset, url)
    return _buffered(_Persistent(shard, partial(_Output, start, remote.timeout), min(remote.tries, COMMAND_TRIES)))


def _buffered(stream: io.RawIOBase) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(stream, buffer_size=1 << 18))


class _Persistent(io.RawIOBase):
    """A stream over sources that may fail: the next one continues where the last one ended."""

    def __init__(self, shard: str, open_at: Callable[[int], _Source], tries: int) -> None:
        super().__init__()
        self._shard = shard
        self._open_at = open_at
        self._tries = tries
        self._failed = 0  # tries in a row without data
        self._position = 0
        self._source: _Source | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as data is available; 0 at the end. Raises ReadFailed."""
        view = memoryview(buffer)
        while True:
            try:
                if self._source is None:
                    self._source = self._open_at(self._position)
                content = self._source.read(len(view))
            except _Failure as failure:
                self._drop()
                self._wait(failure)
                continue
            if content:
                self._failed = 0
            self._position += len(content)
            view[: len(content)] = content
            return len(content)

    def close(self) -> None:
        """Close the source."""
        self._drop()
        super().close()

    def _drop(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def _wait(self, failure: _Failure) -> None:
        self._failed += 1
        where = f" after {self._position} bytes" if self._position else ""
        if not failure.again:
            raise ReadFailed(f"{failure}{where}")
        if self._failed >= self._tries:
            tried = f" (tried {self._failed} times)" if self._failed > 1 else ""
            raise ReadFailed(f"{failure}{where}{tried}")
        seconds = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self._failed - 1))
        logger.warning(
            "%s: %s%s; waiting %g s for try %d of %d",
            self._shard,
            failure,
            where,
            seconds,
            self._failed + 1,
            self._tries,
            extra={"at_once": True},
        )
        time.sleep(seconds)


class _Web:
    """A URL whose rest can be asked for, as long as it is the same file."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._version: str | None = None  # ETag or date of what was read so far

    def at(self, start: int) -> "_Answer":
        """The file from a byte on. Raises _Failure."""
        headers = {"User-Agent": "limoe-trainer", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            answer = urllib.request.urlopen(urllib.request.Request(self._url, headers=headers), timeout=self._timeout)
        except urllib.error.HTTPError as problem:
            problem.close()
            if problem.code == 416 and start:
                raise _Failure("the file became shorter while it was read", again=False) from None
            # Of a redirection that leads nowhere, urllib's reason has several lines.
            told = " ".join(str(problem.reason).split())
            raise _Failure(f"HTTP {problem.code} {told}", problem.code in WORTH_ANOTHER_TRY) from None
        except (OSError, http.client.HTTPException, ValueError) as problem:
            again = not isinstance(problem, (ValueError, http.client.InvalidURL))
            raise _Failure(_network_reason(problem, self._timeout), again) from None
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if start and self._version is not None and version != self._version:
            answer.close()
            raise _Failure("the file changed while it was read", again=False)
        self._version = version
        source = _Answer(answer, self._timeout)
        try:
            _pass_over(source, start - _first_byte(answer, start))
        except _Failure:
            source.close()
            raise
        return source


def _first_byte(answer: http.client.HTTPResponse, asked: int) -> int:
    """Where in the file an answer begins: not every server that is asked for a part sends just that."""
    if answer.status != HTTPStatus.PARTIAL_CONTENT:
        return 0
    told = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(told[1]) if told else asked


class _Answer:
    """What a server sends. The end counts only once everything it announced has arrived."""

    def __init__(self, answer: http.client.HTTPResponse, timeout: float) -> None:
        self._answer = answer
        self._timeout = timeout
        length = answer.headers.get("Content-Length", "")
        self._left = int(length) if length.isdigit() else None

    def read(self, size: int) -> bytes:
        """Some bytes, at most `size`."""
        try:
            content = self._answer.read1(size)
        except (OSError, http.client.HTTPException, ValueError) as problem:
            raise _Failure(_network_reason(problem, self._timeout)) from None
        if self._left is not None:
            self._left -= len(content)
            if not content and size and self._left > 0:
                raise _Failure(f"the connection ended {self._left} bytes too early")
        return content

    def close(self) -> None:
        """End the connection."""
        self._answer.close()


class _Output:
    """What a process writes, from a byte on. Its end counts only if it exits with 0."""

    def __init__(self, run: Callable[[BinaryIO], subprocess.Popen[bytes]], timeout: float, start: int) -> None:
        """`run` starts the process, with a file for its standard error."""
        self._timeout = timeout
        # A file, not a pipe: a command that prints a lot must not wait for a reader.
        self._words = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - closed by close()
        try:
            self._process = run(self._words)
        except OSError as problem:
            self._words.close()
            raise _Failure(f"{problem.filename}: {problem.strerror}", again=False) from None
        try:
            _pass_over(self, start)
        except _Failure:
            self.close()
            raise

    def read(self, size: int) -> bytes:
        """Some bytes, at most `size`."""
        output = self._process.stdout
        assert output is not None
        if not select.select([output], [], [], self._timeout)[0]:
            raise _Failure(f"the command wrote nothing for {self._timeout:g} s")
        content = os.read(output.fileno(), size)
        if content or not size:
            return content
        try:
            code = self._process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            raise _Failure(f"the command closed its output but did not end within {self._timeout:g} s") from None
        if code:
            # A shell's exit codes for a command that does not exist or may not be run: trying again will not help.
            raise _Failure(f"the command ended with exit code {code}{self._last_words()}", code not in (126, 127))
        return b""

    def close(self) -> None:
        """End the command and everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(self._process.pid) == self._process.pid:
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._words.close()

    def _last_words(self) -> str:
        size = self._words.seek(0, os.SEEK_END)
        self._words.seek(max(0, size - LAST_WORDS))
        lines = [line.strip() for line in self._words.read().decode(errors="replace").splitlines()]
        said = [line for line in lines if line]
        return f": {said[-1][:300]}" if said else ""


def _run(command: str, words: BinaryIO) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=words,
        start_new_session=True,  # so that a whole pipeline can be ended
    )


def _ask_webdataset(url: str, words: BinaryIO) -> subprocess.Popen[bytes]:
    """The program with which webdataset reads such a URL (gs:// with gsutil, hf:// with curl, …)."""
    try:
        process: subprocess.Popen[bytes] = gopen(url).proc
    except ImportError as problem:
        raise _Failure(str(problem), again=False) from None
    return process


def _pass_over(source: _Source, count: int) -> None:
    """Skip the given number of bytes, which are known already. Raises _Failure if there are fewer, or it begins after them."""
    if count < 0:
        raise _Failure(f"the server left out {-count} bytes", again=False)
    while count:
        content = source.read(min(count, SKIPPED_AT_ONCE))
        if not content:
            raise _Failure("it became shorter while it was read", again=False)
        count -= len(content)


def _network_reason(problem: BaseException, timeout: float) -> str:
    reason = getattr(problem, "reason", problem)
    if isinstance(reason, TimeoutError):
        return f"no data came for {timeout:g} s"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return " ".join(printable(str(reason)).split()) or type(reason).__name__
