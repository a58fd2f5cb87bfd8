"""Work that nobody waits for: done in order, in one thread."""

import queue
import threading
from collections.abc import Callable


class Background:
    """A thread that does one piece of work after the other. A daemon: if it hangs, the process can end all the same."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def do(self, work: Callable[[], None]) -> None:
        """Do something after everything that was asked for before, and return at once. `work` must not raise."""
        self._work.put(work)

    def wait(self, seconds: float) -> bool:
        """Wait until everything asked for so far is done, but no longer than this; whether it is done."""
        done = threading.Event()
        self.do(done.set)
        return done.wait(seconds)

    def _run(self) -> None:
        while True:
            self._work.get()()
