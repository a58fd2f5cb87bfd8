"""What every entry point does around its work: join the processes, report errors once, leave with an honest exit code."""

import contextlib
import faulthandler
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from trainer.config.schema import Config
from trainer.distributed.environment import (
    host_of_launcher_store,
    local_rank_from_environment,
    own_logs_from_environment,
    rank_from_environment,
)
from trainer.distributed.joining import record_collectives
from trainer.distributed.processes import Processes, start_processes, stop_processes
from trainer.distributed.signals import EXIT_INTERRUPTED
from trainer.distributed.watchdog import BEAT_SECONDS, FAILED, Watchdog, launcher_lost
from trainer.errors import UserError, reason
from trainer.reporting.log_lines import log_to_terminal

EXIT_USER_ERROR = 2
EXIT_FAILURE = 1
SILENT_SECONDS = 10.0
"""How long ranks that let another one report wait for the launcher to end them."""
LAST_WORDS_SECONDS = BEAT_SECONDS + 2.0
"""How long a rank that lost another waits for signs of life from the rest, before it names the silent ones."""


def exit_with(problem: UserError, speaks: bool | None = None) -> NoReturn:
    """Print an error that every rank found before the processes joined, then leave. `speaks`: if None, only rank 0."""
    line = f"error: {problem}"
    _tell_torchrun(line)
    if rank_from_environment() == 0 if speaks is None else speaks:
        print(line, file=sys.stderr, flush=True)
    else:
        # When the first process ends, torchrun ends the others: it must not be one that has not reported anything.
        time.sleep(SILENT_SECONDS)
    sys.exit(EXIT_USER_ERROR)


def run_program(config: Config, work: Callable[[Processes], int]) -> NoReturn:
    """Join the processes, do the work, and exit with the code that it returns.

    A UserError prints one line on one rank, whichever ranks raised it. Any other error keeps its traceback, on the rank that
    raised it first; the others, which then lose contact, leave silently.
    """
    log_to_terminal(rank_from_environment())
    faulthandler.enable()  # NCCL ends a process with SIGABRT when a collective fails or takes too long: show where it was
    record_collectives(own_logs_from_environment() or Path(config.run.dir))
    parallel = config.parallel
    try:
        processes = start_processes(config.run.device, parallel.timeout_minutes, parallel.lost_after_seconds)
    except UserError as problem:
        exit_with(problem, speaks=local_rank_from_environment() == 0)  # hosts differ
    except KeyboardInterrupt:
        _leave(EXIT_INTERRUPTED, "interrupted before the run began" if rank_from_environment() == 0 else None)
    try:
        code = work(processes)
        processes.barrier()
        processes.watchdog.stop()
    except UserError as problem:
        _tell_torchrun(f"error: {problem}")
        _leave(EXIT_USER_ERROR, f"error: {problem}" if _is_first_to_speak(processes) else None)
    except KeyboardInterrupt:
        _leave(EXIT_INTERRUPTED, "interrupted: stopped at once, without saving" if _is_first_to_speak(processes) else None)
    except Exception as problem:
        _leave_failed(problem, processes)
    stop_processes()
    sys.exit(code)


def _leave_failed(problem: Exception, processes: Processes) -> NoReturn:
    """Report what failed and where: in full in the log of this rank, and once for all ranks why the run ends."""
    logging.getLogger(__name__).info("failed", exc_info=problem)  # for train.log
    if isinstance(problem, torch.OutOfMemoryError):
        _leave_out_of_memory(problem, processes)
    has_own_log = processes.rank != 0 and own_logs_from_environment() is not None
    speaks, lost = _is_first_to_speak(processes), is_lost_contact(problem)
    if has_own_log or (speaks and not lost):
        sys.excepthook(type(problem), problem, problem.__traceback__)
    if not speaks:
        _leave(EXIT_FAILURE, None)
    seen = f"{type(problem).__name__}: {reason(problem)}"
    line = f"error: rank {processes.rank} failed: {seen}"
    if lost:
        line = f"{_name_the_lost(processes)} (rank {processes.rank} saw {seen})"
    _tell_torchrun(line)
    _leave(EXIT_FAILURE, line)


