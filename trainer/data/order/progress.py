"""What a run has learned about its training data, and takes along when it is resumed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trainer.errors import UserError


@dataclass
class DataProgress:
    """Counters and shard lengths, over all ranks in a checkpoint, of one rank in what its loader reports.

    read, bad: samples read since the start of the run, and the unusable ones among them by shard.
    truncated: captions among those drawn that are longer than the model reads.
    lengths: usable pairs by shard, of the shards that were read to their end; a pair has an image file and a caption.
    """

    read: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    truncated: int = 0

    def merged(self, reports: Iterable["DataProgress"]) -> "DataProgress":
        """The progress after this one, from the reports of all ranks: their counters are totals, their lengths are news."""
        after = DataProgress(lengths=dict(self.lengths))
        for report in reports:
            after.read += report.read
            after.truncated += report.truncated
            add_counts(after.bad, report.bad)
            keep_longest(after.lengths, report.lengths)
        return after


class ShardLengths:
    """The lengths of shards as far as a reader knows them, and which of them are news."""

    def __init__(self, known: Mapping[str, int] | None = None) -> None:
        self._known = dict(known or {})
        self._news: dict[str, int] = {}

    def get(self, shard: str) -> int | None:
        """The usable pairs of a shard, or None while it has not been read to its end."""
        return self._known.get(shard)

    def learn(self, shard: str, pairs: int, whole: bool) -> None:
        """Note what a shard held; `whole` is False where it broke off, perhaps for this once: then more may have been known.

        Raises UserError when a whole shard holds fewer than before, since the order of the data depends on it.
        """
        known = self._known.get(shard, -1)
        if whole and pairs < known:
            raise changed(shard, pairs, known)
        if pairs > known:
            self._known[shard] = self._news[shard] = pairs

    def take_news(self) -> dict[str, int]:
        """What was learned since the last call."""
        news, self._news = self._news, {}
        return news


def changed(shard: str, pairs: int, known: int) -> UserError:
    """The error for a shard that holds fewer usable pairs than it did."""
    return UserError(
        f"shard {shard} holds {pairs} usable pairs, but {known} when this run read it before: bring back the shard "
        f"(and data.caption_key) as they were, or begin another run with the weights of this one (run.name and init_from)"
    )


def add_counts(total: dict[str, int], more: Mapping[str, int]) -> None:
    """Add counts by shard to others."""
    for shard, count in more.items():
        total[shard] = total.get(shard, 0) + count


def keep_longest(lengths: dict[str, int], more: Mapping[str, int]) -> None:
    """Add lengths to others; of two for one shard the longer is true, since a reading may have broken off."""
    for shard, pairs in more.items():
        lengths[shard] = max(pairs, lengths.get(shard, 0))
