"""Run a function in several real processes that talk over gloo."""

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

from trainer.processes import Processes, start_processes, stop_processes


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _work(rank: int, world: int, port: int, fn: Callable[..., Any], args: tuple[Any, ...], results: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        processes = start_processes("cpu", timeout_minutes=2)
        results.put((rank, fn(processes, *args), None))
        processes.barrier()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    finally:
        stop_processes()


def run_distributed(fn: Callable[..., Any], world: int, *args: Any) -> list[Any]:
    """`fn(processes, *args)` on `world` ranks; the picklable results in rank order. Fails with the first rank's traceback."""
    context = mp.get_context("spawn")
    results = context.Queue()
    port = _free_port()
    workers = [context.Process(target=_work, args=(rank, world, port, fn, args, results), daemon=True) for rank in range(world)]
    for worker in workers:
        worker.start()
    try:
        collected: dict[int, Any] = {}
        for _ in range(world):
            rank, value, error = results.get(timeout=240)
            if error:
                raise AssertionError(f"rank {rank}:\n{error}")
            collected[rank] = value
        return [collected[rank] for rank in range(world)]
    finally:
        for worker in workers:
            worker.join(timeout=10)
            worker.kill()