def _leave_out_of_memory(problem: torch.OutOfMemoryError, processes: Processes) -> NoReturn:
    """As `_leave_failed`, with what to change in place of a traceback: where memory ran out is rarely what takes it."""
    line = (
        f"error: rank {processes.rank} has too little GPU memory ({_first_sentences(str(problem))}), in: "
        f"{processes.watchdog.activity}. For training, raise train.accumulate, set train.activation_checkpointing=blocks, or "
        f"take more GPUs (python -m trainer.describe says what a setting needs); for evaluating, lower eval.batch_size"
    )
    if not _is_first_to_speak(processes):
        _leave(EXIT_FAILURE, None)
    _tell_torchrun(line)
    _leave(EXIT_FAILURE, line)


def _first_sentences(text: str) -> str:
    """What torch says of sizes, without its advice on the allocator."""
    return " ".join(text.split()).partition(" Process ")[0].partition(" Of the allocated")[0].rstrip(". ")


def is_lost_contact(problem: Exception) -> bool:
    """Whether a collective failed because a peer is gone, which is never the first thing that went wrong."""
    text = str(problem)
    if isinstance(problem, dist.DistBackendError):
        # NCCL's only type for all its failures, including memory and network interfaces; only these are about a peer.
        return any(sign in text for sign in ("ncclRemoteError", "remote process exited", "communicator was aborted"))
    if isinstance(problem, (dist.DistNetworkError, dist.DistStoreError)):
        return True
    # gloo has no types of its own: these are its transport's messages, also for a pair whose other end gave up.
    return type(problem) is RuntimeError and ("gloo/transport/" in text or "pair closure" in text)


def _name_the_lost(processes: Processes) -> str:
    """Wait for the other ranks to leave too, or to report that they are alive (NCCL lets them wait); name the rest."""
    silent = [rank for rank in range(processes.world) if rank != processes.rank]
    until = time.monotonic() + LAST_WORDS_SECONDS
    # If the store is gone, so is rank 0, which keeps it (under torchrun, the launcher does).
    with contextlib.suppress(Exception):
        store = processes.store
        assert store is not None  # with other ranks there is always one
        words = {rank: Watchdog.last_word(store, rank) for rank in silent}
        silent = [rank for rank in silent if not store.check([_left(rank)])]
        while len(silent) > 1 and time.monotonic() < until:
            time.sleep(0.1)
            silent = [
                rank for rank in silent if not store.check([_left(rank)]) and Watchdog.last_word(store, rank) == words[rank]
            ]
        if not silent:
            return "error: the ranks lost contact with each other: check the network between the hosts"
        names = ", ".join(map(str, silent[:8])) + (", …" if len(silent) > 8 else "")
        return (
            f"error: rank{'s' if len(silent) > 1 else ''} {names} died without a message (killed, usually for lack of memory) "
            f"or cannot be reached: run the same command again to continue from the last checkpoint"
        )
    if (host := host_of_launcher_store()) is not None:
        return f"error: {launcher_lost('does not answer', host)}"
    return "error: rank 0 died without a message (killed, usually for lack of memory) or cannot be reached"


def _is_first_to_speak(processes: Processes) -> bool:
    """Note that this rank leaves; returns whether it is the first one, which reports why."""
    processes.watchdog.stop()  # what follows may take a while
    if processes.store is None:
        return True
    try:
        processes.store.set(_left(processes.rank), "")
        return processes.store.add(FAILED, 1) == 1
    except Exception:  # the store is gone with rank 0: one rank per host says so
        return processes.local_rank == 0 or processes.rank == 1


def _leave(code: int, line: str | None) -> NoReturn:
    """Print the line, if any, and end without waiting for others."""
    if line is not None:
        print(line, file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    logging.shutdown()
    os._exit(code)  # destroying the process group could wait for ranks that never come


def _left(rank: int) -> str:
    return f"limoe/left/{rank}"


def _tell_torchrun(line: str) -> None:
    """Make torchrun's report of a failure end with our line; the file is torchrun's documented place for it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        message = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": message}))
