"""Reading the shards of one stream: their usable pairs, how many each has, and what could not be used."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from trainer.data.order.progress import ShardLengths
from trainer.data.shards.archive import warn_once
from trainer.data.shards.captions import CaptionRule, TooSmall, require_pair
from trainer.data.shards.opening import Remote
from trainer.data.shards.samples import Unusable, read_samples
from trainer.errors import UserError

REASONS_SHOWN = 3


@dataclass
class Pair:
    """An undecoded image and its captions. If it proves unusable, `image` is emptied and `problem` says why."""

    shard: str
    id: str
    image: bytes
    captions: Sequence[str]
    chances: list[float] | None = None  # of the captions, in proportion; None: all the same
    lost: bool = False  # stands in for a pair that can no longer be read
    problem: str = ""


@dataclass
class Tally:
    """What was read since the last `take`: samples and shards, and by shard the unusable samples and the breaks among them.

    left_out: samples that are smaller than their source asks for.
    """

    read: int = 0
    left_out: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    shards: int = 0  # opened
    bad_shards: Counter[str] = field(default_factory=Counter)

    def note_bad(self, shard: str, sample_id: str, problem: Unusable) -> None:
        """Count an unusable sample, and log the first of its shard."""
        self.bad[shard] += 1
        warn_once(shard, "unusable samples, such as", f"{sample_id.removeprefix(shard + '/')}, {problem}")

    def add(self, other: "Tally") -> None:
        """Add the counts of another."""
        self.read += other.read
        self.left_out += other.left_out
        self.bad.update(other.bad)
        self.shards += other.shards
        self.bad_shards.update(other.bad_shards)

    def take(self) -> "Tally":
        """What was counted so far; counting starts again at zero."""
        taken = Tally(self.read, self.left_out, self.bad, self.shards, self.bad_shards)
        self.read, self.left_out, self.bad, self.shards, self.bad_shards = 0, 0, Counter(), 0, Counter()
        return taken


class Patience:
    """Ends a search for a usable pair after too many different shards without one, and says what was found instead.

    Different ones, since with few shards an empty one may well come many times in a row by chance.
    """

    def __init__(self, shards: int, samples: int = 0) -> None:
        """The number of shards without a usable pair that ends it, if at least the given number of their samples were seen."""
        self._most = shards
        self._least_samples = samples
        self._shards: dict[str, None] = {}
        self._reasons: dict[str, tuple[int, str]] = {}  # how often, and the first sample of it

    def found(self) -> None:
        """There was a usable pair."""
        if self._shards:
            self._shards.clear()
            self._reasons.clear()

    def missed(self, shard: str) -> None:
        """A shard had none, as far as it was read. Raises UserError when it was one too many."""
        self._shards[shard] = None
        samples = sum(count for count, _ in self._reasons.values())
        if len(self._shards) >= self._most and samples >= self._least_samples:
            seen = list(self._shards)
            raise UserError(
                f"{len(seen)} shard{'s in a row' if len(seen) > 1 else ''} without a usable pair, "
                f"from {seen[0]} to {seen[-1]}: {self._said()}"
            )

    def saw(self, sample_id: str, problem: object) -> None:
        """A sample, or the rest of a shard, could not be used."""
        count, first = self._reasons.get(str(problem), (0, sample_id))
        self._reasons[str(problem)] = (count + 1, first)

    def _said(self) -> str:
        if not self._reasons:
            return "they contain no samples, which are files such as 000.jpg and 000.txt"
        often = sorted(self._reasons.items(), key=lambda reason: -reason[1][0])[:REASONS_SHOWN]
        return "; ".join(f"{problem} ({count} times, such as {first})" for problem, (count, first) in often)


class ShardReader:
    """Reads shards one after the other. It counts the shards, learns their lengths, and notes the samples that are no pairs."""

    def __init__(self, captions: CaptionRule, lengths: ShardLengths, patience: Patience, remote: Remote | None = None) -> None:
        """`patience` ends a row of shards that have no usable pair."""
        self.lengths = lengths
        self.noted = Tally()
        self.patience = patience
        self._captions = captions
        self._remote = remote

    def read(self, epoch: int, shards: Sequence[str]) -> Iterator[Pair]:
        """The usable pairs of shards, opened in turn. Raises UserError when too many in a row have none."""
        for shard in shards:
            yield from self.read_one(epoch, shard)

    def read_one(self, epoch: int, shard: str) -> Iterator[Pair]:
        """The usable pairs of one shard of an epoch. Raises UserError for a shard that has changed, and as `read` does."""
        pairs, whole = 0, True
        self.noted.shards += 1
        for sample in read_samples(shard, self._remote):
            if sample.broken:
                whole = False
                self.noted.bad_shards[shard] += 1
                self.patience.saw(shard, sample.broken)
                continue
            try:
                image, captions, chances = require_pair(sample, self._captions)
            except Unusable as problem:
                self.noted.read += 1
                if isinstance(problem, TooSmall):
                    self.noted.left_out += 1
                else:
                    self.noted.note_bad(shard, sample.id, problem)
                self.patience.saw(sample.id, problem)
            else:
                pairs += 1
                self.patience.found()
                yield Pair(shard, sample.id, image, captions, chances)
        self.lengths.learn(epoch, shard, pairs, whole)
        if not pairs:
            self.patience.missed(shard)

    def pass_over(self, epoch: int, shards: Sequence[str]) -> None:
        """Count shards of known length as if they had been opened and read."""
        for shard in shards:
            if self.lengths.get(shard, epoch):
                self.patience.found()
