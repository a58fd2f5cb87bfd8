"""The embedded data sets: coloured shapes and captions, written as ordinary shards on first use."""

import hashlib
import io
import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.paths import user_path
from trainer.config.schema import DataConfig
from trainer.data.shapes import hard, simple
from trainer.data.shapes.draw import draw
from trainer.data.shapes.recipe import Recipe, ZeroShotSet
from trainer.data.shapes.scene import Scene
from trainer.data.shards.write import ShardWriter, packed_sample
from trainer.errors import UserError

RECIPES: dict[str, Recipe] = {"shapes": simple.RECIPE, "shapes_hard": hard.RECIPE}
"""The embedded data sets, by `data.kind`."""
TRAIN_SHARDS = 16
VAL_SHARDS = 4
DRAWN_AT_ONCE = 500

TRAIN_PATTERN = f"train-{{000..{TRAIN_SHARDS - 1:03}}}.tar"
VAL_PATTERN = f"val-{{000..{VAL_SHARDS - 1:03}}}.tar"


def write_shapes(data: DataConfig, image_size: int) -> Path:
    """The folder of the embedded data set that `data.kind` names, written if `data.cache` does not contain it yet.

    It has `train-000.tar` …, `val-000.tar` … (image and caption; see TRAIN_PATTERN and VAL_PATTERN), and the folders of
    `zeroshot_folders` (CLIP_benchmark's classification layout, with what each class has of colour, shape and so on in
    `class_attributes.json`). Several processes may call it at once. Raises UserError when the folder cannot be written.
    """
    folder = shapes_folder(data, image_size)
    if folder.is_dir():
        return folder
    cache = folder.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".tmp", dir=cache))
        try:
            _write_all(unfinished, data, image_size)
            unfinished.chmod(0o755)
            _rename(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as problem:
        raise UserError(f"data.cache={data.cache}: cannot write the embedded data set there: {problem}") from None
    return folder


def shapes_folder(data: DataConfig, image_size: int) -> Path:
    """Where `write_shapes` puts the data set with these settings."""
    settings = [RECIPES[data.kind].version, image_size, data.shapes_train, data.shapes_val, data.shapes_seed]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    return user_path(data.cache, "data.cache") / f"{data.kind}-{digest}"


def zeroshot_folders(kind: str, folder: Path) -> dict[str, str]:
    """The classification sets of a data set in `folder`, as `eval.zeroshot` takes them: names to paths."""
    return {name: str(folder / _zeroshot_folder(name)) for name in RECIPES[kind].zeroshot}


def fewshot_folders(kind: str, folder: Path) -> dict[str, str]:
    """Those of `zeroshot_folders` that have a training part as well, as `eval.fewshot` takes them."""
    folders = zeroshot_folders(kind, folder)
    return {name: folders[name] for name, zeroshot in RECIPES[kind].zeroshot.items() if zeroshot.examples}


def _zeroshot_folder(name: str) -> str:
    return "zeroshot" if name == "default" else f"zeroshot_{name}"


def _rename(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.rename(folder)
    except OSError:
        # Another process was faster; it has written the same.
        if not folder.is_dir():
            raise


def _write_all(folder: Path, data: DataConfig, image_size: int) -> None:
    recipe = RECIPES[data.kind]

    def generators(part: str) -> tuple[random.Random, np.random.Generator]:
        """One generator for the scenes and one for the pixels, separate for each part."""
        scenes = random.Random(f"{data.kind}/{data.shapes_seed}/{part}")
        return scenes, np.random.default_rng(scenes.getrandbits(64))

    scenes, pixels = generators("train")
    training = (recipe.training(scenes) for _ in range(data.shapes_train))
    _write_shards(folder, "train-{:03}.tar", TRAIN_SHARDS, _pairs(training, image_size, pixels))

    scenes, pixels = generators("val")
    validation = iter(recipe.validation(data.shapes_val, scenes))
    _write_shards(folder, "val-{:03}.tar", VAL_SHARDS, _pairs(validation, image_size, pixels))

    for name, zeroshot in recipe.zeroshot.items():
        part = _zeroshot_folder(name)
        _write_zeroshot(folder / part, zeroshot)
        _write_labelled(folder / part / "test", zeroshot, zeroshot.labels, image_size, *generators(part))
        if zeroshot.examples:
            labels = tuple(label for label in sorted(set(zeroshot.labels)) for _ in range(zeroshot.examples))
            _write_labelled(folder / part / "train", zeroshot, labels, image_size, *generators(f"{part}/train"))


def _write_zeroshot(folder: Path, zeroshot: ZeroShotSet) -> None:
    folder.mkdir()
    (folder / "classnames.txt").write_text("\n".join(zeroshot.class_names) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(zeroshot.templates) + "\n")
    (folder / "class_attributes.json").write_text(json.dumps(dict(zeroshot.attributes), indent=1) + "\n")


def _write_labelled(
    folder: Path,
    zeroshot: ZeroShotSet,
    labels: Sequence[int],
    image_size: int,
    scenes: random.Random,
    pixels: np.random.Generator,
) -> None:
    """One part of a classification set: an image of each label, in random order."""
    shuffled = list(labels)
    scenes.shuffle(shuffled)
    images = _images((zeroshot.scene(label, scenes) for label in shuffled), image_size, pixels)
    samples = ({"jpg": image, "cls": str(label).encode()} for label, (_, image) in zip(shuffled, images, strict=True))
    folder.mkdir()
    _write_shards(folder, "{}.tar", 1, samples)
    (folder / "nshards.txt").write_text("1\n")


def _pairs(scenes: Iterator[Scene], image_size: int, pixels: np.random.Generator) -> Iterator[dict[str, bytes]]:
    return ({"jpg": image, "txt": scene.caption.encode()} for scene, image in _images(scenes, image_size, pixels))


def _images(scenes: Iterator[Scene], image_size: int, pixels: np.random.Generator) -> Iterator[tuple[Scene, bytes]]:
    at_once = max(1, DRAWN_AT_ONCE * 32 * 32 // image_size**2)
    waiting: list[Scene] = []
    for scene in scenes:
        waiting.append(scene)
        if len(waiting) == at_once:
            yield from zip(waiting, map(_jpeg, draw(waiting, image_size, pixels)), strict=True)
            waiting = []
    if waiting:
        yield from zip(waiting, map(_jpeg, draw(waiting, image_size, pixels)), strict=True)


def _jpeg(pixels: Any) -> bytes:
    encoded = io.BytesIO()
    # Colour at full resolution: at 32 pixels the usual halving blurs what is to be learned.
    Image.fromarray(pixels).save(encoded, "JPEG", quality=95, subsampling=0)
    return encoded.getvalue()


def _write_shards(folder: Path, name: str, shards: int, samples: Iterator[dict[str, bytes]]) -> None:
    with ExitStack() as stack:
        writers = [stack.enter_context(ShardWriter(folder / name.format(shard))) for shard in range(shards)]
        for index, files in enumerate(samples):
            writers[index % shards].write(packed_sample(f"{index:06}", files))
