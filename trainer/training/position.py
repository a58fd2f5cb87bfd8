"""Where a run is, for the batch script that started it. A crash leaves no message, so the last position must be on disk."""

import contextlib
import os

VARIABLE = "LIMOE_POSITION"
"""Names the file; the batch script sets it."""


class Position:
    """The file's one line, `STEP SAVED STATE`: the step at work, the last one saved, and `running` or the exit code of a stop."""

    def __init__(self, saved: int, is_first: bool) -> None:
        """Starts after step `saved`. Without a batch script, and on ranks other than the first, nothing is written."""
        self._step = self._saved = saved
        path = os.environ.get(VARIABLE)
        self._file: int | None = None
        if path and is_first:
            with contextlib.suppress(OSError):  # only an aid for later: no reason to end training
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT)
        self._write("running")

    def at(self, step: int) -> None:
        """A step begins."""
        self._step = step
        self._write("running")

    def saved(self, step: int) -> None:
        """The checkpoint of a step is complete."""
        self._saved = step
        self._write("running")

    def stopped(self, code: int) -> None:
        """The run ends, saved, because of a signal; `code` is the exit code that the process is about to use."""
        self._write(str(code))

    def _write(self, state: str) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                # Fixed length, in place: a reader sees the old line or the new one.
                os.pwrite(self._file, f"{self._step:>12} {self._saved:>12} {state:<8}\n".encode(), 0)
