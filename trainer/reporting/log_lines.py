"""Where log lines go: warnings to the terminal, everything to the run's train.log."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from model.secrets import without_secrets
from trainer.errors import UserError, reason

_log = logging.getLogger(__name__)
LOG = "train.log"


class _StandardError(logging.Handler):
    """Writes to whatever sys.stderr is at the moment, so that a live progress bar can put lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # a closed terminal or full disk is no reason to lose the run
            print(self.format(record), file=sys.stderr, flush=True)


class _Line(logging.Formatter):
    """What is told stays in its line, whatever the names in it hold, and holds no secret; a traceback follows as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, encodable."""
        line = " ".join(without_secrets(super().formatMessage(record)).splitlines())
        return line.encode("utf-8", "backslashreplace").decode()


class _File(logging.FileHandler):
    """A disk without room for the log is no reason to fill the terminal with tracebacks."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line."""


def log_to_terminal(rank: int) -> None:
    """Warnings of this rank on standard error, one line each."""
    root = logging.getLogger()
    root.setLevel(min(root.level or logging.INFO, logging.INFO))  # hydra.verbose=true asks for more
    for handler in list(root.handlers):
        root.removeHandler(handler)
    terminal = _StandardError()
    terminal.setLevel(logging.WARNING)
    who = "" if rank == 0 else f" (rank {rank})"
    terminal.setFormatter(_Line(f"%(levelname)s{who}: %(message)s"))
    root.addHandler(terminal)
    for chatty in ("wandb", "git", "urllib3", "fsspec", "compilers"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


@contextlib.contextmanager
def log_to_file(run_dir: Path, rank: int) -> Iterator[None]:
    """Rank 0 also keeps all lines in `train.log`, appended over resumes, and what ended the run, if it was an error.

    Raises UserError, on rank 0, when that file cannot be opened.
    """
    if rank != 0:
        yield
        return
    try:
        handler = _File(run_dir / LOG, encoding="utf-8")
    except OSError as problem:
        raise UserError(f"{run_dir / LOG} cannot be written ({reason(problem)}): fix it or choose another run.dir") from problem
    handler.setFormatter(_Line("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    except UserError as problem:
        _log.info("error: %s", problem)
        raise
    except Exception:
        _log.info("failed", exc_info=True)
        raise
    finally:
        root.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()
