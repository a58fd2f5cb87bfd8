"""Canonical streams: their number, and the shards of each."""

import re
from collections import Counter
from functools import reduce
from itertools import islice
from operator import or_

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.order.dealing import choose_streams, stream_shards
from trainer.errors import UserError

STREAMS = {"streams": "wanted", "workers": "workers"}


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
    assert choose_streams(shards, batch, readers, 1) == choose_streams(shards, batch, 1, readers) == streams


@pytest.mark.parametrize(
    ("shards", "batch", "ranks", "workers", "wanted", "message"),
    [
        (3, 256, 2, 2, None, "3 shards for 4 readers (2 ranks x 2 workers): use data.workers=1"),
        (
            3,
            256,
            4,
            1,
            None,
            "3 shards for 4 readers (4 ranks x 1 worker): use at most 3 processes, or split the data into 4 sh",
        ),
        (
            10,
            30,
            2,
            2,
            None,
            "a micro-batch of 30 pairs cannot be shared evenly by 4 readers (2 ranks x 2 workers): use data.w",
        ),
        (10, 30, 4, 1, None, "by 4 readers (4 ranks x 1 worker): use a train.batch_size whose micro-batches are a multiple of 4"),
        (
            10,
            32,
            2,
            2,
            6,
            "data.streams=6 is not a multiple of the 4 readers (2 ranks x 2 workers): use data.streams=4 (during a run, ",
        ),
        (
            10,
            32,
            1,
            4,
            2,
            "data.streams=2 is not a multiple of the 4 readers (1 rank x 4 workers): use data.workers=2 or data.str",
        ),
        (10, 32, 2, 2, 16, "data.streams=16 is more than the 10 shards: use data.streams=8"),
        (20, 36, 2, 2, 8, "a micro-batch of 36 pairs is not a multiple of data.streams=8: use data.streams=4"),
    ],
)
def test_misfits_are_told_with_the_numbers(
    shards: int, batch: int, ranks: int, workers: int, wanted: int | None, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        choose_streams(shards, batch, ranks, workers, wanted)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert choose_streams(40, 32, 2, 2, 8) == 8


@given(
    shards=st.integers(1, 40),
    batch=st.integers(1, 200),
    ranks=st.integers(1, 8),
    workers=st.integers(1, 8),
    wanted=st.none() | st.integers(1, 64),
)
def test_what_a_misfit_is_told_to_use_does(shards: int, batch: int, ranks: int, workers: int, wanted: int | None) -> None:
    try:
        choose_streams(shards, batch, ranks, workers, wanted)
    except UserError as problem:
        advice = str(problem).rpartition(": ")[2]
        assert re.search("^use ", advice)
        told = [{STREAMS[key]: int(value)} for key, value in re.findall(r"data\.(workers|streams)=(\d+)", advice)]
        if found := re.search(r"multiple of (\d+)$", advice):  # with all of what else it says
            told = [reduce(or_, told, {"batch_size": int(found[1])})]
        given = {"batch_size": batch, "workers": workers, "wanted": wanted}
        if "at most" in advice:
            ranks = int(re.findall(r"\d+", advice)[0])
            assert ranks == shards
            return
        assert told
        for values in told:
            choose_streams(shards, ranks=ranks, **given | values)


def test_streams_share_every_epoch_of_the_shards() -> None:
    shards = [f"{index}.tar" for index in range(10)]
    streams = [list(islice(stream_shards(shards, 7, stream, 4), 10)) for stream in range(4)]
    for epoch in range(4):
        assert Counter(shard for stream in streams for number, shard in stream if number == epoch) == Counter(shards)
    orders = [[shard for number, shard in islice(stream_shards(shards, 7, 0, 1), 20) if number == epoch] for epoch in range(2)]
    assert orders[0] != orders[1]
