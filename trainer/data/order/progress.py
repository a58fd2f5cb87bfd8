"""What a run has learned about its training data, kept for when it is resumed."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trainer.errors import UserError

logger = logging.getLogger(__name__)


@dataclass
class DataProgress:
    """Counters and shard lengths, over all ranks in a checkpoint, of one rank in what its loader reports.

    read, bad: samples read since the start of the run, and the unusable ones among them by shard.
    shards, bad_shards: shards opened since then, and by name how often one ended early.
    truncated: captions drawn so far that are too long for the model.
    lengths: usable pairs by shard, for shards that were read to their end; a pair has an image file and a caption.
    short: by `epoch/shard`, how many pairs a shard gave in an epoch in which it ended early. The order of the data has that many
    positions for it in that epoch, and as many as its length in the others. In both, the name of a source comes before that of
    a shard, as in `epoch/shard` and `coco:shard`.
    left_out: samples that are smaller than their source asks for.
    """

    read: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    shards: int = 0
    bad_shards: dict[str, int] = field(default_factory=dict)
    short: dict[str, int] = field(default_factory=dict)
    truncated: int = 0
    left_out: int = 0

    def merged(self, reports: Iterable["DataProgress"]) -> "DataProgress":
        """The progress after this one, from the reports of all ranks: their counters are totals, their lengths are new ones."""
        after = DataProgress(lengths=dict(self.lengths), short=dict(self.short))
        for report in reports:
            after.read += report.read
            after.shards += report.shards
            after.truncated += report.truncated
            after.left_out += report.left_out
            add_counts(after.bad, report.bad)
            add_counts(after.bad_shards, report.bad_shards)
            keep_longest(after.lengths, report.lengths)
            after.short |= report.short
        return after


class ShardLengths:
    """The lengths of shards as far as a reader knows them, and which of them are new."""

    def __init__(self, known: Mapping[str, int] | None = None, short: Mapping[str, int] | None = None) -> None:
        self._known = dict(known or {})
        self._short = dict(short or {})
        self._news: dict[str, int] = {}
        self._short_news: dict[str, int] = {}

    def get(self, shard: str, epoch: int | None = None) -> int | None:
        """The pairs that a shard gave in an epoch, or would give; None while that is not known."""
        return self._short.get(_place(epoch, shard), self._known.get(shard))

    def is_short(self, shard: str, epoch: int) -> bool:
        """Whether a shard ended early in an epoch."""
        return _place(epoch, shard) in self._short

    def learn(self, epoch: int, shard: str, pairs: int, whole: bool) -> None:
        """Note a shard's pairs in an epoch; `whole` is False if it ended early, which counts for this epoch only.

        Raises UserError when a complete shard has fewer pairs than before, since the order of the data depends on it.
        """
        known = self._known.get(shard)
        if not whole:
            self.cut(epoch, shard, pairs)
        elif known is not None and pairs < known:
            raise changed(shard, pairs, known)
        elif pairs != known:
            if known is not None:
                logger.warning(
                    "%s has %d usable pairs, but had %d when it was read before: their order is not kept", shard, pairs, known
                )
            self._known[shard] = self._news[shard] = pairs

    def cut(self, epoch: int, shard: str, pairs: int) -> None:
        """Note how many pairs a shard gave in this epoch, whatever it contains."""
        place = _place(epoch, shard)
        self._short[place] = self._short_news[place] = pairs

    def take_news(self) -> dict[str, int]:
        """The lengths that were learned since the last call."""
        news, self._news = self._news, {}
        return news

    def take_short_news(self) -> dict[str, int]:
        """What shards gave in epochs in which they ended early, as far as learned since the last call."""
        news, self._short_news = self._short_news, {}
        return news


def changed(shard: str, pairs: int, known: int) -> UserError:
    """The error for a shard that has fewer usable pairs than it had."""
    return UserError(
        f"shard {shard} has {pairs} usable pairs, but had {known} when this run read it before: restore the shard "
        f"(and its data.caption_key, or captions), or start a new run with the weights of this one (run.name and init_from)"
    )


def add_counts(total: dict[str, int], more: Mapping[str, int]) -> None:
    """Add counts by shard to others."""
    for shard, count in more.items():
        total[shard] = total.get(shard, 0) + count


def keep_longest(lengths: dict[str, int], more: Mapping[str, int]) -> None:
    """Add lengths to others; of two for one shard the longer one is right, since the shard may have grown."""
    for shard, pairs in more.items():
        lengths[shard] = max(pairs, lengths.get(shard, 0))


def _place(epoch: int | None, shard: str) -> str:
    return f"{epoch}/{shard}"
