"""The order of the training data: canonical streams, which depend only on the seed and the shards.

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


def choose_streams(shards: int, batch_size: int, ranks: int, workers: int, wanted: int | None = None) -> int:
    """The number of canonical streams C: at most the number of shards, a divisor of the global batch, a multiple of the readers.

    If not `wanted`: the largest power of two up to 64, so that most numbers of ranks and workers agree on it; if the
    readers do not divide that, their largest multiple that fits. If there is no such number, raises UserError with values that
    would work.
    """
    readers = ranks * workers
    most = min(shards, max(MOST_STREAMS, readers))
    if wanted is not None:
        if _fit(wanted, shards, batch_size, readers):
            return wanted
    else:
        powers = [2**exponent for exponent in range(MOST_STREAMS.bit_length())]
        largest = max(power for power in powers if _fit(power, shards, batch_size, 1))
        if largest % readers == 0:
            return largest
        for streams in range(most // readers * readers, 0, -readers):
            if batch_size % streams == 0:
                return streams
    said = f"{readers} reader{'s' if readers > 1 else ''} ({_counted(ranks, 'rank')} x {_counted(workers, 'worker')})"
    raise UserError(
        f"{_misfit(shards, batch_size, readers, wanted, said)}: {_remedy(shards, batch_size, ranks, workers, wanted)}"
    )


def _fit(streams: int, shards: int, batch_size: int, readers: int) -> bool:
    return streams <= shards and streams % readers == 0 and batch_size % streams == 0


def _misfit(shards: int, batch_size: int, readers: int, wanted: int | None, said: str) -> str:
    """What does not fit together."""
    if shards < readers:
        return f"{shards} shards for {said}"
    if batch_size % readers:
        return f"a micro-batch of {batch_size} pairs cannot be shared evenly by {said}"
    assert wanted is not None  # otherwise as many streams as readers would work
    if wanted > shards:
        return f"data.streams={wanted} is more than the {shards} shards"
    if wanted % readers:
        return f"data.streams={wanted} is not a multiple of the {said}"
    return f"a micro-batch of {batch_size} pairs is not a multiple of data.streams={wanted}"


def _remedy(shards: int, batch_size: int, ranks: int, workers: int, wanted: int | None) -> str:
    """Values that would work, each by itself."""
    remedies = []
    for fewer in range(workers - 1, 0, -1):  # as many readers as possible, with the same order of the data
        streams = [wanted] if wanted is not None else range(ranks * fewer, shards + 1, ranks * fewer)
        if any(_fit(number, shards, batch_size, ranks * fewer) for number in streams):
            remedies.append(f"data.workers={fewer}")
            break
    if wanted is not None:
        others = [streams for streams in range(1, shards + 1) if _fit(streams, shards, batch_size, ranks * workers)]
        if others:
            nearest = min(others, key=lambda streams: abs(streams - wanted))
            remedies.append(f"data.streams={nearest} (during a run, this changes the order of the data)")
    if remedies:
        return f"use {' or '.join(remedies)}"
    if shards < ranks:
        return f"use at most {_counted(shards, 'process', 'es')}, or split the data into {ranks} shards or more"
    readers = ranks * workers if shards >= ranks * workers else ranks
    parts = [] if readers == ranks * workers else ["data.workers=1"]
    of = readers
    if wanted is not None:
        keeps = wanted % readers == 0 and wanted <= shards
        of = wanted if keeps else readers
        parts += [] if keeps else [f"data.streams={readers}"]
    parts.append(f"a train.batch_size whose micro-batches are a multiple of {of}")
    return f"use {' with '.join(parts)}"


def _counted(number: int, what: str, plural: str = "s") -> str:
    """`1 rank`, `2 ranks`."""
    return f"{number} {what}{plural if number != 1 else ''}"
