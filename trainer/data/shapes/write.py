"""The embedded data set: coloured shapes and captions, written as ordinary shards on first use.

Six combinations of shape and colour are kept out of training: a model that names them has combined what it learned separately.
"""

import hashlib
import io
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

from model.paths import user_path
from trainer.config.schema import DataConfig
from trainer.data.shapes.draw import draw
from trainer.data.shapes.scenes import (
    CLASS_NAMES,
    CLASSES,
    SEEN,
    TEMPLATES,
    UNSEEN,
    Scene,
    distinct_scenes,
    single_scene,
    training_scene,
)
from trainer.errors import UserError

VERSION = 2  # increase this when the images or captions change: old caches are then left alone
TRAIN_SHARDS = 16
VAL_SHARDS = 4
SEEN_IMAGES = 24  # of each class
UNSEEN_IMAGES = 50
FEWSHOT_IMAGES = 30
DRAWN_AT_ONCE = 500

TRAIN_PATTERN = f"train-{{000..{TRAIN_SHARDS - 1:03}}}.tar"
VAL_PATTERN = f"val-{{000..{VAL_SHARDS - 1:03}}}.tar"


def write_shapes(data: DataConfig, image_size: int) -> Path:
    """The folder of the embedded data set, written if `data.cache` does not contain it yet.

    It has `train-000.tar` …, `val-000.tar` … (image and caption; see TRAIN_PATTERN and VAL_PATTERN), and `zeroshot/` and
    `zeroshot_unseen/` (CLIP_benchmark's classification layout, with the colour and shape of each class in
    `class_attributes.json`), and `fewshot/train/` with other images of the classes in `zeroshot/`. Several processes may call it
    at once. Raises UserError when the folder cannot be written.
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
    settings = [VERSION, image_size, data.shapes_train, data.shapes_val, data.shapes_seed]
    return user_path(data.cache, "data.cache") / f"shapes-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]}"


def _rename(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.rename(folder)
    except OSError:
        # Another process was faster; it has written the same.
        if not folder.is_dir():
            raise


def _write_all(folder: Path, data: DataConfig, image_size: int) -> None:
    scenes, pixels = _generators(data.shapes_seed, "train")
    training = (training_scene(scenes) for _ in range(data.shapes_train))
    _write_shards(folder, "train-{:03}.tar", TRAIN_SHARDS, _pairs(training, image_size, pixels))

    scenes, pixels = _generators(data.shapes_seed, "val")
    validation = iter(distinct_scenes(data.shapes_val, scenes))
    _write_shards(folder, "val-{:03}.tar", VAL_SHARDS, _pairs(validation, image_size, pixels))

    _write_zeroshot(folder / "zeroshot", SEEN, SEEN_IMAGES, data.shapes_seed, image_size)
    _write_zeroshot(folder / "zeroshot_unseen", tuple(sorted(UNSEEN)), UNSEEN_IMAGES, data.shapes_seed, image_size)
    _write_classes(folder / "fewshot" / "train", "fewshot", SEEN, FEWSHOT_IMAGES, data.shapes_seed, image_size)


def _write_zeroshot(folder: Path, combinations: tuple[tuple[str, str], ...], each: int, seed: int, image_size: int) -> None:
    _write_classes(folder / "test", folder.name, combinations, each, seed, image_size)
    (folder / "classnames.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    attributes = {"colour": [colour for _, colour in CLASSES], "shape": [shape for shape, _ in CLASSES]}
    (folder / "class_attributes.json").write_text(json.dumps(attributes, indent=1) + "\n")


def _write_classes(
    folder: Path, part: str, combinations: tuple[tuple[str, str], ...], each: int, seed: int, image_size: int
) -> None:
    """Labelled images of single shapes in random order, as one shard of CLIP_benchmark's layout."""
    scenes, pixels = _generators(seed, part)
    labels = [CLASSES.index(combination) for combination in combinations for _ in range(each)]
    scenes.shuffle(labels)
    images = _images((single_scene(*CLASSES[label], scenes) for label in labels), image_size, pixels)
    samples = ({"jpg": image, "cls": label} for label, (_, image) in zip(labels, images, strict=True))
    folder.mkdir(parents=True)
    _write_shards(folder, "{}.tar", 1, samples)
    (folder / "nshards.txt").write_text("1\n")


def _generators(seed: int, part: str) -> tuple[random.Random, np.random.Generator]:
    """One generator for the scenes and one for the pixels, separate for each part."""
    scenes = random.Random(f"shapes/{seed}/{part}")
    return scenes, np.random.default_rng(scenes.getrandbits(64))


def _pairs(scenes: Iterator[Scene], image_size: int, pixels: np.random.Generator) -> Iterator[dict[str, Any]]:
    return ({"jpg": image, "txt": scene.caption} for scene, image in _images(scenes, image_size, pixels))


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


def _write_shards(folder: Path, name: str, shards: int, samples: Iterator[dict[str, Any]]) -> None:
    writers = [webdataset.TarWriter(str(folder / name.format(shard)), mtime=0) for shard in range(shards)]
    try:
        for index, sample in enumerate(samples):
            writers[index % shards].write({"__key__": f"{index:06}", **sample})
    finally:
        for writer in writers:
            writer.close()
