"""A rank that falls silent ends the others within a bounded time, and is named.

Collectives notice a dead peer when its connection closes. They notice nothing when a host is cut off, a process stopped, or NCCL
waits. So every rank reports to the store that it is alive; rank 0 watches all others, and they watch rank 0.
"""

import logging
import os
import socket
import sys
import threading
import time
from contextlib import suppress

import torch.distributed as dist

from trainer.distributed.environment import host_of_launcher_store
from trainer.distributed.joining import EXIT_LOST
from trainer.errors import UserError

FAILED = "limoe/failed"
"""The store's count of ranks that leave because something failed."""
LEAVE_SECONDS = 10.0
"""How long a rank may take to leave by itself after another one failed. NCCL would let it wait forever."""
BEAT_SECONDS = 5.0
VERDICT_SECONDS = 15.0
"""After a rank has been silent for too long, all others know within this time: two beats, and some to spare."""
_VERDICT = "limoe/lost"


class Watchdog:
    """Watches the other ranks from its own threads; a rank that is not heard from for `patience` seconds ends this process.

    So does one that reports a failure, a little later and silently. Nothing happens before `start`, nor in a single
    process. A rank is watched from its first message on, so some may come late.
    """

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int = 0) -> None:
        self._rank, self._world, self._local_rank = rank, world, local_rank
        self._patience = 0.0
        self._activity = "joining the others"
        self._stopped = threading.Event()
        self._said: dict[int, bytes] = {}
        self._heard: dict[int, float] = {}
        self._failed_at: float | None = None

    def start(self, store: dist.Store, patience: float) -> None:
        """Tell the others that this rank is alive, and watch them. Raises RuntimeError when the store does not answer."""
        if self._world == 1:
            return
        # A separate connection: one that waits for a key blocks all others of the same client.
        self._store: dist.Store = store.clone()  # type: ignore[attr-defined]  # torch's stubs lack it
        self._patience = patience
        self._contact = time.monotonic()  # with the store
        self._beat(0)
        for work in (self._talk, self._judge):
            threading.Thread(target=work, daemon=True, name="watchdog").start()

    def note(self, activity: str) -> None:
        """What this rank is about to do, for the message if it is not heard from again."""
        self._activity = activity

    @property
    def activity(self) -> str:
        """What this rank was last said to be doing."""
        return self._activity

    def stop(self) -> None:
        """Stop watching, and stop being watched by the ranks that have stopped too."""
        self._stopped.set()

    @staticmethod
    def last_word(store: dist.Store, rank: int) -> bytes | None:
        """A rank's last message, different every time; None: nothing yet."""
        return store.get(_alive(rank)) if store.check([_alive(rank)]) else None

    def _beat(self, count: int) -> None:
        self._store.set(_alive(self._rank), f"{count} {socket.gethostname()} {self._activity}")

    def _talk(self) -> None:
        """Report that this rank is alive, and listen to the others, until stopped; the store may fail or hang."""
        watched = range(1, self._world) if self._rank == 0 else [0]
        count = 0
        while not self._stopped.wait(min(BEAT_SECONDS, self._patience / 4)):
            count += 1
            with suppress(Exception):  # lost; _judge waits for it to come back
                self._beat(count)
                if self._rank != 0 and self._store.check([_VERDICT]):
                    self._end(None)
                if self._failed_at is None and self._store.check([FAILED]):
                    self._failed_at = time.monotonic()
                self._listen([rank for rank in watched if rank in self._said or self._store.check([_alive(rank)])])

    def _listen(self, ranks: list[int]) -> None:
        """Read the last messages of the ranks."""
        words = self._store.multi_get([_alive(rank) for rank in ranks]) if ranks else []
        self._contact = time.monotonic()
        for rank, word in zip(ranks, words, strict=True):
            if word != self._said.get(rank):
                self._said[rank], self._heard[rank] = word, self._contact

    def _judge(self) -> None:
        while not self._stopped.wait(1.0):
            now = time.monotonic()
            if self._failed_at is not None and now - self._failed_at > LEAVE_SECONDS:
                self._end(None)  # the one that failed has said why
            if now - self._contact > self._patience:
                self._lose_store()
            for rank, heard in list(self._heard.items()):
                # Silence counts up to the last contact with the store, or a slow store would look like a silent rank.
                if self._contact - heard > self._patience:
                    self._condemn(rank)

    def _lose_store(self) -> None:
        host = host_of_launcher_store()
        if host is None:
            self._condemn(0)  # which keeps it
            return
        line = launcher_lost(f"has not answered for {self._patience:g} s", host)
        self._end(f"error: {line}" if self._local_rank == 0 else None)

    def _condemn(self, rank: int) -> None:
        if self._rank == 0:
            try:
                self._store.set(_VERDICT, str(rank))
            except Exception:
                logging.getLogger(__name__).info("the store is gone too", exc_info=True)
        # About rank 0 the others cannot agree on a speaker: one per host speaks, on rank 0's own host the next rank.
        self._end(f"error: {self._name(rank)}" if self._rank in (0, 1) or self._local_rank == 0 else None)

    def _name(self, rank: int) -> str:
        if rank == self._rank:  # rank 0 has lost a store that it does not keep itself
            return launcher_lost(f"has not answered for {self._patience:g} s", socket.gethostname())
        _, host, activity = self._said.get(rank, b"0 an-unknown-host starting").decode().split(maxsplit=2)
        return (
            f"rank {rank} on {host} has not been heard from for {self._patience:g} s (last message: {activity}): its host or "
            f"network failed, or the process was stopped; run the same command again to continue from the last checkpoint"
        )

    def _end(self, line: str | None) -> None:
        if self._stopped.is_set():
            return
        if line is not None:
            print(line, file=sys.stderr, flush=True)
        os._exit(EXIT_LOST)  # the main thread may wait in a collective forever


def launcher_lost(seen: str, host: str) -> str:
    """The line about a launcher whose store is gone; `seen`: how that showed."""
    return (
        f"the launcher on {host}, which connects the ranks, {seen}: it was killed, or its host or network failed; run the same "
        f"command again to continue from the last checkpoint"
    )


def check_time_to_leave(patience: float, seconds: float | None) -> None:
    """Raise UserError when a launcher that ends all ranks `seconds` after the first has left would do so before the verdict."""
    if seconds is not None and seconds < patience + VERDICT_SECONDS:
        raise UserError(
            f"parallel.lost_after_seconds={patience:g}: srun ends all tasks {seconds:g} s after the first, before they can name "
            f"a lost rank: set LIMOE_WAIT={patience + VERDICT_SECONDS:.0f} or more in slurm/site.env, or shorten "
            f"parallel.lost_after_seconds"
        )


def _alive(rank: int) -> str:
    return f"limoe/alive/{rank}"
