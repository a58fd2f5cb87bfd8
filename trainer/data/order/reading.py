"""Reading the shards of one stream: their usable pairs, how many each holds, and the unusable samples among them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from trainer.data.order.progress import ShardLengths
from trainer.data.shards.captions import CaptionRule, require_pair
from trainer.data.shards.samples import Unusable, read_samples, warn_once
from trainer.errors import UserError


@dataclass
class Pair:
    """An undecoded image and what is said about it. `image` is emptied once it proved unusable, `problem` says why."""

    shard: str
    id: str
    image: bytes
    captions: list[str]
    opened: int  # shards that its stream had opened by then
    problem: str = ""


@dataclass
class Tally:
    """Samples read, and the unusable ones among them by shard, since the last `take`."""

    read: int = 0
    bad: Counter[str] = field(default_factory=Counter)

    def note_bad(self, shard: str, sample_id: str, problem: Unusable) -> None:
        """Count an unusable sample, and log the first of its shard."""
        self.bad[shard] += 1
        warn_once(shard, "unusable samples, such as", f"{sample_id.removeprefix(shard + '/')}, {problem}")

    def add(self, other: "Tally") -> None:
        """Count what another counted, too."""
        self.read += other.read
        self.bad.update(other.bad)

    def take(self) -> "Tally":
        """What was counted so far; counting starts again at zero."""
        taken = Tally(self.read, self.bad)
        self.read, self.bad = 0, Counter()
        return taken


class ShardReader:
    """Reads shards one after the other. It counts the shards, learns their lengths, and notes the samples that are no pairs."""

    def __init__(self, captions: CaptionRule, lengths: ShardLengths, patience: int) -> None:
        """`patience`: shards in a row that may be without a usable pair."""
        self.lengths = lengths
        self.noted = Tally()
        self.opened = 0
        self.last_usable = 0  # in shards opened
        self._captions = captions
        self._patience = patience

    def read(self, shards: Sequence[str]) -> Iterator[Pair]:
        """The usable pairs of shards, opened in turn. Raises UserError when too many in a row have none."""
        for shard in shards:
            self.opened += 1
            self.check_patience(self.opened - self.last_usable, shard)
            yield from self.read_one(shard, self.opened)

    def read_one(self, shard: str, opened: int) -> Iterator[Pair]:
        """The usable pairs of the shard that is number `opened` of its stream."""
        pairs, whole = 0, True
        for sample in read_samples(shard):
            try:
                image, captions = require_pair(sample, self._captions)
            except Unusable as problem:
                whole = whole and not sample.broken
                self.noted.read += 1
                self.noted.note_bad(shard, sample.id, problem)
            else:
                pairs += 1
                self.last_usable = opened
                yield Pair(shard, sample.id, image, captions, opened)
        self.lengths.learn(shard, pairs, whole)

    def pass_over(self, shards: Sequence[str]) -> None:
        """Count shards as if they had been opened and read, which they are not; they are of known length."""
        for shard in shards:
            self.opened += 1
            self.check_patience(self.opened - self.last_usable, shard)
            if self.lengths.get(shard):
                self.last_usable = self.opened

    def check_patience(self, shards: int, last: str) -> None:
        """Raise UserError when so many shards in a row, to the `last`, should not have been without a usable pair."""
        if shards > self._patience:
            raise UserError(f"{shards} shards in a row without one usable pair, the last is {last}: see the warnings above")
