"""The order of the training data: canonical streams, which depend only on the seed and the shards.

C streams share the shards; the global batch takes the same number of pairs from each, one stream after the other. Ranks and
workers make rows of it, whole streams where their numbers allow it, else parts of some: so the pairs of step s are the same for
every number of ranks and workers (as in MosaicML Streaming's elastic determinism).
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

from trainer.errors import UserError

MOST_STREAMS = 64  # unless there are more readers: every stream holds its own shuffle buffer


def stream_shards(
    shards: list[str], seed: int | str, stream: int, streams: int, replacement: bool = False
) -> Iterator[tuple[int, str]]:
    """A stream's endless (epoch, shard): every streams-th of all epochs' shuffled shard lists, laid end to end.

    replacement: an epoch is as many shards, each drawn from all of them (as webdataset's ResampledShards).
    """

    def all_epochs() -> Iterator[tuple[int, str]]:
        for epoch in count():
            rng = random.Random(f"{seed}/shards/{epoch}")
            order = rng.choices(shards, k=len(shards)) if replacement else list(shards)
            if not replacement:
                rng.shuffle(order)
            yield from ((epoch, shard) for shard in order)

    return islice(all_epochs(), stream, None, streams)


def choose_streams(shards: int, batch_size: int, readers: int, wanted: int | None = None) -> int:
    """The number of canonical streams C: at most the number of shards, and a divisor of the global batch.

    If not `wanted`: the largest power of two up to 64, so that most numbers of readers agree on it; if the readers do not
    divide that, their largest multiple that fits, so that each reads shards of its own; else the largest number that fits, and
    readers share streams. Raises UserError for a wanted number that does not fit, with one that does.
    """
    if wanted is not None:
        _check_wanted(wanted, shards, batch_size)
        return wanted
    powers = [2**exponent for exponent in range(MOST_STREAMS.bit_length())]
    largest = max(power for power in powers if _fits(power, shards, batch_size))
    if largest % readers == 0:
        return largest
    fitting = [streams for streams in range(1, min(shards, max(MOST_STREAMS, readers)) + 1) if _fits(streams, shards, batch_size)]
    return max((streams for streams in fitting if streams % readers == 0), default=fitting[-1])


def _fits(streams: int, shards: int, batch_size: int) -> bool:
    return streams <= shards and batch_size % streams == 0


def _check_wanted(wanted: int, shards: int, batch_size: int) -> None:
    if _fits(wanted, shards, batch_size):
        return
    nearest = min((streams for streams in range(1, shards + 1) if batch_size % streams == 0), key=lambda s: abs(s - wanted))
    use = f"data.streams={nearest} (during a run, this changes the order of the data)"
    if wanted > shards:
        raise UserError(f"data.streams={wanted} is more than the {shards} shards: use {use}")
    raise UserError(
        f"a micro-batch of {batch_size} pairs is not a multiple of data.streams={wanted}: use {use}, or a train.batch_size whose "
        f"micro-batches are a multiple of {wanted}"
    )


@dataclass(frozen=True)
class Rows:
    """The part of a stream's pairs in each global batch that one reader makes: those from `first`, as far as before `end`."""

    stream: int
    first: int
    end: int


def rows_of_reader(batch_size: int, streams: int, rank: int, world: int, worker: int, workers: int) -> list[Rows]:
    """What a worker of a rank makes of each global batch: consecutive rows, all ranks the same number, workers nearly so."""
    local, each = batch_size // world, batch_size // streams
    first, end = (rank * local + part * local // workers for part in (worker, worker + 1))
    return [
        Rows(stream, max(0, first - stream * each), min(each, end - stream * each))
        for stream in range(first // each, -(-end // each))
    ]


def times_read(batch_size: int, streams: int, world: int, workers: int, sharing: int = 1) -> float:
    """How often each shard is read an epoch: once, or more where readers share streams.

    sharing: neighbours among the canonical streams that have one stream of shards together, of which a reader reads it once.
    """
    parts = [
        rows_of_reader(batch_size, streams, rank, world, worker, workers) for rank in range(world) for worker in range(workers)
    ]
    return sum(len({rows.stream // sharing for rows in part}) for part in parts) / (streams // sharing)
