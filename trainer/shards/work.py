"""Many processes that convert samples; what they give comes in the order of the plan, however many they are."""

import contextlib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from trainer.data.shards.write import packed_sample
from trainer.data.workers import WorkerIterator
from trainer.shards.convert import Wish, convert
from trainer.shards.keys import safe_key
from trainer.shards.plan import Item, Plan
from trainer.shards.source import Source
from trainer.shards.unfit import Bad, Unfit

AT_ONCE = 8  # samples that a process converts before it hands them over: a few images of full size fit into memory
NICE = 5  # other programs of the machine go first


@dataclass(frozen=True)
class Done:
    """A sample, ready for its shard. block: see packed_sample."""

    block: bytes
    captions: int
    resized: bool


Outcome = Done | Bad


@dataclass(frozen=True)
class Work:
    """What the processes need to know. It is sent to them."""

    source: Source
    plan: Plan
    wish: Wish

    def outcomes(self, numbers: range, workers: int) -> Generator[Outcome, None, None]:
        """Convert the items with these numbers, in order, in so many processes besides this one; 0: in this one.

        Raises UserError when a process is killed.
        """
        share = _Share(self, numbers, max(1, workers), polite=workers > 0)
        if workers == 0:
            for outcomes in share(0):
                yield from outcomes
            return
        parcels = WorkerIterator(share, workers, remedy="use fewer workers=; the same command goes on where this one stopped")
        try:
            for outcomes in parcels:
                yield from outcomes
        finally:
            parcels.close()

    def convert(self, item: Item) -> Outcome:
        """One of them."""
        try:
            converted = convert(self.source.read(item.places), self.source.rule, self.wish)
        except Unfit as problem:
            return Bad(item.key, problem.kind, str(problem))
        block = packed_sample(safe_key(item.key, item.repeat), converted.files)
        return Done(block, converted.captions, converted.resized)


@dataclass(frozen=True)
class _Share:
    """What each of `workers` processes does: AT_ONCE items, then those that many further on that the others leave to it."""

    work: Work
    numbers: range
    workers: int
    polite: bool

    def __call__(self, worker: int) -> Iterator[list[Outcome]]:
        if self.polite:
            with contextlib.suppress(OSError):
                os.nice(NICE)
        for start in range(worker * AT_ONCE, len(self.numbers), self.workers * AT_ONCE):
            chosen = self.numbers[start : start + AT_ONCE]
            yield [self.work.convert(self.work.plan.item(number)) for number in chosen]
