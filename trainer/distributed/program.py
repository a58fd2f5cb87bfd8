"""What every entry point does around its work: join the processes, report errors once, leave with an honest exit code."""

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from trainer.config.schema import Config
from trainer.distributed.environment import local_rank_from_environment, rank_from_environment
from trainer.distributed.processes import Processes, start_processes, stop_processes
from trainer.distributed.signals import EXIT_INTERRUPTED
from trainer.errors import UserError
from trainer.reporting.log_lines import log_to_terminal

EXIT_USER_ERROR = 2
EXIT_FAILURE = 1
SILENT_SECONDS = 10.0
"""How long ranks that leave the word to another wait for the launcher to end them."""
LAST_WORDS_SECONDS = 3.0
"""How long a rank that lost another waits for the rest to leave too, before it names who did not."""


def exit_with(problem: UserError, speaks: bool | None = None) -> NoReturn:
    """Print an error that every rank met before the processes joined, then leave. `speaks`: rank 0 alone, if None."""
    line = f"error: {problem}"
    _tell_torchrun(line)
    if rank_from_environment() == 0 if speaks is None else speaks:
        print(line, file=sys.stderr, flush=True)
    else:
        # The first process to end makes torchrun end the others: it must not be one that has said nothing.
        time.sleep(SILENT_SECONDS)
    sys.exit(EXIT_USER_ERROR)


def run_program(config: Config, work: Callable[[Processes], int]) -> NoReturn:
    """Join the processes, do the work, and exit with the code that it returns.

    A UserError prints one line on one rank, whichever ranks met it; any other error keeps its traceback, on the rank that met it
    first. The others, which then lose contact, leave silently.
    """
    log_to_terminal(rank_from_environment())
    try:
        processes = start_processes(config.run.device, config.parallel.timeout_minutes)
    except UserError as problem:
        exit_with(problem, speaks=local_rank_from_environment() == 0)  # hosts differ
    except KeyboardInterrupt:
        _leave(EXIT_INTERRUPTED, "interrupted: ended before it began" if rank_from_environment() == 0 else None)
    try:
        code = work(processes)
        processes.barrier()
    except UserError as problem:
        _tell_torchrun(f"error: {problem}")
        _leave(EXIT_USER_ERROR, f"error: {problem}" if _is_first_to_speak(processes) else None)
    except KeyboardInterrupt:
        _leave(EXIT_INTERRUPTED, "interrupted: ended at once, without saving" if _is_first_to_speak(processes) else None)
    except Exception as problem:
        if not _is_first_to_speak(processes):
            _leave(EXIT_FAILURE, None)
        if _is_lost_contact(problem):
            _leave(EXIT_FAILURE, _name_the_lost(processes))
        sys.excepthook(type(problem), problem, problem.__traceback__)
        reason = (str(problem).strip().splitlines() or [""])[0][:200]
        line = f"error: rank {processes.rank} failed: {type(problem).__name__}: {reason}"
        _tell_torchrun(line)
        _leave(EXIT_FAILURE, line)
    stop_processes()
    sys.exit(code)


def _is_lost_contact(problem: Exception) -> bool:
    """Whether a collective failed because a peer is gone, which is never the first thing that went wrong."""
    text = str(problem)
    return isinstance(problem, RuntimeError) and any(
        sign in text
        for sign in ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "NCCL")
    )


def _name_the_lost(processes: Processes) -> str:
    """Wait for the other ranks to leave as well; those that do not are the ones that ended without a word."""
    silent = [rank for rank in range(processes.world) if rank != processes.rank]
    until = time.monotonic() + LAST_WORDS_SECONDS
    # A store that is gone went with rank 0, which keeps it (under torchrun the launcher does).
    with contextlib.suppress(Exception):
        while len(silent) > 1 and time.monotonic() < until:
            silent = [rank for rank in silent if not _store().check([_left(rank)])]
            time.sleep(0.1)
        silent = [rank for rank in silent if not _store().check([_left(rank)])]
        if not silent:
            return "error: the ranks lost contact with each other: look at the network between the hosts"
        names = ", ".join(map(str, silent[:8])) + (", …" if len(silent) > 8 else "")
        return (
            f"error: rank{'s' if len(silent) > 1 else ''} {names} ended without a word (killed, most often for want of memory), "
            f"or cannot be reached: the same command goes on from the last checkpoint"
        )
    return "error: rank 0 ended without a word (killed, most often for want of memory), or cannot be reached"


def _is_first_to_speak(processes: Processes) -> bool:
    """Note that this rank leaves; returns whether it is the first one that does, which tells why."""
    try:
        _store().set(_left(processes.rank), "")
        return _store().add("limoe/failed", 1) == 1
    except Exception:  # the store went with rank 0: one rank a host says so
        return processes.local_rank == 0 or processes.rank == 1


def _leave(code: int, line: str | None) -> NoReturn:
    """Print the line, if any, and end without waiting for anyone."""
    if line is not None:
        print(line, file=sys.stderr, flush=True)
    sys.stdout.flush()
    logging.shutdown()
    os._exit(code)  # destroying the process group could wait for ranks that never come


def _store() -> dist.Store:
    """The key-value store that the ranks met by."""
    return dist.distributed_c10d._get_default_store()


def _left(rank: int) -> str:
    return f"limoe/left/{rank}"


def _tell_torchrun(line: str) -> None:
    """Let the report that torchrun prints at a failure end with our line; the file is torchrun's documented place for it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        message = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": message}))
