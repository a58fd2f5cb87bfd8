"""The harder embedded data set: its captions are read here by a grammar of the test's own, and compared with what is drawn."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.data.shapes.reading import captions, contents, pixels, samples
from trainer.config.compose import compose_config
from trainer.config.schema import DataConfig
from trainer.data.shapes.draw import PALETTE, draw
from trainer.data.shapes.hard import (
    COLOURS,
    KINDS,
    PLACES,
    RARE,
    RECIPE,
    SEEN,
    SHAPES,
    SIZES,
    TEXTURES,
    UNSEEN,
    UNSEEN_PAIRS,
    Arrangement,
    Kind,
    Placed,
    distinct_scenes,
    scene,
    training_scene,
)
from trainer.data.shapes.scene import Item, Scene
from trainer.data.shapes.write import TRAIN_PATTERN, VAL_PATTERN, write_shapes
from trainer.data.sources import with_shapes
from trainer.data.tokenizer import train_tokenizer

TRAILING = {"stripes": "striped", "dots": "dotted", "checks": "checked", "a border": "bordered"}
NAME = re.compile(
    rf"(?:an? )?(?:({'|'.join(SIZES)}) )?(?:({'|'.join(TEXTURES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    rf"(?: with ({'|'.join(TRAILING)})\b)?"
)
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "over": (0, -1), "below": (0, 1), "under": (0, 1)}


def settings(cache: Path, train: int = 400, val: int = 128, seed: int = 0) -> DataConfig:
    return DataConfig(kind="shapes_hard", cache=str(cache), shapes_train=train, shapes_val=val, shapes_seed=seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(settings(tmp_path_factory.mktemp("cache")), 16)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(5)
    return [training_scene(rng) for _ in range(1000)]


def check_name(name: re.Match[str], item: Item) -> None:
    size, texture, colour, shape, trailing = name.groups()
    assert (colour, shape) == (item.colour, item.shape)
    assert texture in (None, item.texture)
    assert trailing is None or TRAILING[trailing] == item.texture
    if size:
        smallest, largest = SIZES[size]
        assert smallest <= item.radius * 32 <= largest


def check_direction(words: str, one: Item, other: Item, name: str) -> None:
    """Whether `one` stands to `other` as the only direction among the words says."""
    (word,) = set(words.split()) & set(DIRECTIONS)
    right, down = DIRECTIONS[word]
    assert (one.x - other.x) * right + (one.y - other.y) * down > 0.4, name
    assert abs((one.x - other.x) * down + (one.y - other.y) * right) < 0.05, name


def check_caption(drawn: Scene) -> None:
    """Every word of a caption is understood, and true of what is drawn."""
    text = drawn.caption
    if found := re.search(r" on a (\w+) background$", text):
        assert found[1] == drawn.background
        text = text[: found.start()]
    names = list(NAME.finditer(text))
    assert len(names) == len(drawn.items) and names[0].start() == 0
    for name, item in zip(names, drawn.items, strict=True):
        check_name(name, item)
    ends = [name.start() for name in names[1:]] + [len(text)]
    between = [text[name.end() : end].strip() for name, end in zip(names, ends, strict=True)]
    first, *others = drawn.items
    if not others:
        assert between[0] in ("", *PLACES)
        if between[0]:
            assert np.allclose((first.x, first.y), PLACES[between[0]], atol=0.03)
    elif " it" in text:  # a red circle with a blue square below it and a green star on its left
        assert between[0] == "with"
        for other, words in zip(others, between[1:], strict=True):
            assert re.fullmatch(r"(on its (left|right)|(above|below) it)( and)?", words)
            check_direction(words, other, first, drawn.caption)
    elif between[:2] != ["and", ""] and between[0] != ",":  # not a mere list
        for other, words in zip(others, between, strict=False):
            assert re.fullmatch(r"(and )?((to the )?(left|right) of|above|below|over|under)( and)?", words)
            check_direction(words.replace("and", ""), first, other, drawn.caption)


def test_training_captions_are_true(scenes: list[Scene]) -> None:
    for drawn in scenes:
        check_caption(drawn)
    objects = Counter(len(drawn.items) for drawn in scenes)
    assert set(objects) == {1, 2, 3} and min(objects.values()) > 200
    assert len({drawn.caption for drawn in scenes}) > 900


def test_validation_captions_are_true_full_and_come_with_the_exchanged_scene() -> None:
    found = distinct_scenes(400, random.Random(0))
    captions = {drawn.caption for drawn in found}
    assert len(found) == len(captions) == 400
    where = set()
    for drawn in found:
        check_caption(drawn)
        assert re.search(r"on a (dim|grey|light) background$", drawn.caption)
        assert len(re.findall("|".join(TEXTURES), drawn.caption)) == len(drawn.items)
        where.add(frozenset((i.texture, i.colour, i.shape, round(i.x * 4), round(i.y * 4)) for i in drawn.items))
    assert len(where) == 400, "two scenes that one caption describes"
    kinds = Counter(frozenset((i.texture, i.colour, i.shape) for i in drawn.items) for drawn in found if len(drawn.items) > 1)
    assert sum(count >= 2 for count in kinds.values()) >= len(kinds) - 1  # the last one's may be cut off


def test_nothing_held_out_is_seen_or_named_before_the_test(scenes: list[Scene], folder: Path) -> None:
    for drawn in [*scenes, *distinct_scenes(200, random.Random(1))]:
        assert not {(item.colour, item.shape) for item in drawn.items} & UNSEEN_PAIRS
    said = captions(folder / TRAIN_PATTERN) + captions(folder / VAL_PATTERN)
    for caption in said:
        assert not {name.group(3, 4) for name in NAME.finditer(caption)} & UNSEEN_PAIRS
    assert {shape for _, shape in UNSEEN_PAIRS} == set(SHAPES) and {colour for colour, _ in UNSEEN_PAIRS} == set(COLOURS)
    assert set(UNSEEN) | set(SEEN) == set(KINDS) and len(UNSEEN) == len(UNSEEN_PAIRS) * len(TEXTURES)


def test_the_tail_is_long(scenes: list[Scene]) -> None:
    seen = Counter(Kind(item.texture, item.colour, item.shape) for drawn in scenes for item in drawn.items)
    assert 0.05 < sum(seen[kind] for kind in RARE) / seen.total() < 0.15
    assert len(RARE) == len(SEEN) // 3
    for name, values in {"texture": TEXTURES, "colour": COLOURS, "shape": SHAPES}.items():
        assert {getattr(kind, name) for kind in RARE} == set(values), "a whole attribute would be rare"


def test_captions_fit_into_24_tokens(scenes: list[Scene], tmp_path: Path) -> None:
    full = [drawn.caption for drawn in distinct_scenes(1000, random.Random(2))]
    tokenizer = train_tokenizer([*full, *(drawn.caption for drawn in scenes)], tmp_path / "tokenizer.model", 2048)
    lengths = (tokenizer(full, 40) != 0).sum(1)
    assert lengths.max() <= 24
    assert (lengths > 16).float().mean() > 0.6, "text_length 24 would be wasted"


@pytest.mark.parametrize("texture", TEXTURES)
def test_what_is_drawn_has_its_colour_at_its_place(texture: str) -> None:
    """More pixels near the object's place have its colour than any other, on every background and for every shape."""
    kinds = [kind for kind in KINDS if kind.texture == texture and kind.shape != "ring"]
    arranged = [
        Arrangement((Placed(kind, "medium", place),), background)
        for kind in kinds
        for place, background in (("on the left", "dim"), ("at the top", "light"))
    ]
    rng = random.Random(0)
    drawn = [scene(each, rng) for each in arranged]
    palette = np.array([PALETTE[colour] for colour in COLOURS], float)
    right = 0
    for each, image in zip(drawn, draw(drawn, 32, np.random.default_rng(0)).astype(float), strict=True):
        (item,) = each.items
        column, row, radius = (round(value * 32) for value in (item.x, item.y, item.radius))
        near = image[max(0, row - radius) : row + radius, max(0, column - radius) : column + radius].reshape(-1, 3)
        away = np.abs(near[:, None] - palette).sum(-1)
        votes = np.bincount(away.argmin(-1)[away.min(-1) < 60], minlength=len(COLOURS))
        if item.colour != "white":
            votes[COLOURS.index("white")] = 0  # dark colours have white in their textures
        right += COLOURS[votes.argmax()] == item.colour
    assert right >= 0.97 * len(drawn)


