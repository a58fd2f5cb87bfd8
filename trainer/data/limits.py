"""How much of the data may be unusable before a run, or an evaluation, ends."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.config.schema import DataConfig
from trainer.errors import UserError

JUDGED_AFTER = 100  # samples read before the share of bad ones means something
WORST_SHOWN = 3


def is_bad_share(read: int, bad: int, limit: float) -> bool:
    """Whether at least 100 samples were read, and more than the share `limit` of them was unusable."""
    return read >= JUDGED_AFTER and bad > limit * read


def check_bad_share(read: int, bad: Mapping[str, int], limit: float) -> None:
    """Raise UserError when `is_bad_share` holds (`bad`: counts by shard)."""
    total = sum(bad.values())
    if is_bad_share(read, total, limit):
        raise UserError(
            f"{total} of {read} samples are unusable, more than data.max_bad_share={limit:g}: "
            f"repair the shards or raise the limit; the worst are {name_worst(bad)}"
        )


def too_many_bad_shards(shards: int, read: int, broken: int, limit: float) -> bool:
    """Whether more than the share `limit` ended early: of all shards, or of the number of readings, if that is larger."""
    return broken > limit * max(shards, read)


def check_bad_shards(shards: int, read: int, bad: Mapping[str, int], limit: float) -> None:
    """Raise UserError when too many shards ended early (`bad`: how often, by name) of `shards` in total, read `read` times.

    A single bad shard is tolerated unless the limit is 0: it is reported and counted, but would be a large share of a small set.
    """
    total = sum(bad.values())
    if (len(bad) > 1 or limit == 0) and too_many_bad_shards(shards, read, total, limit):
        raise UserError(
            f"{len(bad)} of {shards} shards cannot be read to their end, more than data.max_bad_shards={limit:g} of them: "
            f"repair them (the warnings above say what is wrong) or raise the limit; the worst are {name_worst(bad)}"
        )


def name_worst(counts: Mapping[str, int]) -> str:
    """`b.tar (8), a.tar (2)`: those with the highest counts."""
    worst = sorted(counts, key=lambda shard: (-counts[shard], shard))[:WORST_SHOWN]
    return ", ".join(f"{shard} ({counts[shard]})" for shard in worst)


@dataclass
class LeftOut:
    """What an evaluation could not use. Unlike training, it has no other data to use instead: the result is for a smaller set.

    read: samples, without those lost to a break; bad: the unusable ones among them by shard; such_as: the first in each shard
    and why; bad_shards: those that ended early, and why.
    """

    read: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    such_as: dict[str, str] = field(default_factory=dict)
    bad_shards: dict[str, str] = field(default_factory=dict)

    def note_bad(self, shard: str, sample_id: str, problem: object) -> None:
        """Count an unusable sample."""
        self.bad[shard] += 1
        self.such_as.setdefault(shard, f"{sample_id}: {problem}")

    def add(self, other: "LeftOut") -> None:
        """Add the counts of another; a shard that ended early for several readers counts once."""
        self.read += other.read
        self.bad += other.bad
        self.such_as = other.such_as | self.such_as
        self.bad_shards = other.bad_shards | self.bad_shards

    def told(self) -> list[str]:
        """A line for the samples and one for the shards, where there are any."""
        lines = []
        if self.bad:
            example = self.such_as[self.bad.most_common(1)[0][0]]
            count = f"{self.bad.total()} of {self.read} samples are unusable"
            lines.append(f"{count}, most of them in {name_worst(self.bad)}; for example, {example}")
        if self.bad_shards:
            shard, problem = next(iter(self.bad_shards.items()))
            broken = len(self.bad_shards)
            lines.append(f"{broken} shard{'s' * (broken > 1)} cannot be read to the end; for example, {shard}: {problem}")
        return lines

    def check(self, shards: int, data: DataConfig) -> None:
        """Raise UserError when too many of the `shards` ended early, or too many samples were unusable (one always may be).

        If all samples are, the evaluation itself says what is missing.
        """
        remedy = "so the result would be for a different set: repair them or raise the limit"
        if len(self.bad_shards) > data.max_bad_shards * shards:
            raise UserError(
                f"evaluation: {self.told()[-1]}; more than data.max_bad_shards={data.max_bad_shards:g} of {shards}, {remedy}"
            )
        allowed = max(1, data.max_bad_share * self.read) if data.max_bad_share else 0
        if allowed < self.bad.total() < self.read:
            raise UserError(f"evaluation: {self.told()[0]}; more than data.max_bad_share={data.max_bad_share:g}, {remedy}")

    def metrics(self) -> dict[str, float]:
        """`bad_samples` and `bad_shards`, if there are any."""
        counts = {"bad_samples": self.bad.total(), "bad_shards": len(self.bad_shards)}
        return {name: float(count) for name, count in counts.items() if count}
