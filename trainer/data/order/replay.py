"""Resuming in the middle of an epoch: its shuffle is drawn again, with positions in place of pairs.

What a shuffle draws depends only on how many pairs there are. So if the lengths of the shards are known, the draws up to a
position are repeated without opening any shard. Then only the shards with pairs left in the buffer, and those read halfway, are
opened. A shard of unknown length is read when the draws reach it.

If a shard that is opened again ends before a pair that is needed, a lost pair takes its place: the order stays the same, and the
loader replaces it like an image that cannot be decoded.
"""

import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

from trainer.data.order.progress import changed
from trainer.data.order.reading import Pair, ShardReader
from trainer.data.order.shuffle import shuffled
from trainer.errors import UserError

logger = logging.getLogger(__name__)

Place = tuple[int, int]
"""A pair, as the index of its shard in the epoch and its own index among that shard's usable pairs."""


@dataclass(frozen=True)
class Resumed:
    """An epoch some draws later. The reader is where it would be if it had read everything."""

    drawn: int  # as many as asked for, or all that the epoch has
    held: list[Pair]  # in the shuffle buffer
    rest: Iterator[Pair]  # to come after those


def replay_epoch(reader: ShardReader, epoch: int, shards: list[str], buffer: int, rng: random.Random, draws: int) -> Resumed:
    """Begin an epoch of these shards and skip the given number of draws of its shuffle, uncounted.

    Afterwards `rng` is as after these draws. Raises UserError for a shard that has fewer pairs than are known of it, and when
    no shard that is needed can be read.
    """
    places = _Places(reader, epoch, shards)
    held: list[Place | Pair] = []
    drawn = sum(1 for _ in islice(shuffled(iter(places), buffer, rng, held), draws))
    pairs, rest = places.restore(held)
    reader.noted.take()
    return Resumed(drawn, pairs, rest)


class _Places:
    """The places of an epoch's pairs in reading order; for shards of unknown length, the pairs themselves."""

    def __init__(self, reader: ShardReader, epoch: int, shards: list[str]) -> None:
        self._reader = reader
        self._epoch = epoch
        self._shards = shards
        self._reached: Place = (-1, -1)
        self._reading: Iterator[Pair] | None = None  # what is left of the shard that was reached, if it had to be read
        self._ended = False

    def __iter__(self) -> Iterator[Place | Pair]:
        for index, shard in enumerate(self._shards):
            length = self._reader.lengths.get(shard, self._epoch)
            if length is None:
                self._reading = self._reader.read_one(self._epoch, shard)
                for ordinal, pair in enumerate(self._reading):
                    self._reached = (index, ordinal)
                    yield pair
                self._reading = None
                if self._reader.lengths.is_short(shard, self._epoch):
                    logger.warning(
                        "%s ends early, so its length is unknown: the run may continue at a different pair from where it stopped",
                        shard,
                    )
                continue
            for ordinal in range(length):
                self._reached = (index, ordinal)
                yield self._reached
        self._ended = True

    def restore(self, held: list[Place | Pair]) -> tuple[list[Pair], Iterator[Pair]]:
        """The pairs at held positions, and those after the position that was reached. Opens each shard that it needs, once."""
        wanted: dict[int, set[int]] = {}
        for item in held:
            if not isinstance(item, Pair):
                wanted.setdefault(item[0], set()).add(item[1])
        index, ordinal = self._reached
        found: dict[Place, Pair] = {}
        for other in sorted(wanted.keys() - (set() if self._ended else {index})):
            found |= self._find(self._open(other), other, wanted[other], max(wanted[other]) + 1)
        if self._ended:
            self._reader.pass_over(self._epoch, self._shards)
            rest: Iterator[Pair] = iter(())
        else:
            current = self._reading
            if current is None:
                places = self._reader.lengths.get(self._shards[index], self._epoch) or 0
                current = self._open(index)
                found |= self._find(current, index, wanted.get(index, set()), ordinal + 1)
                if self._reader.lengths.is_short(self._shards[index], self._epoch):  # whatever it contains now
                    current = islice(current, max(0, places - ordinal - 1))
            self._reader.patience.found()
            rest = chain(current, self._reader.read(self._epoch, self._shards[index + 1 :]))
        if found and all(pair.lost for pair in found.values()):
            index, _ = next(iter(found))
            raise self._changed(index, 0)
        return [item if isinstance(item, Pair) else found[item] for item in held], rest

    def _find(self, pairs: Iterator[Pair], index: int, ordinals: set[int], read: int) -> dict[Place, Pair]:
        """The pairs of these ordinals among the next `read` of a shard; lost ones if it ends before them."""
        shard, found, count = self._shards[index], {}, 0
        places = self._reader.lengths.get(shard, self._epoch)
        broken_before = self._reader.noted.bad_shards[shard]
        for ordinal, pair in enumerate(islice(pairs, read)):
            count += 1
            if ordinal in ordinals:
                found[(index, ordinal)] = pair
        if count == read:
            return found
        if self._reader.noted.bad_shards[shard] == broken_before:
            raise self._changed(index, count)
        half_read = index == self._reached[0] and not self._ended
        self._reader.lengths.cut(self._epoch, shard, read if half_read else places or read)
        missing = [(index, ordinal) for ordinal in sorted(ordinals) if (index, ordinal) not in found]
        return found | {place: Pair(shard, f"{shard}/(lost)", b"", [""], lost=True) for place in missing}

    def _changed(self, index: int, pairs: int) -> UserError:
        shard = self._shards[index]
        return changed(shard, pairs, self._reader.lengths.get(shard) or self._reader.lengths.get(shard, self._epoch) or 0)

    def _open(self, index: int) -> Iterator[Pair]:
        return self._reader.read_one(self._epoch, self._shards[index])
