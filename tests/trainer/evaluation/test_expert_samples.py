"""A bounded part of a run's evaluation data, the same every time, with every class in it."""

from pathlib import Path

import pytest

from tests.trainer.evaluation.helpers import SIZE, write_shards
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.evaluation.expert_samples import read_samples


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """12 captioned images, every third without a caption, and three classes of 5, one after the other."""
    captions = [{"txt": "" if index % 3 == 2 else f"caption {index}\nsecond of {index}"} for index in range(12)]
    write_shards(tmp_path / "val-%d.tar", captions, shards=2)
    write_shards(tmp_path / "classes" / "test" / "%d.tar", [{"cls": str(index // 5)} for index in range(15)])
    (tmp_path / "classes" / "classnames.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "classes" / "zeroshot_classification_templates.txt").write_text("".join(f"{n} {{c}}\n" for n in range(40)))
    made = Config()
    made.model.image_size, made.data.caption_lines, made.data.max_bad_share = SIZE, True, 1.0
    made.data.val, made.eval.zeroshot = str(tmp_path / "val-*.tar"), str(tmp_path / "classes")
    return made


def test_pairs_are_the_first_images_with_all_their_captions(config: Config):
    pairs = read_samples(config, 4).pairs
    assert pairs is not None and len(pairs.images) == len(pairs.ids) == 4
    assert pairs.owner_t.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for caption, owner in zip(pairs.captions, pairs.owner_t.tolist(), strict=True):
        assert int(caption.split()[-1]) == int(pairs.images[owner, 1, 0, 0]), "a caption of its own image"


def test_every_class_has_as_many_images_though_they_are_sorted(config: Config):
    (classified,) = read_samples(config, 6).classified
    assert classified.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert classified.images[:, 1, 0, 0].tolist() == [0, 1, 5, 6, 10, 11]
    assert [name.rpartition("/")[2] for name in classified.ids] == [f"{n:06d}" for n in (0, 1, 5, 6, 10, 11)]
    assert len(classified.classes.templates) == 8, "four prompts a sample"
    assert classified.classes.prompts()[:9] == [*(f"{number} one" for number in range(8)), "0 two"]


def test_what_there_is_not_is_left_out_and_nothing_is_a_mistake(config: Config):
    config.eval.retrieval = False
    found = read_samples(config, 3)
    assert found.pairs is None
    assert found.shown().texts == found.classified[0].classes.prompts()
    config.eval.zeroshot = None
    with pytest.raises(UserError, match=r"set data\.val, eval\.retrieval or eval\.zeroshot"):
        read_samples(config, 3)
