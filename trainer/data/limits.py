"""How much of the data may be unusable before a run, or an evaluation, ends."""

from collections.abc import Mapping

from trainer.errors import UserError

JUDGED_AFTER = 100  # samples read before the share of bad ones means something
WORST_SHOWN = 3


def is_bad_share(read: int, bad: int, limit: float) -> bool:
    """Whether of at least 100 samples read more than the share `limit` was unusable."""
    return read >= JUDGED_AFTER and bad > limit * read


def check_bad_share(read: int, bad: Mapping[str, int], limit: float) -> None:
    """Raise UserError when of at least 100 samples read more than the share `limit` was unusable (`bad`: counts by shard)."""
    total = sum(bad.values())
    if is_bad_share(read, total, limit):
        raise UserError(
            f"{total} of {read} samples are unusable, more than data.max_bad_share={limit:g}: "
            f"mend the shards or raise the limit; the worst are {name_worst(bad)}"
        )


def too_many_bad_shards(shards: int, read: int, broken: int, limit: float) -> bool:
    """Whether more than the share `limit` broke off: of the shards that there are, or of those read, if these are more by now."""
    return broken > limit * max(shards, read)


def check_bad_shards(shards: int, read: int, bad: Mapping[str, int], limit: float) -> None:
    """Raise UserError when too many shards broke off (`bad`: how often, by name) of `shards` in all, `read` readings.

    One alone is let pass unless the limit is 0: its loss is told and counted, and in a small data set it would be a large share.
    """
    total = sum(bad.values())
    if (len(bad) > 1 or limit == 0) and too_many_bad_shards(shards, read, total, limit):
        raise UserError(
            f"{len(bad)} of {shards} shards cannot be read to their end, more than data.max_bad_shards={limit:g} of them: "
            f"mend them (the warnings above say what is wrong) or raise the limit; the worst are {name_worst(bad)}"
        )


def name_worst(counts: Mapping[str, int]) -> str:
    """`b.tar (8), a.tar (2)`: those with the highest counts."""
    worst = sorted(counts, key=lambda shard: (-counts[shard], shard))[:WORST_SHOWN]
    return ", ".join(f"{shard} ({counts[shard]})" for shard in worst)
