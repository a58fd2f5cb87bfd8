"""What makes one embedded data set differ from another: its scenes, its captions and its evaluation sets."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trainer.data.shapes.scene import Scene


@dataclass(frozen=True)
class ZeroShotSet:
    """A classification set.

    class_names: in label order; templates: prompts with `{c}` for the name; attributes: by name, one value per class;
    labels: the class of each image, in any order; scene: an image of a class, whose caption is not used.
    """

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]]
    labels: tuple[int, ...]
    scene: Callable[[int, random.Random], Scene]


@dataclass(frozen=True)
class Recipe:
    """An embedded data set.

    version: to be increased when the images or captions change, so that old caches are left alone; training: a scene with its
    caption; validation: a number of scenes with full captions, no two alike; zeroshot: by the name in `eval.zeroshot`.
    """

    version: int
    training: Callable[[random.Random], Scene]
    validation: Callable[[int, random.Random], list[Scene]]
    zeroshot: Mapping[str, ZeroShotSet]
