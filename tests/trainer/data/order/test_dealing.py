"""Canonical streams: their number, and the shards of each."""

from collections import Counter
from itertools import islice

import pytest

from trainer.data.order.dealing import choose_streams, stream_shards
from trainer.errors import UserError


@pytest.mark.parametrize(
    ("shards", "batch", "readers", "streams"),
    [
        (20, 256, 1, 16),
        (1000, 4096, 8, 64),
        (1000, 96, 4, 32),
        (20, 96, 3, 12),
        (3, 8, 1, 2),
        (1, 8, 1, 1),
        (500, 1200, 100, 100),
        (7, 10, 5, 5),
    ],
)
def test_streams_are_chosen_to_fit(shards: int, batch: int, readers: int, streams: int) -> None:
    assert choose_streams(shards, batch, readers) == streams


@pytest.mark.parametrize(
    ("shards", "batch", "readers", "wanted", "message"),
    [
        (3, 256, 4, None, r"3 shards for 4 readers \(2 ranks x 2 workers\): use fewer data.workers or more shards"),
        (10, 30, 4, None, "a batch of 30 pairs cannot be shared evenly by 4 readers"),
        (10, 32, 4, 6, "data.streams=6 is no multiple of the 4 readers"),
        (10, 32, 4, 16, "data.streams=16 is more than the 10 shards"),
        (20, 36, 4, 8, "a batch of 36 pairs is no multiple of data.streams=8"),
        (20, 36, 1, 0, "data.streams=0"),
    ],
)
def test_misfits_are_told_with_the_numbers(shards: int, batch: int, readers: int, wanted: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_streams(shards, batch, readers, wanted, " (2 ranks x 2 workers)")
    if wanted is None:
        return
    assert choose_streams(40, 32, 4, 8) == 8


def test_streams_share_every_epoch_of_the_shards() -> None:
    shards = [f"{index}.tar" for index in range(10)]
    streams = [list(islice(stream_shards(shards, 7, stream, 4), 10)) for stream in range(4)]
    for epoch in range(4):
        assert Counter(shard for stream in streams for number, shard in stream if number == epoch) == Counter(shards)
    orders = [[shard for number, shard in islice(stream_shards(shards, 7, 0, 1), 20) if number == epoch] for epoch in range(2)]
    assert orders[0] != orders[1]
