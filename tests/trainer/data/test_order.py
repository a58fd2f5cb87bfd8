"""Canonical streams: their number, their order, their position."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from tests.trainer.data.shards_on_disk import write_shard, write_shards
from trainer.data.order import Stream, choose_streams, stream_shards
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


def take(stream: Stream) -> str:
    return stream.next()[0].id


@pytest.mark.parametrize("buffer", [0, 1, 4, 100])
def test_a_stream_has_each_sample_once_an_epoch(tmp_path: Path, buffer: int) -> None:
    shards = write_shards(tmp_path, 3, 7)
    stream = Stream(shards, 1, 0, 1, buffer)
    epochs = [[take(stream) for _ in range(21)] for _ in range(3)]
    assert all(len(set(epoch)) == 21 for epoch in epochs)
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1]


def test_the_buffer_shuffles_within_and_across_shards(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, 2, 30)
    stream = Stream(shards, 1, 0, 1, 40)
    keys = [take(stream) for _ in range(60)]
    by_shard = [[key for key in keys if key.startswith(shard)] for shard in shards]
    assert all(keys_of_one != sorted(keys_of_one) for keys_of_one in by_shard)
    assert len({key.rsplit("/", 1)[0] for key in keys[:30]}) == 2


def test_skipping_is_the_same_as_taking(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, 3, 7)
    taken, skipped = Stream(shards, 1, 0, 2, 5), Stream(shards, 1, 0, 2, 5)
    for _ in range(17):
        take(taken)
    skipped.skip(17)
    assert skipped.tally.read == 0
    for _ in range(20):
        (pair, rng), (other_pair, other_rng) = taken.next(), skipped.next()
        assert pair == other_pair
        assert rng.random() == other_rng.random()


def test_a_stream_without_a_usable_pair_gives_up(tmp_path: Path) -> None:
    bare = [write_shard(tmp_path / f"{index}.tar", [{"cls": 1}] * 3) for index in range(4)]
    with pytest.raises(UserError, match="shards in a row without one usable pair"):
        Stream(bare, 1, 0, 2, 5).next()


def test_some_shards_may_be_lost_in_mid_training(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, 4, 5)
    Path(shards[2]).unlink()
    stream = Stream(shards, 1, 0, 1, 3)
    ids = {take(stream) for _ in range(30)}
    assert len(ids) == 15
    tally = stream.tally.take()
    assert tally.bad == {shards[2]: tally.bad.total()}
    assert tally.read == 30 + tally.bad.total()
