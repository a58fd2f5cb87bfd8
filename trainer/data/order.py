"""The order of the training data: canonical streams, which depend on the seed and the shards and on nothing else.

C streams share the shards; the global batch takes the same number of pairs from each. Ranks and workers own whole streams, so
the pairs of step s are the same for every number of ranks and workers (as in MosaicML Streaming's elastic determinism).
Positions are counted in pairs that have an image file and a caption, which is seen without decoding. So a stream can be
moved to any position without decoding what lies before it.
"""

import random
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice

from trainer.data.captions import require_pair
from trainer.data.samples import Unusable, read_samples, warn_once
from trainer.errors import UserError

MOST_STREAMS = 64  # unless there are more readers: every stream holds its own shuffle buffer
PATIENCE = 8  # shards in a row, beyond two epochs of a stream's own, that may be without a single usable pair


@dataclass
class Pair:
    """An undecoded image and what is said about it. `image` is emptied once it proved undecodable."""

    shard: str
    id: str
    image: bytes
    captions: list[str]
    opened: int  # shards that its stream had opened by then


@dataclass
class Tally:
    """Samples read, and the unusable ones among them by shard, since the last `take`."""

    read: int = 0
    bad: Counter[str] = field(default_factory=Counter)

    def note_bad(self, shard: str, sample_id: str, problem: Unusable) -> None:
        """Count an unusable sample, and log the first of its shard."""
        self.bad[shard] += 1
        warn_once(shard, "unusable samples, such as", f"{sample_id.removeprefix(shard + '/')}, {problem}")

    def take(self) -> "Tally":
        """What was counted so far; counting starts again at zero."""
        taken = Tally(self.read, self.bad)
        self.read, self.bad = 0, Counter()
        return taken


def stream_shards(shards: list[str], seed: int, stream: int, streams: int) -> Iterator[tuple[int, str]]:
    """A stream's endless (epoch, shard): every streams-th of all epochs' shuffled shard lists, laid end to end."""

    def all_epochs() -> Iterator[tuple[int, str]]:
        for epoch in count():
            order = list(shards)
            random.Random(f"{seed}/shards/{epoch}").shuffle(order)
            yield from ((epoch, shard) for shard in order)

    return islice(all_epochs(), stream, None, streams)


