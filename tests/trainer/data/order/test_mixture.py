"""Several sources in one order: shares, passes, and any place to begin from, by arithmetic alone and over shards on disk."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.data.shards_on_disk import write_shards
from trainer.data.order.dealing import rows_of_reader
from trainer.data.order.mixture import ALONE, Mixture, Phase, Reader, Source, dealt
from trainer.data.shards.captions import CaptionRule

PARTS = st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(sum).map(tuple)


@given(parts=PARTS, streams=st.sampled_from([1, 3, 16, 60]), count=st.integers(0, 400), data=st.data())
def test_a_stream_deals_one_pair_after_the_other_and_never_takes_one_back(
    parts: tuple[int, ...], streams: int, count: int, data: st.DataObject
) -> None:
    stream = data.draw(st.integers(0, streams - 1))
    now, then = dealt(parts, stream, streams, count), dealt(parts, stream, streams, count + 1)
    assert sum(now) == count
    assert sorted(b - a for a, b in zip(now, then, strict=True)) == [0] * (len(parts) - 1) + [1]
    for got, part in zip(now, parts, strict=True):
        assert abs(got - count * part / sum(parts)) < 3
        assert got == 0 or part > 0


@pytest.mark.parametrize("parts", [(2, 1), (3, 2, 1), (1,) * 5, (50, 20, 15, 10, 5), (1000, 1, 1), (7, *(1,) * 7)])
@pytest.mark.parametrize(("streams", "each"), [(64, 1), (64, 4), (16, 4), (1, 8)])
def test_every_batch_has_nearly_its_share_of_every_source(parts: tuple[int, ...], streams: int, each: int) -> None:
    batch, before = streams * each, [0] * len(parts)
    for number in range(1, 40):
        of_streams = [dealt(parts, stream, streams, number * each) for stream in range(streams)]
        now = [sum(counts) for counts in zip(*of_streams, strict=True)]
        for got, had, part in zip(now, before, parts, strict=True):
            share = part / sum(parts)
            assert abs(got - had - batch * share) <= (1 if len(parts) == 2 else 4)
            assert abs(got - number * batch * share) <= (1 if len(parts) == 2 else 4), "it does not add up"
        before = now


def sources(folder: Path) -> list[Source]:
    """Of 6 shards, of 2 and of 1, each of 6 pairs."""
    found = []
    for name, shards in (("many", 6), ("few", 2), ("one", 1)):
        (folder / name).mkdir()
        found.append(Source(name, write_shards(folder / name, shards, 6), CaptionRule()))
    return found


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    return Mixture(sources(tmp_path_factory.mktemp("sources")), [Phase(0, {"many": 3, "few": 2, "one": 1})])


def ids(mixture: Mixture, streams: int, start: int, batches: int, world: int = 1, each: int = 3) -> list[list[str]]:
    """The ids of the batches that some readers make together; start: in batches."""
    made: list[list[str]] = [[] for _ in range(batches)]
    for rank in range(world):
        rows = rows_of_reader(streams * each, streams, rank, world, 0, 1)
        opened = Reader(mixture, 5, streams, 7, start * each, ({}, {}), None).open(rows)
        for batch in made:
            for stream, part in zip(opened, rows, strict=True):
                batch += [taken.pair.id for taken in stream.take(each)[part.first : part.end]]
    return made


def source_of(pair_id: str) -> str:
    return Path(pair_id).parents[1].name


def test_passes_over_a_source_are_complete_whoever_shares_its_shards(mixture: Mixture) -> None:
    drawn = [pair_id for batch in ids(mixture, 4, 0, 24) for pair_id in batch]
    assert Counter(map(source_of, drawn)) == mixture.drawn_by_all(4, len(drawn)) == {"many": 144, "few": 96, "one": 48}
    for name, size in (("many", 36), ("few", 12), ("one", 6)):
        of_source = [pair_id for pair_id in drawn if source_of(pair_id) == name]
        counts = Counter(of_source)
        assert len(counts) == size
        # Streams are a pair or two apart, so a pass ends for some while it begins for others.
        assert max(counts.values()) - min(counts.values()) <= 2
        assert sum(counts.values()) == len(of_source)


@pytest.mark.parametrize("world", [2, 3, 4, 6])
def test_the_same_batches_for_any_number_of_readers_from_any_place(mixture: Mixture, world: int) -> None:
    whole = ids(mixture, 4, 0, 12)
    assert ids(mixture, 4, 0, 12, world) == whole
    for start in (1, 5, 8):
        assert ids(mixture, 4, start, 12 - start, world) == whole[start:]


@pytest.mark.parametrize(("start", "weights"), [(1, (1, 1, 1)), (7, (1, 5, 9)), (13, (0, 1, 2))])
def test_a_source_continues_where_it_was_when_the_shares_change(mixture: Mixture, start: int, weights: tuple[int, ...]) -> None:
    parts = dict(zip(("many", "few", "one"), weights, strict=True))
    later = Mixture(mixture.sources, [*mixture.phases, Phase(start * 12, parts)])
    drawn = [pair_id for batch in ids(mixture, 4, 0, start) + ids(later, 4, start, 10) for pair_id in batch]
    assert Counter(map(source_of, drawn)) == Counter(later.drawn_by_all(4, len(drawn)))
    for name in parts:
        counts = Counter(pair_id for pair_id in drawn if source_of(pair_id) == name)
        assert not counts or max(counts.values()) - min(counts.values()) <= 2
    assert ids(later, 4, start + 3, 4) == ids(later, 4, start, 7)[3:]


def test_sources_come_and_go(mixture: Mixture) -> None:
    many, few, one = mixture.sources
    phases = [Phase(0, {"many": 1}), Phase(48, {"many": 1, "one": 1}), Phase(96, {"one": 1, "few": 2})]
    drawn = [
        pair_id
        for found, until, start in (([many], 1, 0), ([many, one], 2, 4), ([one, few], 3, 8))
        for batch in ids(Mixture(found, phases[:until]), 4, start, 4)
        for pair_id in batch
    ]
    counts = [Counter(map(source_of, drawn[first : first + 48])) for first in (0, 48, 96)]
    assert counts == [{"many": 48}, {"many": 24, "one": 24}, {"few": 32, "one": 16}]
    assert Counter(map(source_of, drawn)) == Mixture([one, few], phases).drawn_by_all(4, 144)
    alone = ids(Mixture.of_one(many.shards, CaptionRule()), 4, 0, 4)
    assert drawn[:48] == [pair_id for batch in alone for pair_id in batch], "a single source needs no name"


def test_pairs_drawn_with_replacement_come_from_all_shards_but_unevenly(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, 12, 3)
    drawn = Mixture([Source("a", shards, CaptionRule(), replacement=True)], [Phase(0, {"a": 1})])
    whole = [pair_id for batch in ids(drawn, 2, 0, 36) for pair_id in batch]
    counts = Counter(Path(pair_id).parent.name for pair_id in whole)
    assert len(counts) == 12
    assert max(counts.values()) >= 2 * min(counts.values())
    assert ids(drawn, 2, 10, 20) == ids(drawn, 2, 0, 30, 2)[10:]


def test_buffers_of_all_sources_hold_what_that_of_one_would(mixture: Mixture) -> None:
    assert Mixture.of_one(mixture.sources[0].shards, CaptionRule()).buffer_of(Source("", ["a"], CaptionRule()), 1, 2000) == 2000
    assert [mixture.buffer_of(source, 4, 1200) for source in mixture.sources] == [600, 800, 800]
    later = Mixture(mixture.sources, [*mixture.phases, Phase(12, {"many": 1, "few": 9, "one": 9})])
    assert [later.buffer_of(source, 4, 1200) for source in later.sources] == [600, 800, 800], "a resumed order needs the old ones"


def test_a_checkpoint_of_one_source_without_a_name_has_nothing_to_record(mixture: Mixture) -> None:
    assert Mixture.of_one(["a.tar"], CaptionRule()).recorded() == []
    assert mixture.recorded() == [{"pairs": 0, "parts": {"many": 3, "few": 2, "one": 1}, "asked": {}}]
    assert Phase(**mixture.recorded()[0]) == mixture.phases[0] != ALONE
