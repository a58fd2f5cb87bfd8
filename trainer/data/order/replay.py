"""Going on in the middle of an epoch: its shuffle is drawn again, with mere places in the stead of pairs.

What a shuffle draws depends on how many pairs there are and not on what they are. So where the lengths of the shards are
known, the draws up to a position are repeated without opening one. Then the shards that still have pairs in the buffer, or
that are half read, are opened for these alone. A shard whose length is not known is read when the draws come to it.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

from trainer.data.order.progress import changed
from trainer.data.order.reading import Pair, ShardReader
from trainer.data.order.shuffle import shuffled

Place = tuple[int, int]
"""A pair by its shard's index in the epoch and its own among the usable ones of that shard."""


@dataclass(frozen=True)
class Resumed:
    """An epoch some draws later. The reader stands where it would stand had it read all along."""

    drawn: int  # as many as asked for, or all that the epoch has
    held: list[Pair]  # in the shuffle buffer
    rest: Iterator[Pair]  # to come after those


def replay_epoch(reader: ShardReader, shards: list[str], buffer: int, rng: random.Random, draws: int) -> Resumed:
    """Begin an epoch of these shards and move on by so many draws of its shuffle, uncounted.

    Afterwards `rng` is as after these draws. Raises UserError for a shard that holds fewer pairs than are known of it.
    """
    places = _Places(reader, shards)
    held: list[Place | Pair] = []
    drawn = sum(1 for _ in islice(shuffled(iter(places), buffer, rng, held), draws))
    pairs, rest = places.restore(held)
    reader.noted.take()
    return Resumed(drawn, pairs, rest)


class _Places:
    """The places of an epoch's pairs in reading order; for shards of unknown length, the pairs themselves."""

    def __init__(self, reader: ShardReader, shards: list[str]) -> None:
        self._reader = reader
        self._shards = shards
        self._before = reader.opened
        self._reached: Place = (-1, -1)
        self._reading: Iterator[Pair] | None = None  # what is left of the shard that was reached, if it had to be read
        self._ended = False

    def __iter__(self) -> Iterator[Place | Pair]:
        for index, shard in enumerate(self._shards):
            length = self._reader.lengths.get(shard)
            if length is None:
                self._reading = self._reader.read_one(shard, self._number(index))
                for ordinal, pair in enumerate(self._reading):
                    self._reached = (index, ordinal)
                    yield pair
                self._reading = None
                continue
            for ordinal in range(length):
                self._reached = (index, ordinal)
                yield self._reached
        self._ended = True

    def restore(self, held: list[Place | Pair]) -> tuple[list[Pair], Iterator[Pair]]:
        """The pairs at held places, and those after the place that was reached. Opens each shard that it must, once."""
        wanted: dict[int, set[int]] = {}
        for item in held:
            if not isinstance(item, Pair):
                wanted.setdefault(item[0], set()).add(item[1])
        index, ordinal = self._reached
        found: dict[Place, Pair] = {}
        for other in sorted(wanted.keys() - (set() if self._ended else {index})):
            found |= self._find(self._open(other), other, wanted[other], max(wanted[other]) + 1)
        if self._ended:
            self._reader.pass_over(self._shards)
            rest: Iterator[Pair] = iter(())
        else:
            current = self._reading
            if current is None:
                current = self._open(index)
                found |= self._find(current, index, wanted.get(index, set()), ordinal + 1)
            self._reader.opened = self._reader.last_usable = self._number(index)
            rest = chain(current, self._reader.read(self._shards[index + 1 :]))
        return [item if isinstance(item, Pair) else found[item] for item in held], rest

    def _find(self, pairs: Iterator[Pair], index: int, ordinals: set[int], read: int) -> dict[Place, Pair]:
        """The pairs of these ordinals among the next `read` of a shard, which must be there."""
        found, count = {}, 0
        for ordinal, pair in enumerate(islice(pairs, read)):
            count += 1
            if ordinal in ordinals:
                found[(index, ordinal)] = pair
        if count < read:
            shard = self._shards[index]
            raise changed(shard, count, self._reader.lengths.get(shard) or read)
        return found

    def _open(self, index: int) -> Iterator[Pair]:
        return self._reader.read_one(self._shards[index], self._number(index))

    def _number(self, index: int) -> int:
        return self._before + index + 1
