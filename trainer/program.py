"""What every entry point does around its work: join the processes, report errors once, leave with an honest exit code."""

import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import torch.distributed as dist

from trainer.config import Config
from trainer.errors import UserError
from trainer.logs.setup import log_to_terminal
from trainer.processes import Processes, rank_from_environment, start_processes, stop_processes

EXIT_USER_ERROR = 2
EXIT_FAILURE = 1


def exit_with(problem: UserError) -> NoReturn:
    """Print an error that every rank met before the processes joined: once, then leave."""
    if rank_from_environment() == 0:
        print(f"error: {problem}", file=sys.stderr, flush=True)
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
        exit_with(problem)
    try:
        code = work(processes)
        processes.barrier()
    except UserError as problem:
        _leave(f"error: {problem}", EXIT_USER_ERROR)
    except KeyboardInterrupt:
        _leave("interrupted a second time: ended at once, without saving", 130)
    except Exception as problem:
        logging.getLogger(__name__).info("failed", exc_info=problem)
        if _is_lost_contact(problem):
            _leave(
                f"error: rank {processes.rank} lost contact with another rank, which ended or is out of reach: {_first(problem)}"
            )
        sys.excepthook(type(problem), problem, problem.__traceback__)
        _leave(f"error: rank {processes.rank} failed: {type(problem).__name__}: {_first(problem)}")
    stop_processes()
    sys.exit(code)


def _first(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [""])[0][:200]


def _is_lost_contact(problem: Exception) -> bool:
    """Whether a collective failed because a peer is gone, which is never the first thing that went wrong."""
    text = str(problem)
    return isinstance(problem, RuntimeError) and any(
        sign in text
        for sign in ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "NCCL")
    )


def _leave(line: str, code: int = EXIT_FAILURE) -> NoReturn:
    """Print the line unless another rank has printed one already, and end without waiting for anyone."""
    try:
        # The key-value store that the ranks met by: who counts first speaks.
        speaks = dist.distributed_c10d._get_default_store().add("limoe/failed", 1) == 1
    except Exception:  # rank 0 keeps the store, and may be what is gone
        speaks = True
    if speaks:
        print(line, file=sys.stderr, flush=True)
    sys.stdout.flush()
    logging.shutdown()
    os._exit(code)  # destroying the process group could wait for ranks that never come
