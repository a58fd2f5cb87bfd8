"""Asking a run to stop: a signal sets a flag that is read, by all ranks together, at the next step boundary."""

import os
import signal
import time
from types import FrameType

EXIT_STOPPED = 85
"""Exit code of a run that saved and stopped because a signal asked it to; the same command continues it."""
EXIT_INTERRUPTED = 130
"""The same after Ctrl-C."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


SAME_SECONDS = 1.0
"""A second SIGINT within this time is the first one again: the terminal sends it to every process, and torchrun passes it on."""


class StopRequest:
    """Set by the first SIGINT, SIGTERM, SIGUSR1 or SIGUSR2 to this process; a second Ctrl-C ends the process at once."""

    def __init__(self, announce: bool = False) -> None:
        """`announce`: print a line at the first signal, since a step or an evaluation may take a while."""
        self.signal: int = 0
        self._announce = announce
        self._interrupted: float | None = None  # when Ctrl-C came first, in seconds
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted is not None and now - self._interrupted > SAME_SECONDS:
                raise KeyboardInterrupt
            self._interrupted = self._interrupted or now
        if self._announce and not self.signal:
            # Not print: the interrupted code may be in the middle of one.
            os.write(2, b"\nstopping after this step, which will be saved (Ctrl-C again: stop at once, without saving)\n")
        # torchrun follows Ctrl-C with SIGTERM: the first reason counts.
        self.signal = self.signal or number


def exit_code(number: int) -> int:
    """The exit code of a run that signal `number` stopped."""
    return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_STOPPED
