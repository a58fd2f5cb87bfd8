"""How many pairs a source has, from its first samples: for the passes over it, which nobody wants to read all shards for."""

from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from trainer.data.look import spread
from trainer.data.shards.captions import CaptionRule, require_pair
from trainer.data.shards.opening import is_remote
from trainer.data.shards.samples import Sample, Unusable, read_samples

SAMPLES = 256  # of a shard; shorter shards are counted
BLOCK = 512  # a tar archive's unit


def estimate_pairs(shards: Sequence[str], rule: CaptionRule) -> int | None:
    """The pairs of local shards: as many to a byte as in a few of them. Exact for a few small shards; None for remote ones."""
    if any(map(is_remote, shards)):
        return None
    looked_at = spread(shards)
    found = [_of_shard(shard, rule) for shard in looked_at]
    if len(looked_at) == len(shards):
        return round(sum(found))
    size = sum(Path(shard).stat().st_size for shard in looked_at)
    return round(sum(found) / size * sum(Path(shard).stat().st_size for shard in shards))


def _of_shard(shard: str, rule: CaptionRule) -> float:
    whole, pairs, read = Path(shard).stat().st_size, 0, 0
    most = SAMPLES if _is_plain(shard) else None  # how much of a compressed file was read is not known
    with closing(read_samples(shard)) as samples:
        for sample in islice(samples, most):
            if sample.broken:
                return pairs
            read += _bytes_of(sample)
            pairs += _is_pair(sample, rule)
        if next(samples, None) is None:
            return pairs
    return pairs / read * whole


def _is_plain(shard: str) -> bool:
    return shard.lower().endswith(".tar")


def _is_pair(sample: Sample, rule: CaptionRule) -> bool:
    try:
        require_pair(sample, rule)
    except Unusable:
        return False
    return True


def _bytes_of(sample: Sample) -> int:
    """In an archive: a header for each file, and its content up to a whole block."""
    return sum(BLOCK + -(-len(content) // BLOCK) * BLOCK for content in sample.files.values())
