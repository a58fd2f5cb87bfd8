"""Run a function in several real processes that talk over gloo, or as tests/distributed/device.py says.

The imports (torch, DeepSpeed) cost each process seconds. So one launcher imports them once, and every call forks its ranks off
it: a start then takes a fraction of a second, and no call sees what another left behind.
"""

import atexit
import importlib
import io
import multiprocessing
import os
import pickle
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from tests.distributed.device import DEVICE, like_new_torch, share_one_gpu
from trainer.distributed.processes import start_processes, stop_processes

GRACE_SECONDS = 20.0
"""How long ranks may take to leave once each has given its result."""


class RanksFailed(AssertionError):
    """What the ranks of a call met: tracebacks, an early death, or a hang."""


@dataclass(frozen=True)
class _Call:
    world: int
    job: bytes  # pickled (function, arguments)
    seconds: float


def run_distributed(fn: Callable[..., Any], world: int, *args: Any, seconds: float = 120.0) -> list[Any]:
    """`fn(processes, *args)` on `world` ranks; the picklable results in rank order.

    Raises RanksFailed as soon as one rank fails or dies, or when not all are done after `seconds`; no process is left then.
    """
    global _launcher
    _launcher = _launcher or _Launcher()
    try:
        results = _launcher.ask(_Call(world, pickle.dumps((fn, args)), seconds))
    except BaseException:  # a test's own time limit, or Ctrl-C: the launcher is in the middle of something
        _launcher.kill()
        _launcher = None
        raise
    if isinstance(results, str):
        raise RanksFailed(results)
    return [torch.load(io.BytesIO(result), weights_only=False) for result in results]


class _Launcher:
    """The process that ranks are forked from."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()
        atexit.register(self.kill)

    def ask(self, call: _Call) -> list[bytes] | str:
        """The pickled results, or what went wrong."""
        self._connection.send(call)
        return self._connection.recv()

    def kill(self) -> None:
        """End it, its ranks and whatever they started."""
        atexit.unregister(self.kill)
        if self._process.pid and self._process.is_alive():
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()


_launcher: _Launcher | None = None


def _serve(connection: Connection) -> None:
    os.setsid()  # a group of its own, so that all of it can be ended together
    _import_everything()
    torch.set_num_threads(1)
    while True:
        try:
            call = connection.recv()
        except EOFError:  # the tests are over
            return
        connection.send(_run(call))


def _import_everything() -> None:
    """What ranks use, and what DeepSpeed imports when an engine is made, which is most of it."""
    import trainer.training.run  # noqa: F401
    from trainer.engine.build import _import_deepspeed

    _import_deepspeed()
    for late in ("module_inject.auto_ep_layer", "runtime.zero.muon.muon_optimizer", "runtime.superoffload.superoffload_stage3"):
        importlib.import_module(f"deepspeed.{late}")


def _run(call: _Call) -> list[bytes] | str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    readers: list[Connection] = []
    ranks: list[Any] = []
    for rank in range(call.world):
        reader, writer = context.Pipe(duplex=False)
        # Not daemons: those may not start loader processes.
        ranks.append(context.Process(target=_work, args=(rank, call.world, port, call.job, writer), daemon=False))
        ranks[-1].start()
        writer.close()  # so that a rank's death ends its pipe
        readers.append(reader)
    results = _collect(readers, call.seconds)
    patience = time.monotonic() + (0.0 if isinstance(results, str) else GRACE_SECONDS)
    for process in ranks:
        process.join(max(0.0, patience - time.monotonic()))
        process.kill()
        process.join()
    return results


def _collect(readers: list[Connection], seconds: float) -> list[bytes] | str:
    """What each rank sent, or what is wrong with those that sent no result."""
    deadline = time.monotonic() + seconds
    results: dict[int, bytes] = {}
    problems: dict[int, str] = {}
    waiting = dict(enumerate(readers))
    while waiting and (ready := wait(waiting.values(), max(0.0, deadline - time.monotonic()))):
        for rank in [rank for rank, reader in waiting.items() if reader in ready]:
            try:
                result, problem = waiting.pop(rank).recv()
            except EOFError:
                result, problem = None, "died without a message"
            if problem:
                problems[rank] = problem
                # One that only lost contact may speak before the one that failed: hear both.
                deadline = min(deadline, time.monotonic() + 1.0)
            else:
                results[rank] = result
    if problems:
        return "\n".join(f"rank {rank}: {problem}" for rank, problem in problems.items())
    if waiting:
        return f"ranks {list(waiting)} of {len(readers)} were not finished after {seconds:.0f} s"
    return [results[rank] for rank in range(len(readers))]


def _work(rank: int, world: int, port: int, job: bytes, writer: Connection) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        fn, args = pickle.loads(job)
        like_new_torch()
        share_one_gpu(rank)
        processes = start_processes(DEVICE, timeout_minutes=1)
        torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
        result = io.BytesIO()
        torch.save(fn(processes, *args), result)  # plain bytes: tensors of a process that has left cannot be read
        processes.barrier()  # a rank that is still at work may need the others
        writer.send((result.getvalue(), None))
    except BaseException:
        writer.send((None, traceback.format_exc()))
    finally:
        stop_processes()
