"""What is searched: the run's own evaluation pairs, or, without any, its classification set."""

from pathlib import Path

import pytest

from tests.trainer.data.shards_on_disk import jpeg, write_shard
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.explore.gallery import read_gallery


def config_for(**places: object) -> Config:
    config = Config()
    config.model.image_size, config.data.workers, config.data.max_bad_share = 8, 0, 1.0
    config.data.val, config.eval.zeroshot = places.get("val"), places.get("zeroshot")
    return config


def test_pairs_with_each_caption_once(tmp_path: Path):
    captions = ["a frog", "a dog", "a frog", "a dog"]
    shard = write_shard(tmp_path / "val.tar", [{"jpg": jpeg(n), "txt": text} for n, text in enumerate(captions)])
    found = read_gallery(config_for(val=shard), 3)
    assert (found.what, found.texts, found.texts_of) == ("data.val", ["a frog", "a dog"], [[0], [1], [0]])
    assert found.images.shape == (3, 3, 8, 8) and [name.rpartition("/")[2] for name in found.ids] == [
        "000000",
        "000001",
        "000002",
    ]
    assert found.said_of(2) == ["a frog"]


def test_images_without_captions(tmp_path: Path):
    shard = write_shard(tmp_path / "val.tar", [{"jpg": jpeg(n), "cls": str(n)} for n in range(3)])
    found = read_gallery(config_for(val=shard), 100)
    assert (len(found.ids), found.texts, found.texts_of) == (3, [], [[], [], []])


def test_a_classification_set_with_its_prompts(tmp_path: Path):
    (tmp_path / "test").mkdir()
    write_shard(tmp_path / "test" / "0.tar", [{"jpg": jpeg(n), "cls": str(n // 3)} for n in range(6)])
    (tmp_path / "classnames.txt").write_text("frog\ndog\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
    found = read_gallery(config_for(zeroshot={"animals": str(tmp_path)}), 4)
    assert found.what == "eval.zeroshot (animals)"
    assert found.texts == ["a frog", "the frog", "a dog", "the dog"]
    assert [found.said_of(image) for image in range(4)] == [["a frog"], ["a frog"], ["a dog"], ["a dog"]]


@pytest.mark.parametrize(
    ("places", "told"),
    [({}, "nothing to explore: set data.val=SHARDS"), ({"val": "/nowhere/val.tar"}, "/nowhere/val.tar")],
)
def test_without_data_one_line_says_what_to_set(places: dict[str, str], told: str):
    with pytest.raises(UserError, match=told):
        read_gallery(config_for(**places), 4)
