"""Reading that fails halfway and continues after the bytes that were read, with waits that double from try to try."""

import io
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

FIRST_WAIT = 1.0  # seconds before the second try; doubled before each further one
LONGEST_WAIT = 60.0
SKIPPED_AT_ONCE = 1 << 20

T = TypeVar("T")

logger = logging.getLogger(__name__)


class ReadFailed(OSError):
    """A shard cannot be read to its end, or not at all; the message says why and what was tried."""


class Failure(Exception):
    """A try that failed. `again`: whether another may succeed."""

    def __init__(self, reason: str, again: bool = True) -> None:
        super().__init__(reason)
        self.again = again


class Source(Protocol):
    """One try. `read` gives b"" at the end and raises Failure."""

    def read(self, size: int) -> bytes: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Description:
    """What is known of a file before it is read. size: bytes, None if unknown; version: whatever changes with the content."""

    size: int | None
    version: str = ""


class RemoteFile(Protocol):
    """A file that can be read from any byte on. Both methods raise Failure."""

    def describe(self) -> Description: ...

    def at(self, start: int) -> Source: ...


class Tries:
    """The tries in a row that failed: each but the last is followed by a wait, and a line that says what for."""

    def __init__(self, name: str, most: int) -> None:
        """name: of what is read, for the line."""
        self._name = name
        self._most = most
        self._failed = 0

    def succeeded(self) -> None:
        """There was data: tries are counted anew."""
        self._failed = 0

    def failed(self, failure: Failure, position: int = 0) -> None:
        """Wait before another try, or raise ReadFailed if there is none. position: bytes read so far."""
        self._failed += 1
        where = f" after {position} bytes" if position else ""
        if not failure.again:
            raise ReadFailed(f"{failure}{where}")
        if self._failed >= self._most:
            tried = f" (tried {self._failed} times)" if self._failed > 1 else ""
            raise ReadFailed(f"{failure}{where}{tried}")
        seconds = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self._failed - 1))
        logger.warning(
            "%s: %s%s; waiting %g s for try %d of %d",
            *(self._name, failure, where, seconds, self._failed + 1, self._most),
            extra={"at_once": True},
        )
        time.sleep(seconds)


def persistently(name: str, tries: int, ask: Callable[[], T]) -> T:
    """What `ask` returns, asked again when it raises a Failure that may pass. Raises ReadFailed."""
    waiting = Tries(name, tries)
    while True:
        try:
            return ask()
        except Failure as failure:
            waiting.failed(failure)


class Persistent(io.RawIOBase):
    """A stream over sources that may fail: the next one continues where the last one ended."""

    def __init__(self, name: str, open_at: Callable[[int], Source], tries: int) -> None:
        super().__init__()
        self._open_at = open_at
        self._tries = Tries(name, tries)
        self._position = 0
        self._source: Source | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def continue_at(self, position: int) -> None:
        """Read on from another byte."""
        if position != self._position:
            self._drop()
            self._position = position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as data is available; 0 at the end. Raises ReadFailed."""
        view = memoryview(buffer)
        while True:
            try:
                if self._source is None:
                    self._source = self._open_at(self._position)
                content = self._source.read(len(view))
            except Failure as failure:
                self._drop()
                self._tries.failed(failure, self._position)
                continue
            if content:
                self._tries.succeeded()
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


def pass_over(source: Source, count: int) -> None:
    """Skip the given number of bytes, which are known already. Raises Failure if there are fewer, or it begins after them."""
    if count < 0:
        raise Failure(f"the server left out {-count} bytes", again=False)
    while count:
        content = source.read(min(count, SKIPPED_AT_ONCE))
        if not content:
            raise Failure("it became shorter while it was read", again=False)
        count -= len(content)
