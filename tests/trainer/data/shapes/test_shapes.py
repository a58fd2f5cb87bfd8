"""The embedded data set."""

import json
import random
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.data.shapes.reading import captions, contents, pixels, samples
from trainer.config.schema import DataConfig
from trainer.data.shapes.draw import PALETTE, draw
from trainer.data.shapes.simple import (
    CLASS_NAMES,
    CLASSES,
    COLOURS,
    SEEN,
    SHAPES,
    TEMPLATES,
    UNSEEN,
    distinct_scenes,
    single_scene,
)
from trainer.data.shapes.write import TRAIN_PATTERN, VAL_PATTERN, write_shapes
from trainer.errors import UserError


def settings(cache: Path, train: int = 1600, val: int = 512, seed: int = 0) -> DataConfig:
    return DataConfig(kind="shapes", cache=str(cache), shapes_train=train, shapes_val=val, shapes_seed=seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(settings(tmp_path_factory.mktemp("cache") / "new"), 32)


def test_training_never_shows_or_names_the_held_out_combinations(folder: Path) -> None:
    said = captions(folder / TRAIN_PATTERN)
    assert len(said) == 1600
    for shape, colour in UNSEEN:
        assert not any(f"{colour} {shape}" in caption for caption in said)
    named = Counter(name for caption in said for name in CLASS_NAMES if name in caption)
    assert set(named) == {f"{colour} {shape}" for shape, colour in SEEN}
    assert {shape for shape, _ in UNSEEN} == set(SHAPES)  # one of each shape
    assert len({colour for _, colour in UNSEEN}) == 6  # and no colour twice
    assert 0.6 < sum(not any(word in caption for word in (" of ", "above", "below")) for caption in said) / 1600 < 0.8


def test_validation_captions_differ_pairwise(folder: Path) -> None:
    said = captions(folder / VAL_PATTERN)
    assert len(said) == len(set(said)) == 512
    assert len(distinct_scenes(3000, random.Random(0))) == 3000


@pytest.mark.parametrize(("name", "classes"), [("zeroshot", SEEN), ("zeroshot_unseen", tuple(UNSEEN))])
def test_zeroshot_layout(folder: Path, name: str, classes: tuple[tuple[str, str], ...]) -> None:
    found = samples(folder / name)
    labels = Counter(int(sample.files["cls"]) for sample in found)
    assert {CLASSES[label] for label in labels} == set(classes)
    assert len(set(labels.values())) == 1
    assert (folder / name / "classnames.txt").read_text().splitlines() == list(CLASS_NAMES)
    assert (folder / name / "zeroshot_classification_templates.txt").read_text().splitlines() == list(TEMPLATES)
    attributes = json.loads((folder / name / "class_attributes.json").read_text())
    assert [f"{colour} {shape}" for colour, shape in zip(attributes["colour"], attributes["shape"], strict=True)] == list(
        CLASS_NAMES
    )


def test_images_show_what_is_said(folder: Path) -> None:
    """The class's colour must be the commonest among the pixels that stand out from the background."""
    names = list(COLOURS)
    palette = np.array([PALETTE[name] for name in names], float)
    right = 0
    found = samples(folder / "zeroshot")[:300]
    for sample in found:
        image = pixels(sample).astype(float)
        assert image.shape == (32, 32, 3)
        background = np.median(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]), axis=0)
        shown = image[np.abs(image - background).sum(-1) > 120]
        nearest = np.abs(shown[:, None] - palette).sum(-1).argmin(-1)
        right += names[np.bincount(nearest).argmax()] == CLASSES[int(sample.files["cls"])][1]
    assert right >= 0.97 * len(found)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_their_own_outlines(shape: str) -> None:
    scenes = [single_scene(shape, "white", random.Random(seed)) for seed in range(20)]
    others = [single_scene(other, "white", random.Random(seed)) for other in SHAPES if other != shape for seed in range(20)]

    def cover(scene_list: list) -> np.ndarray:
        """The share of the shape's bounding square that is white, and whether its middle is."""
        images = draw(scene_list, 64, np.random.default_rng(0)).min(-1) > 215
        rows = []
        for image, scene in zip(images, scene_list, strict=True):
            item = scene.items[0]
            rows.append((image.sum() / (2 * item.radius * 64) ** 2, image[int(item.y * 64), int(item.x * 64)]))
        return np.array(rows)

    mine, theirs = cover(scenes), cover(others)
    assert mine[:, 0].min() > 0.1
    assert mine[:, 1].all() == (shape != "ring")
    assert abs(mine[:, 0].mean() - theirs[:, 0].mean()) > 0.01


def test_two_shapes_stand_as_said(folder: Path) -> None:
    checked = 0
    for sample in samples(folder / TRAIN_PATTERN):
        caption = sample.files["txt"].decode()
        if not caption.startswith("a red ") or "right of a cyan " not in caption:
            continue
        image = pixels(sample).astype(int)
        red = np.abs(image - PALETTE["red"]).sum(-1) < 90
        cyan = np.abs(image - PALETTE["cyan"]).sum(-1) < 90
        assert np.nonzero(red)[1].mean() > np.nonzero(cyan)[1].mean()
        checked += 1
    assert checked


def test_it_is_written_once_and_depends_on_the_settings_only(folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_shapes(settings(folder.parent), 32) == folder
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    small = {"train": 32, "val": 8}
    first, second = (write_shapes(settings(tmp_path / name, **small), 16) for name in ("one", "two"))
    assert contents(first) == contents(second)
    other = write_shapes(settings(tmp_path / "one", seed=1, **small), 16)
    assert other != first
    assert contents(other)["train-000.tar"] != contents(first)["train-000.tar"]


def test_concurrent_writers_agree(tmp_path: Path) -> None:
    data = settings(tmp_path, train=16, val=4)
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(write_shapes(data, 16))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 3
    assert list(tmp_path.iterdir()) == [made[0]]
    assert len(samples(made[0] / TRAIN_PATTERN)) == 16


def test_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"data.cache"):
        write_shapes(settings(tmp_path / "file" / "cache"), 32)
