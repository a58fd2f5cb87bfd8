"""Folders in a store, here fsspec's own in memory, read as folders on disk are."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.trainer.data.shards_on_disk import pair, write_shard
from trainer.data.shards.captions import CaptionRule, _is_counted
from trainer.data.shards.remote import path, persistent
from trainer.data.shards.remote.path import RemotePath, named, place_of
from trainer.errors import UserError
from trainer.evaluation.benchmark import benchmark_sets
from trainer.evaluation.classification_set import read_classification_set


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A classification set at memory://sets/pets and a retrieval set at memory://sets/flickr."""
    monkeypatch.setattr(persistent, "FIRST_WAIT", 0.001)
    _is_counted.cache_clear()
    shard = Path(write_shard(tmp_path / "0.tar", [pair(0)])).read_bytes()
    files = {
        "pets/classnames.txt": b"cat\ndog\n",
        "pets/zeroshot_classification_templates.txt": b"a {c}\n",
        "flickr/dataset_type.txt": b"retrieval",
        "notes/readme.txt": b"",
    }
    system = fsspec.filesystem("memory")
    for name, content in files.items():
        system.pipe_file(f"/sets/{name}", content)
    for name in ("pets", "flickr"):
        system.pipe_file(f"/sets/{name}/test/0.tar", shard)
        system.pipe_file(f"/sets/{name}/test/nshards.txt", b"1")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_evaluation_sets_in_a_store(bucket: Any) -> None:
    pets = read_classification_set("memory://sets/pets", "eval.zeroshot")
    assert (pets.classes, pets.prompts(), pets.shards) == (["cat", "dog"], ["a cat", "a dog"], ["memory://sets/pets/test/0.tar"])
    kinds = {found.name: (found.kind, found.folder) for found in benchmark_sets("memory://sets")}
    assert kinds == {"flickr": ("retrieval", "memory://sets/flickr/"), "pets": ("classification", "memory://sets/pets/")}
    with pytest.raises(UserError, match=r"eval.zeroshot: memory://sets/cars is not a folder"):
        read_classification_set("memory://sets/cars", "eval.zeroshot")
    with pytest.raises(UserError, match=r"memory://sets/flickr/classnames.txt is missing"):
        read_classification_set("memory://sets/flickr", "eval.zeroshot")


def test_lines_are_captions_next_to_a_count_in_a_store_too(bucket: Any) -> None:
    assert CaptionRule().splits("memory://sets/flickr/test/0.tar")
    assert not CaptionRule().splits("memory://sets/flickr/0.tar")
    assert not CaptionRule(lines=False).splits("memory://sets/flickr/test/0.tar")
    assert not CaptionRule().splits("pipe:cat memory://sets/flickr/test/0.tar")


def test_a_store_that_does_not_say_how_captions_are_written_is_not_guessed(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any, **named: Any) -> None:
        raise OSError("reset by peer")

    monkeypatch.setattr(path, "TRIES", 2)
    monkeypatch.setattr(type(bucket), "info", failing)
    with pytest.raises(UserError, match=r"flickr/test/nshards.txt: reset by peer \(tried 2 times\): .* set data.caption_lines"):
        CaptionRule().splits("memory://sets/flickr/test/0.tar")


def test_a_folder_is_read_again_as_it_was_named(tmp_path: Path) -> None:
    for text in ("s3://bucket/set", "https://me:hush@x.example/set/", str(tmp_path)):
        place = place_of(text, "eval.suite")
        assert place_of(named(place), "eval.suite") == place
        assert "hush" not in f"{place} {named(place)} {place / 'a.txt'}"
    with pytest.raises(UserError, match="a path is needed here"):
        place_of("pipe:cat x", "eval.suite")


def test_the_query_of_a_url_stays_behind_the_names() -> None:
    folder = RemotePath("https://x.example/set/?version=2")
    assert str(folder / "test" / "0.tar") == "https://x.example/set/test/0.tar?version=2"
    assert (folder / "test").name == "test"
