"""One stream: each sample once an epoch, from any position on, with or without the shards' lengths."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.trainer.data.shards_on_disk import pair, write_shard, write_shards
from trainer.data.order.progress import ShardLengths
from trainer.data.order.reading import Pair, Tally
from trainer.data.order.stream import Stream
from trainer.data.shards.samples import Sample
from trainer.errors import UserError


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


@dataclass
class Shelf:
    """Shards in memory, and what was done with them. A shard is a list of samples: pairs "p", others without a caption."""

    shards: dict[str, str]
    opened: list[str] = field(default_factory=list)
    half_read: set[str] = field(default_factory=set)
    read: list[str] = field(default_factory=list)  # ids of pairs

    def samples(self, shard: str, remote: object = None) -> Iterator[Sample]:
        """Takes the place of read_samples."""
        self.opened.append(shard)
        self.half_read.add(shard)
        for key, kind in enumerate(self.shards[shard]):
            sample = Sample(shard, str(key), {"jpg": b"image", "txt": b"words"} if kind == "p" else {"jpg": b"image"})
            if kind == "p":
                self.read.append(sample.id)
            yield sample
        self.half_read.discard(shard)

    def lengths(self, known: set[int]) -> ShardLengths:
        """The lengths of the shards of these numbers."""
        return ShardLengths({name: self.shards[name].count("p") for number, name in enumerate(self.shards) if number in known})


@dataclass(frozen=True)
class Case:
    """A stream, where it is resumed, and the shards whose lengths are known then."""

    shards: dict[str, str]
    streams: int
    stream: int
    buffer: int
    position: int
    known: set[int]

    def open(self, start: int = 0, lengths: ShardLengths | None = None) -> Stream:
        """The stream at a position."""
        return Stream(list(self.shards), 5, self.stream, self.streams, self.buffer, None, start, lengths)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    contents = draw(st.lists(st.text("ppp-", max_size=9), min_size=1, max_size=7))
    shards = {f"{number}.tar": content for number, content in enumerate(contents)}
    streams = draw(st.integers(1, len(shards)))
    return Case(
        shards,
        streams,
        stream=draw(st.integers(0, streams - 1)),
        buffer=draw(st.sampled_from([0, 1, 2, 3, 5, 8, 13, 100])),
        position=draw(st.integers(0, 90)),
        known=draw(st.sets(st.integers(0, len(shards) - 1))),
    )


def goes_on(stream: Stream, pairs: int) -> list[tuple[Pair, float, int, Counter[str]]]:
    """The next pairs, what their generators draw, and what is counted with each."""
    taken = []
    for _ in range(pairs):
        pair, rng = stream.next()
        tally = stream.tally.take()
        taken.append((pair, rng.random(), tally.read, tally.bad))
    return taken


@settings(max_examples=150, deadline=None)
@given(cases())
def test_a_resumed_stream_is_the_uninterrupted_one_whatever_is_known(case: Case) -> None:
    shelf = Shelf(case.shards)
    with mock.patch("trainer.data.order.reading.read_samples", shelf.samples):
        whole = case.open()
        try:
            taken = goes_on(whole, case.position)
            unread = Counter(shelf.read) - Counter(pair.id for pair, *_ in taken)
            must = Counter(shelf.half_read | {pair_id.split("/")[0] for pair_id in unread})
            shelf.opened.clear()
            expected = goes_on(whole, 1)
            must += Counter(shelf.opened)
            expected += goes_on(whole, 30)
        except UserError:  # nearly nothing but unusable samples
            assume(False)
        for known in ({*range(len(case.shards))}, case.known, set()):
            shelf.opened.clear()
            resumed = case.open(case.position, shelf.lengths(known))
            first = goes_on(resumed, 1)
            if case.position and len(known) == len(case.shards):
                assert Counter(shelf.opened) == must, "those of the buffer, the half-read one, what the next pair needs"
            resumed.look_ahead(0)
            assert resumed.tally.take() == Tally(), "what is looked at counts when it is taken"
            assert first + goes_on(resumed, 30) == expected


@pytest.mark.parametrize("position", [1, 17, 40])
def test_files_are_read_alike_after_a_resume(tmp_path: Path, position: int) -> None:
    shards = write_shards(tmp_path, 3, 7)
    lengths = ShardLengths()
    whole = Stream(shards, 1, 0, 2, 5, lengths=lengths)
    goes_on(whole, position)
    learned = lengths.take_news()
    assert set(learned.values()) == (set() if position == 1 else {7})
    expected = goes_on(whole, 30)
    for known in (ShardLengths(learned), ShardLengths()):
        assert goes_on(Stream(shards, 1, 0, 2, 5, None, position, known), 30) == expected


def test_many_epochs_are_passed_over_without_reading(tmp_path: Path) -> None:
    shards = [str(tmp_path / f"{number}.tar") for number in range(20)]  # not there
    lengths = ShardLengths(dict.fromkeys(shards, 1000))
    stream = Stream(shards, 1, 0, 4, 10, None, 5000 * 200 + 3, lengths)
    with pytest.raises(UserError, match="has 0 usable pairs, but had 1000 when this run read it before"):
        stream.next()


@pytest.mark.parametrize("left", [3, 6, 9])
def test_a_shard_that_lost_pairs_is_named(tmp_path: Path, left: int) -> None:
    shards = write_shards(tmp_path, 2, 10)
    lengths = ShardLengths(dict.fromkeys(shards, 10))
    position = 7
    half_read = goes_on(Stream(shards, 1, 0, 1, 0), position)[-1][0].shard
    write_shard(Path(half_read), [pair(number) for number in range(left)])
    stream = Stream(shards, 1, 0, 1, 0, None, position, lengths)
    with pytest.raises(UserError, match=f"shard {half_read} has {left} usable pairs, but had 10 when") as raised:
        goes_on(stream, 4)
    assert "\n" not in str(raised.value)


def test_a_shard_that_breaks_off_for_a_while_keeps_its_length(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, 1, 8)
    content = Path(shards[0]).read_bytes()
    lengths = ShardLengths()
    stream = Stream(shards, 1, 0, 1, 0, lengths=lengths)
    goes_on(stream, 9)  # into the second epoch
    Path(shards[0]).write_bytes(content[: content.index(b"000005.jpg") + 700])
    goes_on(stream, 7 + 5 + 1)  # through it, and through one of five pairs
    assert lengths.get(shards[0]) == 8
    assert stream.tally.bad.total() == 0, "goes_on takes the counts"


def test_a_stream_without_a_usable_pair_gives_up(tmp_path: Path) -> None:
    bare = [write_shard(tmp_path / f"{index}.tar", [{"cls": 1}] * 3) for index in range(4)]
    with pytest.raises(UserError, match="shards in a row without a usable pair"):
        Stream(bare, 1, 0, 2, 5).next()


def test_some_shards_may_be_lost_in_mid_training(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, 4, 5)
    Path(shards[2]).unlink()
    stream = Stream(shards, 1, 0, 1, 3)
    ids = {take(stream) for _ in range(30)}
    assert len(ids) == 15
    tally = stream.tally.take()
    assert (tally.read, tally.bad) == (30, {})
    assert tally.shards == 8, "two epochs"
    assert tally.bad_shards == {shards[2]: 2}
