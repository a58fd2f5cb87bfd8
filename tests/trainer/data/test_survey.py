"""How many pairs a source has, without reading all of it."""

import gzip
from pathlib import Path

import pytest

from tests.trainer.data.shards_on_disk import pair, write_shard, write_shards
from trainer.data import survey
from trainer.data.shards.captions import CaptionRule
from trainer.data.survey import estimate_pairs


def test_small_sources_are_counted(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, 3, 7)
    write_shard(Path(shards[1]), [pair(0), {"jpg": b"", "txt": "no image"}, pair(1)])
    assert estimate_pairs(shards, CaptionRule()) == 16
    assert estimate_pairs(shards, CaptionRule(min_side=21)) == 0


def test_many_shards_are_estimated_by_their_size(tmp_path: Path) -> None:
    shards = [write_shard(tmp_path / f"{n}.tar", [pair(n)] * (10 + 10 * (n % 3))) for n in range(20)]
    assert estimate_pairs(shards, CaptionRule()) == pytest.approx(sum(10 + 10 * (n % 3) for n in range(20)), rel=0.15)


def test_long_shards_are_not_read_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SAMPLES", 5)
    shards = write_shards(tmp_path, 1, 200)
    assert estimate_pairs(shards, CaptionRule()) == pytest.approx(200, rel=0.05)


def test_compressed_shards_are_read_since_their_size_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SAMPLES", 5)
    (shard,) = write_shards(tmp_path, 1, 20)
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(Path(shard).read_bytes()))
    assert estimate_pairs([str(packed)], CaptionRule()) == 20


def test_remote_shards_are_left_alone() -> None:
    assert estimate_pairs(["http://127.0.0.1:9/a.tar"], CaptionRule()) is None
