"""Canonical streams: their number, and the shards of each."""

import re
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.order.dealing import choose_streams, rows_of_reader, stream_shards, times_read
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
        # Readers that share streams: too few shards for them, or a batch that they do not divide.
        (3, 256, 4, 2),
        (1, 256, 4, 1),
        (100, 48 * 7, 48 * 3, 84),
        (1000, 30, 4, 30),
    ],
)
def test_streams_are_chosen_to_fit(shards: int, batch: int, readers: int, streams: int) -> None:
    assert choose_streams(shards, batch, readers) == streams


@pytest.mark.parametrize(
    ("shards", "batch", "wanted", "message"),
    [
        (10, 32, 16, "data.streams=16 is more than the 10 shards: use data.streams=8 (during a run, this changes the order"),
        (20, 36, 8, "a micro-batch of 36 pairs is not a multiple of data.streams=8: use data.streams=9 (during a run, "),
    ],
)
def test_misfits_are_told_with_what_fits(shards: int, batch: int, wanted: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        choose_streams(shards, batch, 4, wanted)
    told = str(caught.value)
    assert message in told and "\n" not in told
    choose_streams(shards, batch, 4, int(re.findall(r"use data\.streams=(\d+)", told)[0]))
    for multiple in re.findall(r"multiple of (\d+)$", told):
        choose_streams(shards, int(multiple), 4, wanted)


@given(
    shards=st.integers(1, 40),
    local=st.integers(1, 30),
    world=st.integers(1, 50),
    workers=st.integers(1, 12),
)
def test_any_number_of_readers_makes_every_row_once_and_in_order(shards: int, local: int, world: int, workers: int) -> None:
    batch, workers = local * world, min(workers, local)
    streams = choose_streams(shards, batch, world * workers)
    each = batch // streams
    made = []
    for rank in range(world):
        of_rank = []
        for worker in range(workers):
            parts = rows_of_reader(batch, streams, rank, world, worker, workers)
            rows = [rows.stream * each + row for rows in parts for row in range(rows.first, rows.end)]
            assert local // workers <= len(rows) <= -(-local // workers)
            of_rank += rows
        assert len(of_rank) == local
        made += of_rank
    assert made == list(range(batch))
    times = times_read(batch, streams, world, workers)
    assert times == 1 if streams % (world * workers) == 0 else times >= 1


def test_streams_share_every_epoch_of_the_shards() -> None:
    shards = [f"{index}.tar" for index in range(10)]
    streams = [list(islice(stream_shards(shards, 7, stream, 4), 10)) for stream in range(4)]
    for epoch in range(4):
        assert Counter(shard for stream in streams for number, shard in stream if number == epoch) == Counter(shards)
    orders = [[shard for number, shard in islice(stream_shards(shards, 7, 0, 1), 20) if number == epoch] for epoch in range(2)]
    assert orders[0] != orders[1]
