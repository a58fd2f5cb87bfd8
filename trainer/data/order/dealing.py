"""The order of the training data: canonical streams, which depend on the seed and the shards and on nothing else.

C streams share the shards; the global batch takes the same number of pairs from each. Ranks and workers own whole streams, so
the pairs of step s are the same for every number of ranks and workers (as in MosaicML Streaming's elastic determinism).
"""

import random
from collections.abc import Iterator
from itertools import count, islice

from trainer.errors import UserError

MOST_STREAMS = 64  # unless there are more readers: every stream holds its own shuffle buffer


def stream_shards(shards: list[str], seed: int, stream: int, streams: int) -> Iterator[tuple[int, str]]:
    """A stream's endless (epoch, shard): every streams-th of all epochs' shuffled shard lists, laid end to end."""

    def all_epochs() -> Iterator[tuple[int, str]]:
        for epoch in count():
            order = list(shards)
            random.Random(f"{seed}/shards/{epoch}").shuffle(order)
            yield from ((epoch, shard) for shard in order)

    return islice(all_epochs(), stream, None, streams)


def choose_streams(shards: int, batch_size: int, readers: int, wanted: int | None = None, layout: str = "") -> int:
    """How many canonical streams C a run has; C never exceeds the shards and divides the global batch, and `readers` divides C.

    When not `wanted`: the largest power of two up to 64, so that most numbers of ranks and workers agree on it; where the
    readers do not divide that, the largest of their multiples that fits. `layout` tells readers in words for the errors.
    Raises UserError when there is no such number.
    """
    said = f"{readers} readers{layout}"
    if shards < readers:
        raise UserError(f"{shards} shards for {said}: use fewer data.workers or more shards")
    if batch_size % readers:
        raise UserError(
            f"a batch of {batch_size} pairs cannot be shared evenly by {said}: use a multiple of {readers}, or other data.workers"
        )
    if wanted is not None:
        _check_wanted(wanted, shards, batch_size, readers, said)
        return wanted
    powers = [
        2**exponent for exponent in range(MOST_STREAMS.bit_length()) if 2**exponent <= shards and batch_size % 2**exponent == 0
    ]
    if powers[-1] % readers == 0:
        return powers[-1]
    most = min(shards, max(MOST_STREAMS, readers))
    return next(streams for streams in range(most // readers * readers, 0, -readers) if batch_size % streams == 0)


def _check_wanted(wanted: int, shards: int, batch_size: int, readers: int, said: str) -> None:
    if wanted < 1:
        raise UserError(f"data.streams={wanted} should be at least 1, or null to have it chosen")
    if wanted > shards:
        raise UserError(f"data.streams={wanted} is more than the {shards} shards: use fewer streams, or null to have it chosen")
    if wanted % readers:
        raise UserError(f"data.streams={wanted} is no multiple of the {said}: change data.workers or data.streams")
    if batch_size % wanted:
        raise UserError(
            f"a batch of {batch_size} pairs is no multiple of data.streams={wanted}: change train.batch_size or data.streams"
        )