def test_every_texture_looks_different_on_every_shape() -> None:
    for shape in SHAPES:
        drawn = [Scene((Item(shape, "red", 0.5, 0.5, 0.35, 0.0, texture),), "dim", "") for texture in TEXTURES]
        images = draw(drawn, 32, np.random.default_rng(0)).astype(float)
        differences = np.abs(images[:, None] - images[None]).sum(-1) > 200
        changed = differences.sum((-1, -2))
        assert changed[~np.eye(len(TEXTURES), dtype=bool)].min() > 20, shape


@pytest.mark.parametrize(
    ("name", "classes", "images"),
    [("", len(SEEN), 1944), ("_rare", len(RARE), 864), ("_unseen", len(UNSEEN), 864), ("_relation", 96, 960)],
)
def test_an_evaluation_set_has_as_many_images_of_each_class(folder: Path, name: str, classes: int, images: int) -> None:
    labels = Counter(int(sample.files["cls"]) for sample in samples(folder / f"zeroshot{name}"))
    assert (len(labels), labels.total(), len(set(labels.values()))) == (classes, images, 1)
    names = (folder / f"zeroshot{name}" / "classnames.txt").read_text().splitlines()
    attributes = json.loads((folder / f"zeroshot{name}" / "class_attributes.json").read_text())
    assert len(set(names)) == len(names)
    assert {len(values) for values in attributes.values()} == {len(names)}
    if name == "_relation":
        assert set(Counter(attributes["objects"]).values()) == {4}
    else:
        assert {names[label] for label in labels} == set(map(str, {"": SEEN, "_rare": RARE, "_unseen": UNSEEN}[name]))


def test_a_relation_is_drawn_as_its_class_says() -> None:
    relations = RECIPE.zeroshot["relation"]
    rng = random.Random(0)
    for label, name in enumerate(relations.class_names):
        first, second = relations.scene(label, rng).items
        check_caption(Scene((first, second), "grey", f"a {name}"))
        assert f"{second.colour} {second.shape}" in name.split(" a ")[1]


def test_it_depends_on_the_settings_only(folder: Path, tmp_path: Path) -> None:
    again = write_shapes(settings(tmp_path), 16)
    assert again.name == folder.name and contents(again) == contents(folder)
    assert len(captions(folder / TRAIN_PATTERN)) == 400 and len(set(captions(folder / VAL_PATTERN))) == 128
    assert pixels(samples(folder / VAL_PATTERN)[0]).shape == (16, 16, 3)
    drawn = [training_scene(random.Random(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_configuration_evaluates_all_its_sets(folder: Path) -> None:
    config = compose_config(["data=shapes_hard"])
    assert (config.data.shapes_train, config.data.shapes_val) == (40_000, 1024)
    sets = with_shapes(config, folder).eval.zeroshot
    assert list(sets) == ["default", "rare", "unseen", "relation"]
    assert all(Path(path).is_dir() for path in sets.values())
