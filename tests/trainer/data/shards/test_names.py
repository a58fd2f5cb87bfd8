"""Which file of a sample is which."""

import pytest

from tests.trainer.data.shards_on_disk import jpeg
from trainer.data.shards.captions import CaptionRule, require_pair
from trainer.data.shards.names import file_named
from trainer.data.shards.samples import Sample, Unusable


def test_the_only_file_with_an_ending_is_meant() -> None:
    files = {"1.jpg": b"a", "left.txt": b"b", "right.txt": b"c", "json": b"d", "meta.json": b"e"}
    assert file_named(files, "jpg") == b"a"
    assert file_named(files, "json") == b"d"
    assert file_named(files, "txt") is None
    assert file_named(files, "cls") is None


def test_one_dotted_pair_is_a_pair() -> None:
    sample = Sample("shard", "photo", {"1.jpg": jpeg(1), "1.txt": b"a dog"})
    assert require_pair(sample, CaptionRule()) == (jpeg(1), ["a dog"], None)


def test_several_dotted_images_are_told() -> None:
    sample = Sample("shard", "photo", {"1.jpg": jpeg(1), "2.jpg": jpeg(2), "1.txt": b"a dog"})
    with pytest.raises(Unusable, match=r"no image: it contains .1.jpg .1.txt .2.jpg; the first dot of a name ends its key"):
        require_pair(sample, CaptionRule())
