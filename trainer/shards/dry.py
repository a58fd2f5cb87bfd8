"""A look at an input: how many samples there are, and what some of them, spread evenly, amount to."""

import math
import time

from trainer.reporting.bar import duration
from trainer.shards.pack import Shards
from trainer.shards.record import kinds_of
from trainer.shards.told import kinds_told, size_told
from trainer.shards.unfit import Bad
from trainer.shards.work import Done, Work

LOOKED_AT = 1000
SHOWN = 3


def look(work: Work, shards: Shards, workers: int) -> list[str]:
    """What would be written, in lines."""
    count = len(work.plan)
    began = time.monotonic()
    outcomes = list(work.outcomes(range(0, count, -(-count // LOOKED_AT)), workers))
    seconds = time.monotonic() - began
    done = [outcome for outcome in outcomes if isinstance(outcome, Done)]
    bad = [outcome for outcome in outcomes if isinstance(outcome, Bad)]
    parts = ", ".join(f"{len(items):,} for {part}" for part, items in work.plan.parts.items())
    lines = [f"{count:,} samples: {parts}"]
    if left_out := work.plan.left_out():
        lines.append(f"{len(left_out):,} more left out: {kinds_told(kinds_of(left_out))}")
    share = count / len(outcomes)
    looked = f"{len(outcomes):,} looked at" if share > 1 else "all looked at"
    lines.append(f"{looked}: {len(done):,} can be written, {sum(outcome.resized for outcome in done):,} of them made smaller")
    if bad:
        lines.append(f"{len(bad):,} cannot: {kinds_told(kinds_of(bad))}")
        lines += [f"  {entry.key}: {entry.kind}: {entry.why}" for entry in bad[:SHOWN]]
    if done:
        size = sum(len(outcome.block) for outcome in done) * share
        pairs = len(done) * share
        by_pairs = pairs / shards.pairs if shards.pairs else 0
        by_bytes = size / shards.bytes if shards.bytes else 0
        count_of_shards = max(1, math.ceil(max(by_pairs, by_bytes)))
        about = "about " * (share > 1)
        lines.append(f"{about}{size_told(size)} in {about}{count_of_shards:,} shards, after {duration(seconds * share)}")
    return lines
