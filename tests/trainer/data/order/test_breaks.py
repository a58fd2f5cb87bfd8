"""Shards that cannot be read for a while: what comes after is what would have come, also after a resume."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.data.order.test_stream import goes_on
from tests.trainer.data.shards_on_disk import write_shard, write_shards
from trainer.data.order import reading
from trainer.data.order.progress import ShardLengths
from trainer.data.order.stream import Stream
from trainer.data.shards.opening import Remote
from trainer.data.shards.samples import Sample, read_samples
from trainer.errors import UserError

EACH, SHARDS = 6, 5
EPOCH = EACH * SHARDS


class Reader:
    """Takes the place of read_samples: shards in `breaks` break off after so many samples, the next time that they are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.breaks: dict[str, int] = {}
        monkeypatch.setattr(reading, "read_samples", self.read)

    def read(self, shard: str, remote: Remote | None = None) -> Iterator[Sample]:
        left = self.breaks.pop(shard, None)
        for number, sample in enumerate(read_samples(shard, remote)):
            if number == left:
                yield Sample(shard, "(break)", broken="the connection was lost")
                return
            yield sample


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_shards(tmp_path, SHARDS, EACH)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    return Reader(monkeypatch)


def ids(stream: Stream, count: int) -> list[str]:
    return [pair.id for pair, *_ in goes_on(stream, count)]


@pytest.mark.parametrize("buffer", [0, 4, 100])
@pytest.mark.parametrize("known", [True, False], ids=["of known length", "at its first reading"])
def test_a_run_that_goes_on_after_a_break_draws_what_it_would_have_drawn(
    shards: list[str], reader: Reader, buffer: int, known: bool
) -> None:
    lengths = ShardLengths()
    whole = Stream(shards, 1, 0, 1, buffer, lengths=lengths)
    drawn = len(ids(whole, EPOCH + 1)) if known else 0
    reader.breaks[shards[2]] = 2
    while not (short := lengths.take_short_news()):
        drawn += len(ids(whole, 1))
    assert list(short.values()) == [2]
    learned: dict[str, int] = {}
    for _ in range(12):  # into the epoch after the next
        learned |= lengths.take_news()
        resumed = Stream(shards, 1, 0, 1, buffer, None, drawn, ShardLengths(learned, short))
        assert ids(resumed, 7) == ids(whole, 7)
        drawn += 7
    assert learned == dict.fromkeys(shards, EACH), "the shard is whole again"


def test_what_a_resume_cannot_read_again_leaves_its_places_and_the_order_of_the_others(shards: list[str], reader: Reader) -> None:
    gone, buffer = shards[2], 12
    whole = ids(Stream(shards, 1, 0, 1, buffer), 2 * EPOCH)
    tried = 0
    for start in range(1, EPOCH):
        lengths = ShardLengths()
        ids(Stream(shards, 1, 0, 1, buffer, lengths=lengths), start)
        held = {pair_id for pair_id in whole[start:EPOCH] if pair_id.startswith(gone)}
        if lengths.get(gone) is None or len(held) < 2:
            continue  # it is not read to its end by then, or nothing of it is left to lose
        tried += 1
        reader.breaks[gone] = min(int(pair_id.rsplit("/", 1)[1]) for pair_id in held) + 1  # the first of them can still be read
        got = ids(Stream(shards, 1, 0, 1, buffer, None, start, lengths), 2 * EPOCH - start)
        assert got != whole[start:]
        for pair_id, expected in zip(got, whole[start:], strict=True):
            assert pair_id in (expected, f"{gone}/(lost)")
            assert pair_id == expected or expected in held
    assert tried


def test_a_resume_that_can_read_nothing_of_what_it_held_ends(shards: list[str], reader: Reader) -> None:
    reader.breaks = dict.fromkeys(shards, 0)
    with pytest.raises(UserError, match=r"5 shards in a row without a usable pair|has 0 usable pairs, but had 6 when"):
        Stream(shards, 1, 0, 1, 12, None, EPOCH // 2, ShardLengths(dict.fromkeys(shards, EACH))).next()


def test_a_break_counts_as_a_shard_and_not_as_a_sample(shards: list[str], reader: Reader) -> None:
    reader.breaks[shards[2]] = 2
    stream = Stream(shards, 1, 0, 1, 0)
    for _ in range(EPOCH - EACH + 2 + 1):
        stream.next()
    tally = stream.tally.take()
    assert (tally.read, tally.bad, tally.shards, tally.bad_shards) == (EPOCH - EACH + 3, {}, SHARDS + 1, {shards[2]: 1})


def test_an_empty_shard_beside_few_others_ends_no_run(tmp_path: Path) -> None:
    shards = [*write_shards(tmp_path, 1, 2), write_shard(tmp_path / "empty.tar", [])]
    for stream in range(2):
        assert len(ids(Stream(shards, 3, stream, 2, 1), 600)) == 600


def test_the_end_of_patience_says_what_was_seen(tmp_path: Path) -> None:
    shards = [
        write_shard(tmp_path / "0.tar", [{"heic": b"x", "txt": "a"}] * 3),
        write_shard(tmp_path / "1.tar", [{"heic": b"x", "txt": "a"}] * 3),
        write_shard(tmp_path / "2.tar", []),
        str(tmp_path / "gone.tar"),
    ]
    with pytest.raises(UserError, match="4 shards in a row without a usable pair") as raised:
        Stream(shards, 1, 0, 1, 5).next()
    told = str(raised.value)
    assert "no image" in told
    assert "(6 times, such as " in told
    assert "/000000)" in told
    assert "No such file or directory" in told
    assert "\n" not in told


def test_shards_without_samples_are_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 shard without a usable pair, .*empty.tar: they contain no samples"):
        Stream([write_shard(tmp_path / "empty.tar", [])], 1, 0, 1, 5).next()