def choose_streams(shards: int, batch_size: int, readers: int, wanted: int | None = None, layout: str = "") -> int:
    """How many canonical streams C a run has; C never exceeds the shards and divides the global batch, and `readers` divides C.

    When not `wanted`: the largest power of two up to 64, so that most numbers of ranks and workers agree on it; where the
    readers do not divide that, the largest of their multiples that fits. `layout` tells readers in words for the errors.
    Raises UserError when there is no such number.
    """
    said = f"{readers} readers{layout}"
    if shards < readers:
        raise UserError(f"{shards} shards for {said}: use fewer data.workers or more shards")
    if batch_size % readers:
        raise UserError(
            f"a batch of {batch_size} pairs cannot be shared evenly by {said}: use a multiple of {readers}, or other data.workers"
        )
    if wanted is not None:
        _check_wanted(wanted, shards, batch_size, readers, said)
        return wanted
    powers = [
        2**exponent for exponent in range(MOST_STREAMS.bit_length()) if 2**exponent <= shards and batch_size % 2**exponent == 0
    ]
    if powers[-1] % readers == 0:
        return powers[-1]
    most = min(shards, max(MOST_STREAMS, readers))
    return next(streams for streams in range(most // readers * readers, 0, -readers) if batch_size % streams == 0)


def _check_wanted(wanted: int, shards: int, batch_size: int, readers: int, said: str) -> None:
    if wanted < 1:
        raise UserError(f"data.streams={wanted} should be at least 1, or null to have it chosen")
    if wanted > shards:
        raise UserError(f"data.streams={wanted} is more than the {shards} shards: use fewer streams, or null to have it chosen")
    if wanted % readers:
        raise UserError(f"data.streams={wanted} is no multiple of the {said}: change data.workers or data.streams")
    if batch_size % wanted:
        raise UserError(
            f"a batch of {batch_size} pairs is no multiple of data.streams={wanted}: change train.batch_size or data.streams"
        )


class Stream:
    """One canonical stream: an endless, shuffled sequence of pairs with a position."""

    def __init__(
        self, shards: list[str], seed: int, stream: int, streams: int, shuffle_buffer: int, caption_key: str | None = None
    ) -> None:
        self.tally = Tally()
        self.position = 0
        self._caption_key = caption_key
        self._name = f"{seed}/{stream}"
        self._buffer = max(1, shuffle_buffer)
        self._shards = stream_shards(shards, seed, stream, streams)
        self._ahead: deque[Pair] = deque()
        self._pairs = self._shuffled_epochs()
        self._opened = 0
        self._last_taken = 0  # this and the next in shards opened
        self._last_usable = 0
        self._patience = 2 * -(-len(shards) // streams) + min(len(shards), PATIENCE)

    def next(self) -> tuple[Pair, random.Random]:
        """The next pair, and the generator that augments what stands at its position."""
        pair = self._ahead.popleft() if self._ahead else next(self._pairs)
        rng = random.Random(f"{self._name}/{self.position}")
        self.position += 1
        self.tally.read += 1
        self._last_taken = pair.opened
        return pair, rng

    def look_ahead(self, distance: int) -> Pair:
        """The pair that `next` will return after `distance` others, to stand in for an undecodable one; the position stays.

        Raises UserError when this leads so far ahead that the stream must be taken for useless.
        """
        while len(self._ahead) <= distance:
            self._ahead.append(next(self._pairs))
        pair = self._ahead[distance]
        self._check_patience(pair.opened - self._last_taken, pair.shard)
        return pair

    def skip(self, pairs: int) -> None:
        """Move on as if `pairs` pairs had been taken, uncounted."""
        for _ in range(pairs):
            self.next()
        self.tally.take()

    def _check_patience(self, shards: int, last: str) -> None:
        if shards > self._patience:
            raise UserError(f"{shards} shards in a row without one usable pair, the last is {last}: see the warnings above")

    def _shuffled_epochs(self) -> Iterator[Pair]:
        # The buffer is emptied at the end of an epoch, so that the stream has each of its samples once an epoch.
        (epoch, shard) = next(self._shards)
        while True:
            current, members = epoch, [shard]
            for epoch, shard in self._shards:
                if epoch != current:
                    break
                members.append(shard)
            yield from shuffled(self._read(members), self._buffer, random.Random(f"{self._name}/shuffle/{current}"))

    def _read(self, shards: list[str]) -> Iterator[Pair]:
        for shard in shards:
            self._opened += 1
            self._check_patience(self._opened - self._last_usable, shard)
            for sample in read_samples(shard):
                try:
                    image, captions = require_pair(sample, self._caption_key)
                except Unusable as problem:
                    self.tally.read += 1
                    self.tally.note_bad(shard, sample.id, problem)
                else:
                    self._last_usable = self._opened
                    yield Pair(shard, sample.id, image, captions, self._opened)


def shuffled(pairs: Iterator[Pair], buffer: int, rng: random.Random) -> Iterator[Pair]:
    """All the pairs once, in an order drawn through a buffer.

    It starts with a quarter of the buffer filled and then reads two for each one it gives, so that a run starts sooner.
    """
    held: list[Pair] = []
    for pair in pairs:
        held.append(pair)
        if len(held) < buffer and (another := next(pairs, None)) is not None:
            held.append(another)
        if len(held) >= max(1, buffer // 4):
            yield _draw(held, rng)
    while held:
        yield _draw(held, rng)


def _draw(held: list[Pair], rng: random.Random) -> Pair:
    chosen = rng.randrange(len(held))
    held[chosen], held[-1] = held[-1], held[chosen]
    return held.pop()
