"""What processes do before and while they join, so that joining neither hangs nor fails silently."""

import logging
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from trainer.distributed.environment import restarts_from_environment

EXIT_LOST = 1
FILES_BESIDE = 256
"""Open files of a process regardless of the number of processes: libraries, shards, logs, loaders."""
SOCKETS_A_PEER = 6
"""Most connections of a process to each other one: gloo connects all members of each group, and some groups span the world.
Measured over gloo with 8 ranks: 3.5, and two more on rank 0, which keeps the store."""


def meet(timeout: timedelta) -> dist.Store:
    """The key-value store where the ranks of this start meet; the launcher's variables say where it is.

    Raises RuntimeError when they do not arrive within the time-out.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    # torchrun --max-restarts keeps the store, with the addresses and last messages of ranks that are dead by now.
    return dist.PrefixStore(f"start-{restarts_from_environment()}", store)


@contextmanager
def deadline(seconds: float, tell: Callable[[], str | None]) -> Iterator[None]:
    """End this process, with the line from `tell`, if the block takes longer: it may never return."""

    def end() -> None:
        line = tell()
        if line is not None:
            print(f"error: {line}", file=sys.stderr, flush=True)
        os._exit(EXIT_LOST)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def raise_open_files(world: int) -> None:
    """Let this process open as many files as the system allows; warn if that is too few for this many processes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = SOCKETS_A_PEER * world + FILES_BESIDE
    if hard != resource.RLIM_INFINITY and hard < needed:
        logging.getLogger(__name__).warning(
            "a process may open %d files here (ulimit -Hn); one of %d processes may need %d: if joining fails, have the limit "
            "raised (LimitNOFILE of slurmd, /etc/security/limits.conf)",
            hard,
            world,
            needed,
        )


def record_collectives(folder: Path) -> None:
    """Let NCCL's flight recorder write what every rank is waiting for into `folder` when a collective takes too long.

    `python -m torch.distributed.flight_recorder.fr_trace` reads the files. The user's own settings stay.
    """
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", os.environ.get("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000"))  # collectives
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    prefix = os.environ.get("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str(folder.absolute() / "nccl-trace-rank-"))
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", prefix)
