"""How far the writing is: a bar on a terminal, now and then a line elsewhere."""

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.reporting.bar import duration, print_line, terminal
from trainer.shards.unfit import Bad
from trainer.shards.work import Outcome

LINES_SECONDS = 30.0
"""Between lines where there is no terminal."""
LOOK_EVERY = 1000
"""Files are found much faster than images are converted: the clock is not read for each."""


class Search:
    """Told of everything that is found, it says now and then how much there is so far."""

    def __init__(self) -> None:
        self._found = 0
        self._told = time.monotonic()

    def __call__(self) -> None:
        """One more."""
        self._found += 1
        if self._found % LOOK_EVERY == 0 and (now := time.monotonic()) - self._told >= LINES_SECONDS:
            self._told = now
            print_line(f"{self._found:,} found so far")


class Bar:
    """Told of every sample, it shows how many of the `total` there were; `done` of them before it."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done, self._before = total, done, done
        self._bad = 0
        self._start = self._told = time.monotonic()
        self._live: Progress | None = None
        if (console := terminal()) is not None:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn())
            self._live = Progress(*columns, console=console, refresh_per_second=4)
            self._task = self._live.add_task("", total=total, completed=done, told="")

    def __enter__(self) -> "Bar":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, outcome: Outcome) -> None:
        """One more sample."""
        self._done += 1
        self._bad += isinstance(outcome, Bad)
        now = time.monotonic()
        if self._live is not None:
            self._live.update(self._task, completed=self._done, told=", ".join(self._facts(now)))
        elif now - self._told >= LINES_SECONDS:
            self._told = now
            left = duration((self._total - self._done) / self._speed(now))
            print_line(f"{self._done:,} of {self._total:,} samples, {', '.join(self._facts(now))}, {left} left")

    def _speed(self, now: float) -> float:
        return (self._done - self._before) / max(now - self._start, 1e-9)

    def _facts(self, now: float) -> list[str]:
        return [f"{self._speed(now):.0f} per second", *([f"{self._bad:,} left out"] if self._bad else [])]
