"""One canonical stream: an endless, shuffled sequence of pairs with a position.

Positions count pairs that have an image file and a caption, which is known without decoding. So a stream can start at
any position without decoding what comes before it, and usually without reading it.
"""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, groupby
from operator import itemgetter
from typing import Protocol

from trainer.data.order.dealing import stream_shards
from trainer.data.order.progress import ShardLengths
from trainer.data.order.reading import Pair, Patience, ShardReader, Tally
from trainer.data.order.replay import replay_epoch
from trainer.data.order.shuffle import shuffled
from trainer.data.shards.captions import CaptionRule
from trainer.data.shards.opening import Remote

PATIENCE = 16  # different shards in a row, beyond two epochs of a stream's own, that may have no usable pair


class Spare(Protocol):
    """A stream that has more pairs to look at."""

    def look_ahead(self, distance: int) -> Pair:
        """The pair that will be taken after `distance` others."""

    def patience(self, samples: int = 0) -> Patience:
        """A new limit for a search through its shards."""


@dataclass(frozen=True)
class Taken:
    """A pair and the generator for its augmentation; it has index `row` among the `of` that were taken at once.

    source: its name, in a mixture.
    """

    pair: Pair
    rng: random.Random
    stream: Spare
    row: int
    of: int
    source: str = ""

    def substitutes(self) -> Iterator[Pair]:
        """Pairs to stand in for this one, from after those it was taken with: none that is offered to another of these."""
        return (self.stream.look_ahead(distance) for distance in count(self.row, self.of))


class Stream:
    """What `next` returns, and what `tally` has counted at a position, depend only on seed and shards."""

    def __init__(
        self,
        shards: list[str],
        seed: int | str,
        stream: int,
        streams: int,
        shuffle_buffer: int,
        captions: CaptionRule | None = None,
        start: int = 0,
        lengths: ShardLengths | None = None,
        remote: Remote | None = None,
        replacement: bool = False,
    ) -> None:
        """Stream number `stream` of `streams`, as if `start` pairs had been taken from it, uncounted.

        Of the shards with known `lengths`, this reads only those with pairs in the shuffle buffer and the one read halfway.
        """
        self.tally = Tally()
        self.position = start
        self._name = f"{seed}/{stream}"
        self._buffer = max(1, shuffle_buffer)
        self._most_missed = min(len(shards), 2 * -(-len(shards) // streams) + PATIENCE)
        self._reader = ShardReader(captions or CaptionRule(), lengths or ShardLengths(), self.patience(), remote)
        self._epochs = groupby(stream_shards(shards, seed, stream, streams, replacement), itemgetter(0))
        self._ahead: deque[tuple[Pair, Tally]] = deque()
        self._pairs = self._all_epochs(start)

    def next(self) -> tuple[Pair, random.Random]:
        """The next pair, and the generator for the augmentation at its position.

        Raises UserError when a shard that a resumed stream needs has changed, or too many have no usable pair.
        """
        pair, noted = self._ahead.popleft() if self._ahead else self.pull()
        rng = self.generator(self.position)
        self.position += 1
        self.tally.read += not pair.lost
        self.tally.add(noted)
        return pair, rng

    def take(self, count: int) -> list["Taken"]:
        """The next pairs, which belong together: if one of them proves unusable, it is replaced by one after them all."""
        return [Taken(*self.next(), self, row, count) for row in range(count)]

    def generator(self, position: int) -> random.Random:
        """What the crop and the caption of a pair are drawn from."""
        return random.Random(f"{self._name}/{position}")

    def look_ahead(self, distance: int) -> Pair:
        """The pair that `next` will return after `distance` others, to stand in for an undecodable one; the position stays."""
        while len(self._ahead) <= distance:
            self._ahead.append(self.pull())
        pair, _ = self._ahead[distance]
        return pair

    def patience(self, samples: int = 0) -> Patience:
        """A new limit for a search through this stream's shards, which needs at least the given number of samples."""
        return Patience(self._most_missed, samples)

    def pull(self) -> tuple[Pair, Tally]:
        """A pair, and what was noted on the way to it: it counts when the pair is taken, not when it is looked at."""
        return next(self._pairs), self._reader.noted.take()

    def _all_epochs(self, skipped: int) -> Iterator[Pair]:
        # The buffer is emptied at the end of an epoch, so that the stream has each of its samples once per epoch.
        for epoch, group in self._epochs:
            shards = [shard for _, shard in group]
            lengths = [self._reader.lengths.get(shard, epoch) for shard in shards]
            known = [length for length in lengths if length is not None]
            # An epoch that ends right here is drawn again: what follows its last pair is still to be read, and counted.
            if len(known) == len(shards) and sum(known) < skipped:
                self._reader.pass_over(epoch, shards)
                skipped -= sum(known)
                continue
            rng = random.Random(f"{self._name}/shuffle/{epoch}")
            held: list[Pair] = []
            if skipped:
                resumed = replay_epoch(self._reader, epoch, shards, self._buffer, rng, skipped)
                skipped -= resumed.drawn
                held, rest = resumed.held, resumed.rest
            else:
                rest = self._reader.read(epoch, shards)
            yield from shuffled(rest, self._buffer, rng, held)
