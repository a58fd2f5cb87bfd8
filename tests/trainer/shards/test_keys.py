"""Keys in shards: read back as they were written, whatever they were."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.shards.samples import read_samples
from trainer.data.shards.write import ShardWriter, packed_sample
from trainer.shards.keys import LONGEST, safe_key

STRANGE = [
    "a.b",
    ".hidden",
    "a/../b",
    "/a//b/",
    "x~",
    "__MACOSX/1",
    "thumbs.db",
    "",
    ".",
    "e\u0301\U0001f600",
    "\udcff",
    "\ud800",
    "a\nb",
    "#a#",
    "x" * 400,
]


def test_a_usual_key_stays(tmp_path: Path):
    for key in ("000012", "city/photo 1", "été/图片"):
        assert safe_key(key, 0) == key
    assert safe_key("000012", 2) == "000012__3" != safe_key("000012__3", 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(codec=None), max_size=12), max_size=4))
def test_any_keys_are_read_back_apart_from_each_other(tmp_path_factory: pytest.TempPathFactory, texts: list[str]):
    path = tmp_path_factory.getbasetemp() / "keys.tar"
    keys = list(dict.fromkeys([*texts, *STRANGE]))
    safe = [safe_key(key, 0) for key in keys]
    with ShardWriter(path) as shard:
        for key in safe:
            shard.write(packed_sample(key, {"jpg": b"image", "txt": b"text"}))
    read = list(read_samples(str(path)))
    assert [sample.key for sample in read] == safe and len(set(safe)) == len(keys)
    assert all(set(sample.files) == {"jpg", "txt"} for sample in read)
    assert max(len(key.encode()) for key in safe) <= LONGEST + 9
