"""Loader processes: how they start, what they ignore, what they report to the training process, how they end."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from trainer.data.shards.archive import is_news
from trainer.errors import UserError

T = TypeVar("T")

# The training process decides what an interrupt or a cluster's signal means; its workers continue until it stops them.
MAIN_DECIDES = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

REMEDY = "use a smaller data.shuffle_buffer or fewer data.workers"

logger = logging.getLogger(__name__)


Warned = tuple[str, tuple[str, str] | None]
"""A line, and the shard and kind of problem that it is about: several workers meet the same one."""


@dataclass
class Parcel(Generic[T]):
    """What a worker sends: its output and the warnings on the way, or the error that ended it."""

    content: T | None
    warnings: list[Warned]
    error: str | None = None


class WorkerIterator(Generic[T]):
    """The outputs of `workers` processes, taken in turn: 0, 1, …, 0, 1, …; a finite one that has ended is left out.

    `make(worker)` builds the iterator that worker number `worker` runs; it is pickled, and so are the outputs. A UserError
    in a worker is raised here, and its warnings are logged here. A worker that dies ends in a UserError, with the `remedy`.
    """

    def __init__(self, make: Callable[[int], Iterator[T]], workers: int, remedy: str = REMEDY) -> None:
        self._remedy = remedy
        loader: DataLoader[Parcel[T]] = DataLoader(
            _InWorkers(make),
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_start_worker,
            # Not fork: the training process has threads and CUDA by now. A fork server imports everything once.
            multiprocessing_context=_fork_server(),
            # Otherwise it draws from the global generator, and the number of workers changes the training.
            generator=torch.Generator(),
        )
        with _without_main_module():
            self._parcels = iter(loader)
        # Workers ignore SIGTERM, which Python would use to end them at exit: stop them before that.
        self.close = weakref.finalize(self, _stop, self._parcels)

    def __iter__(self) -> "WorkerIterator[T]":
        return self

    def __next__(self) -> T:
        if not self.close.alive:
            raise StopIteration
        try:
            parcel = next(self._parcels)
        except StopIteration:
            self.close()
            raise
        except (RuntimeError, ConnectionError, EOFError) as problem:
            self.close()
            if isinstance(problem, RuntimeError) and "exited unexpectedly" not in str(problem):
                raise
            raise UserError(f"a data worker was killed, usually for lack of memory: {self._remedy}") from problem
        for warning, about in parcel.warnings:
            if about is None or is_news(*about):
                logger.warning("%s", warning)
        if parcel.error is not None:
            self.close()
            raise UserError(parcel.error)
        return parcel.content  # never None if there is no error


class _InWorkers(IterableDataset):
    def __init__(self, make: Callable[[int], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Parcel[Any]]:
        info = get_worker_info()
        warnings = _collect_warnings()
        try:
            for content in self.make(info.id if info else 0):
                yield Parcel(content, _taken(warnings))
        # If it were raised here, the user would see a traceback of two processes.
        except UserError as problem:
            yield Parcel(None, _taken(warnings), str(problem))


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[Warned] = []

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "at_once", False):  # a wait should be reported while it lasts
            print(f"WARNING (data worker): {record.getMessage()}", file=sys.stderr, flush=True)
        else:
            self.messages.append((record.getMessage(), getattr(record, "news", None)))


def _collect_warnings() -> list[Warned]:
    collector = _Collector()
    logging.getLogger().handlers = [collector]
    return collector.messages


def _taken(messages: list[Warned]) -> list[Warned]:
    taken = list(messages)
    messages.clear()
    return taken


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    for number in MAIN_DECIDES:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_training, daemon=True).start()


def _end_with_training() -> None:
    """End when the training process is gone, for instance killed; torch only watches the fork server, which waits for us."""
    training = multiprocessing.parent_process()
    if training is not None:
        training.join()
        os._exit(1)


def _as_it_is(parcel: T) -> T:
    return parcel


def _stop(parcels: Any) -> None:
    parcels._shutdown_workers()


def _fork_server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainer.data.worker_start"])
    # multiprocessing keeps a process that frees its semaphores. Killed by a cluster's signal, it is restarted, knows none of
    # them, and fills the log with tracebacks. What is blocked now stays so in it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGUSR2))
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


_starting = threading.Lock()


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Start processes without importing the main program again, which would cost each of them seconds and memory."""
    with _starting:
        names = vars(sys.modules["__main__"])
        hidden = {name: names.get(name) for name in ("__spec__", "__file__")}
        names.update(dict.fromkeys(hidden))
        try:
            yield
        finally:
            names.update(hidden)
