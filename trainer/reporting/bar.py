"""How far a run is: one live bar on a terminal, now and then a plain line elsewhere."""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainer.output import reader_may_leave

_log = logging.getLogger(__name__)
_REFRESHES_PER_SECOND = 4
_MIN_BAR, _MAX_BAR = 10, 40  # characters
_LOW_SUCCESS = 0.5  # below, a modality loses most of its tokens, which the bar shows in yellow


class Progress:
    """How far the run is, for people watching it. Rank 0 has one; enter it before the first step.

    with Progress.start(total_steps=1000, first_step=0, mode=config.log.progress) as progress:
        progress.update(step, loss=3.2, success={"image": 0.98, "text": 0.95}, pairs_per_second=1234.0, report=step % 10 == 0)
    """

    def __init__(self, total_steps: int, first_step: int, mode: str) -> None:
        """Use `start`, which decides what "auto" means."""
        self.mode = mode
        self._status = _Status(total_steps, first_step)
        self._live: Live | None = None

    @classmethod
    def start(cls, total_steps: int, first_step: int, mode: str) -> "Progress":
        """For a run to `total_steps` that has done `first_step` of them (0, or the step it resumes from).

        mode: "bar", "lines" (printed when `update` is told to report), "none", or "auto": a bar when stderr or stdout is a
        terminal, else lines.
        """
        if mode == "auto":
            mode = "bar" if terminal() else "lines"
        return cls(total_steps, first_step, mode)

    def __enter__(self) -> "Progress":
        if self.mode == "bar":
            self._live = Live(
                get_renderable=lambda: self._status,
                console=terminal() or Console(stderr=True, force_terminal=True),
                refresh_per_second=_REFRESHES_PER_SECOND,
                # What others print appears above the bar; but what goes into a file stays there.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        success: Mapping[str, float] | None = None,
        pairs_per_second: float | None = None,
        report: bool = False,
    ) -> None:
        """Report that `step` steps are done; cheap enough for every step.

        loss: of the step; success: the routed share of the tokens, 0 to 1, by modality (empty for a dense model). None
        keeps the last value. report: write a line to the log, and print it in mode "lines".
        """
        self._status.update(step, loss, success, pairs_per_second)
        if not report:
            return
        line = self._status.line()
        _log.info("%s", line)
        if self.mode == "lines":
            print_line(line)

    def message(self, text: str) -> None:
        """Print text above the bar, or as a line; in mode "none", only write it to the log."""
        _log.info("%s", text)
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self.mode != "none":
            print_line(text)


@dataclass
class _Status:
    """What is known of the run; renders itself as one line of whatever width there is."""

    total: int
    step: int
    loss: float | None = None
    success: dict[str, float] = field(default_factory=dict)
    pairs_per_second: float | None = None
    clock: Callable[[], float] = time.monotonic
    # The first update starts the clock: the step before it compiled kernels and filled queues, so it is not typical.
    first: tuple[int, float] | None = None  # step, seconds
    last: float = 0.0  # seconds

    def update(self, step: int, loss: float | None, success: Mapping[str, float] | None, pairs_per_second: float | None) -> None:
        self.step, self.last = step, self.clock()
        if self.first is None:
            self.first = (step, self.last)
        if loss is not None:
            self.loss = loss
        if success is not None:
            self.success = dict(success)
        if pairs_per_second is not None:
            self.pairs_per_second = pairs_per_second

    def seconds_left(self) -> float | None:
        """From the mean pace so far, including evaluations and checkpoints, since there will be more of them."""
        if self.step >= self.total:
            return 0.0
        if self.first is None or self.step <= self.first[0]:
            return None
        pace = (self.last - self.first[1]) / (self.step - self.first[0])
        return max(0.0, pace * (self.total - self.step) - (self.clock() - self.last))

    def line(self) -> str:
        """`step 120/1000  loss 3.214  success image 0.98 text 0.95  1234 pairs/s  2:31 left`"""
        parts = [Text(f"step {self.step}/{self.total}"), self._loss(), self._success("success "), self._speed(), self._left()]
        return "  ".join(part.plain for part in parts if part)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._fit(options.max_width)

    def _fit(self, width: int) -> RenderableType:
        """The fullest layout that fits; the step, the loss and the time left are the last to go."""
        steps = Text(f"{self.step:>{len(str(self.total))}}/{self.total}", style="bold")
        loss, left, speed = self._loss(), self._left(), self._speed()
        full, short = self._success("success "), self._success("")
        layouts: list[tuple[bool, list[Text]]] = [
            (True, [loss, full, speed, left]),
            (True, [loss, short, speed, left]),
            (False, [loss, short, speed, left]),
            (False, [loss, short, left]),
            (False, [loss, left]),
            (False, [loss]),
        ]
        for with_bar, parts in layouts:
            texts = [steps, *(part for part in parts if part)]
            spare = width - sum(cell_len(text.plain) + 2 for text in texts) + (0 if with_bar else 2)
            if spare >= (_MIN_BAR if with_bar else 0):
                break
        if with_bar:
            done = ProgressBar(self.total, self.step, width=min(spare, _MAX_BAR), complete_style="cyan", finished_style="green")
            return _row([steps, done, *texts[1:]])
        return _row(texts)

    def _loss(self) -> Text:
        if self.loss is None:
            return Text("starting", style="dim")
        return _labelled("loss", f"{self.loss:.3f}", "" if math.isfinite(self.loss) else "bold red")

    def _success(self, label: str) -> Text:
        values = [
            _labelled(modality, f"{share:.2f}", "yellow" if share < _LOW_SUCCESS else "")
            for modality, share in self.success.items()
        ]
        return Text(label, style="dim").append_text(Text(" ").join(values)) if values else Text()

    def _speed(self) -> Text:
        if self.pairs_per_second is None:
            return Text()
        decimals = 0 if self.pairs_per_second >= 10 else 1
        return Text(f"{self.pairs_per_second:.{decimals}f}").append(" pairs/s", style="dim")

    def _left(self) -> Text:
        seconds = self.seconds_left()
        return Text() if seconds is None else Text(duration(seconds)).append(" left", style="dim")


def duration(seconds: float) -> str:
    """`0:07`, `2:31`, `1:02:31`, `3d 4h`"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24}h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _labelled(label: str, value: str, style: str) -> Text:
    return Text(f"{label} ", style="dim").append(value, style=style or "not dim")


def _row(parts: Iterable[RenderableType]) -> Table:
    row = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    cells = list(parts)
    for _ in cells:
        row.add_column(no_wrap=True)
    row.add_row(*cells)
    return row


def terminal() -> Console | None:
    """A console on stderr or stdout, whichever is a terminal that can move its cursor."""
    consoles = (Console(stderr=True), Console())
    return next((console for console in consoles if console.is_terminal and not console.is_dumb_terminal), None)


def print_line(text: str) -> None:
    """Print a line as far as that is possible."""
    # A lost log (a closed pipe, a full disk) is no reason to lose the run.
    with contextlib.suppress(OSError), reader_may_leave():
        print(text)
