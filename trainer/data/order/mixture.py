"""Several sources in one order: which source each pair comes from, and which of its pairs that is.

Every canonical stream is a mixture of its own. At any position it has drawn as many pairs from each source as the shares say,
give or take one or two, and so, nearly, have all streams together: where one rounds up, another rounds down. These numbers are a
formula of the position. So any process can begin anywhere, and ranks and workers share the streams as those of a single source.

The pairs of a source are dealt into streams too, as many as its shards allow. If these are fewer than the canonical ones, several
neighbours share one, and take its pairs in turn.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cache
from typing import Any

from trainer.data.order.dealing import Rows
from trainer.data.order.progress import ShardLengths
from trainer.data.order.reading import Pair, Patience, Tally
from trainer.data.order.stream import Stream, Taken
from trainer.data.shards.captions import CaptionRule
from trainer.data.shards.opening import Remote

PRIMES = (2, 3, 5, 7, 11)  # one for each halving of the most sources after the first


@dataclass(frozen=True)
class Source:
    """Where pairs come from. name: "" for the only one of a run that names none; replacement: whether shards are drawn so."""

    name: str
    shards: list[str]
    rule: CaptionRule
    replacement: bool = False


@dataclass(frozen=True)
class Phase:
    """The shares that hold from a number of pairs on, until the next phase.

    parts: of each source, whole numbers in relation to one another; asked: what they were worked out from, as plain values.
    """

    pairs: int
    parts: dict[str, int]
    asked: dict[str, Any] = field(default_factory=dict)

    def share(self, name: str) -> float:
        """From 0 to 1."""
        return self.parts.get(name, 0) / sum(self.parts.values())


ALONE = Phase(0, {"": 1})
"""That of a single source without a name."""


@dataclass(frozen=True)
class Mixture:
    """The sources of a run and their shares since its beginning; the last phase names all of the sources."""

    sources: list[Source]
    phases: list[Phase]

    @classmethod
    def of_one(cls, shards: Sequence[str], rule: CaptionRule) -> "Mixture":
        """A single source without a name."""
        return cls([Source("", list(shards), rule)], [ALONE])

    @property
    def names(self) -> list[str]:
        """Of the sources, in their order; empty if the only one has no name."""
        return [source.name for source in self.sources if source.name]

    @property
    def shards(self) -> int:
        """Of all sources together; one that two of them name counts for each."""
        return sum(len(source.shards) for source in self.sources)

    @property
    def most_shards(self) -> int:
        """Of the source that has most: what the number of canonical streams depends on."""
        return max(len(source.shards) for source in self.sources)

    def recorded(self) -> list[dict[str, Any]]:
        """The phases as a checkpoint keeps them."""
        return [] if self.phases == [ALONE] else [asdict(phase) for phase in self.phases]

    def drawn(self, stream: int, streams: int, position: int) -> dict[str, int]:
        """How many of a stream's pairs before a position came from each source."""
        total: dict[str, int] = {}
        ends = [phase.pairs // streams for phase in self.phases[1:]] + [position]
        for phase, end in zip(self.phases, ends, strict=True):
            length = max(0, min(end, position) - phase.pairs // streams)
            for name, count in zip(phase.parts, dealt(tuple(phase.parts.values()), stream, streams, length), strict=True):
                total[name] = total.get(name, 0) + count
        return total

    def drawn_by_all(self, streams: int, pairs: int) -> dict[str, int]:
        """How many of the first pairs of the run came from each source."""
        total = dict.fromkeys(self.phases[-1].parts, 0)
        for stream in range(streams):
            for name, count in self.drawn(stream, streams, pairs // streams).items():
                total[name] = total.get(name, 0) + count
        return total

    def seed(self, seed: int, name: str) -> str:
        """What a source's order is drawn from. One that a run began with alone has the order it would have without a name."""
        return str(seed) if [*self.phases[0].parts] == [name] else f"{seed}/{name}"

    def streams_of(self, source: Source, streams: int) -> int:
        """How many streams a source's shards are dealt into: a divisor of the canonical ones."""
        return max(count for count in range(1, min(streams, len(source.shards)) + 1) if streams % count == 0)

    def buffer_of(self, source: Source, streams: int, shuffle_buffer: int) -> int:
        """The shuffle buffer of a source's streams: of all sources together, they hold as much as a single source's would.

        It depends on the share that the source began with, since a resumed order needs the buffer of the interrupted one.
        """
        share = next(phase.share(source.name) for phase in self.phases if source.name in phase.parts)
        return min(shuffle_buffer, math.ceil(shuffle_buffer * share * (streams // self.streams_of(source, streams))))


def dealt(parts: tuple[int, ...], stream: int, streams: int, count: int, halved: int = 0) -> list[int]:
    """How many of the first `count` pairs of a canonical stream come from each source.

    They are split between the first and the second half of the sources in proportion, and so on; halved: how often they were.
    Each number is rounded up or down so that over the streams the roundings are spread evenly.
    """
    if len(parts) == 1:
        return [count]
    middle, whole = len(parts) // 2, sum(parts)
    first = sum(parts[:middle])
    # floor(count * first / whole + a fraction that differs from stream to stream), in whole numbers
    taken = (count * first * streams + _places(halved, streams)[stream] * whole) // (whole * streams) if first < whole else count
    rest = dealt(parts[middle:], stream, streams, count - taken, halved + 1)
    return dealt(parts[:middle], stream, streams, taken, halved + 1) + rest


@cache
def _places(halved: int, streams: int) -> list[int]:
    """The place of each stream in the order in which they round up, from the last: another order each time (Hammersley's points).

    At first one after the other, where floor(x) + floor(x + 1/n) + … = floor(n x) makes the sum over the streams exact.
    """
    if halved == 0:
        return list(range(streams))
    in_order = sorted(range(streams), key=lambda stream: _radical_inverse(stream, PRIMES[halved - 1]))
    place_of = {stream: place for place, stream in enumerate(in_order)}
    return [place_of[stream] for stream in range(streams)]


def _radical_inverse(number: int, base: int) -> Fraction:
    """Its digits mirrored at the point: from 0 to 1."""
    mirrored, digit = Fraction(0), Fraction(1, base)
    while number:
        mirrored += digit * (number % base)
        number, digit = number // base, digit / base
    return mirrored


class Shared:
    """A source's stream that several canonical streams share, `takers` of them, whose pairs come to them in turn."""

    def __init__(self, stream: Stream, takers: int) -> None:
        self.stream = stream
        self.takers = takers
        self.here: dict[int, Turn] = {}
        """Those that this reader reads for; the pairs of the others are left to their readers."""

    def deal(self) -> None:
        """Give the next pair to whose turn it is."""
        index = self.stream.position
        self.stream.position += 1
        pair, noted = self.stream.pull()
        if (taker := self.here.get(index % self.takers)) and index // self.takers >= taker.first:
            taker.ahead.append((pair, noted))


class Turn:
    """Every n-th pair of a stream that is shared; like a Stream otherwise."""

    def __init__(self, shared: Shared, turn: int, start: int) -> None:
        """Begins as if `start` pairs had been taken from it."""
        self.tally = Tally()
        self.ahead: deque[tuple[Pair, Tally]] = deque()
        self.first = start
        self._shared, self._turn, self._position = shared, turn, start
        shared.here[turn] = self

    def take(self, count: int) -> list[Taken]:
        """As Stream.take."""
        taken = []
        for row in range(count):
            self.look_ahead(0)
            pair, noted = self.ahead.popleft()
            rng = self._shared.stream.generator(self._position * self._shared.takers + self._turn)
            self._position += 1
            self.tally.read += not pair.lost
            self.tally.add(noted)
            taken.append(Taken(pair, rng, self, row, count))
        return taken

    def look_ahead(self, distance: int) -> Pair:
        """As Stream.look_ahead."""
        while len(self.ahead) <= distance:
            self._shared.deal()
        return self.ahead[distance][0]

    def patience(self, samples: int = 0) -> Patience:
        """As Stream.patience."""
        return self._shared.stream.patience(samples)


class MixedStream:
    """A canonical stream of several sources."""

    def __init__(self, mixture: Mixture, stream: int, streams: int, start: int, parts: Mapping[str, Stream | Turn]) -> None:
        """Begins at a position; parts: what it takes from each source, at the place that belongs to this position."""
        self.tally = Tally()
        self._mixture = mixture
        self._stream, self._streams, self._position = stream, streams, start
        self._parts = parts

    def take(self, count: int) -> list[Taken]:
        """As Stream.take."""
        order = list(self._order(count))
        taken = {name: iter(part.take(order.count(name))) for name, part in self._parts.items()}
        self._position += count
        for part in self._parts.values():
            self.tally.add(part.tally.take())
        return [replace(next(taken[name]), source=name) for name in order]

    def _order(self, count: int) -> Iterator[str]:
        """The sources of the next pairs."""
        before = self._mixture.drawn(self._stream, self._streams, self._position)
        for position in range(self._position + 1, self._position + count + 1):
            after = self._mixture.drawn(self._stream, self._streams, position)
            yield next(name for name, drawn in after.items() if drawn > before.get(name, 0))
            before = after


class Reader:
    """The canonical streams that one reader reads, or those of their sources that it needs, and what it learns of the shards."""

    def __init__(
        self,
        mixture: Mixture,
        seed: int,
        streams: int,
        shuffle_buffer: int,
        start: int,
        known: tuple[Mapping[str, int], Mapping[str, int]],
        remote: Remote | None,
    ) -> None:
        """start: pairs of each canonical stream; known: the lengths of shards and what short ones gave, as in DataProgress."""
        self._mixture, self._seed, self._streams, self._start, self._remote = mixture, seed, streams, start, remote
        self._shuffle_buffer = shuffle_buffer
        self._lengths = {
            source.name: ShardLengths(*(_own(source.name, values) for values in known)) for source in mixture.sources
        }

    def open(self, rows: Sequence[Rows]) -> list[Stream] | list[MixedStream]:
        """The streams of these rows, each at its start."""
        numbers = [each.stream for each in rows]
        if len(self._mixture.sources) == 1 and len(self._mixture.phases) == 1:
            (source,) = self._mixture.sources
            return [self._open(source, number, self._streams, self._start) for number in numbers]
        parts: dict[int, dict[str, Stream | Turn]] = {number: {} for number in numbers}
        drawn = {number: self._mixture.drawn(number, self._streams, self._start) for number in numbers}
        for source in self._mixture.sources:
            of_source = self._mixture.streams_of(source, self._streams)
            takers = self._streams // of_source
            begun = {number: drawn[number].get(source.name, 0) for number in numbers}
            if takers > 1:
                self._open_shared(source, of_source, takers, begun, parts)
                continue
            for number in numbers:
                parts[number][source.name] = self._open(source, number, of_source, begun[number])
        return [MixedStream(self._mixture, number, self._streams, self._start, parts[number]) for number in numbers]

    def _open_shared(
        self, source: Source, of_source: int, takers: int, begun: Mapping[int, int], parts: Mapping[int, dict[str, Stream | Turn]]
    ) -> None:
        for own in sorted({number // takers for number in begun}):
            sharing = [number for number in begun if number // takers == own]
            first = min(begun[number] * takers + number % takers for number in sharing)
            shared = Shared(self._open(source, own, of_source, first), takers)
            for number in sharing:
                parts[number][source.name] = Turn(shared, number % takers, begun[number])

    def _open(self, source: Source, number: int, of: int, start: int) -> Stream:
        return Stream(
            source.shards,
            self._mixture.seed(self._seed, source.name),
            number,
            of,
            self._mixture.buffer_of(source, self._streams, self._shuffle_buffer),
            source.rule,
            start,
            self._lengths[source.name],
            self._remote,
            source.replacement,
        )

    def take_news(self) -> tuple[dict[str, int], dict[str, int]]:
        """What was learned since the last call: the lengths of shards, and what short ones gave."""
        lengths: dict[str, int] = {}
        short: dict[str, int] = {}
        for name, learned in self._lengths.items():
            lengths |= _of_source(name, learned.take_news())
            short |= _of_source(name, learned.take_short_news())
        return lengths, short


def _of_source(name: str, values: Mapping[str, int]) -> dict[str, int]:
    """With the source in the keys: two sources may read a shard in different ways."""
    return {f"{name}:{key}" if name else key: value for key, value in values.items()}


def _own(name: str, values: Mapping[str, int]) -> dict[str, int]:
    """The opposite."""
    prefix = f"{name}:" if name else ""
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
