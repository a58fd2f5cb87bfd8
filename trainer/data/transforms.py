"""Random crops, for training."""

import math
import random
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from model.preprocess import REDUCING_GAP, Box, central_box, resized

CROP_TRIES = 10  # random boxes to try until one fits into the image


def random_crop(
    image: Image.Image, size: int, scale: Sequence[float], ratio: Sequence[float], flip: bool, rng: random.Random
) -> Tensor:
    """A random part of an RGB image as uint8 `[3, size, size]`.

    The crop's share of the area is drawn from `scale`, and its ratio of width to height from `ratio` (uniformly in its
    logarithm); with `flip` half of the crops are mirrored. Only `rng` decides.
    """
    crop = resized(image, size, _random_box(image.width, image.height, scale, ratio, rng))
    return crop.flip(2) if flip and rng.random() < 0.5 else crop


def least_side(size: int, scale: Sequence[float], ratio: Sequence[float]) -> int:
    """The side in pixels that a decoder must keep so that the narrowest random crop still has twice `size`."""
    narrowest = math.sqrt(scale[0] * min(ratio[0], 1 / ratio[1]))
    return math.ceil(REDUCING_GAP * size / narrowest)


def _random_box(width: int, height: int, scale: Sequence[float], ratio: Sequence[float], rng: random.Random) -> Box:
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(scale[0], scale[1])
        proportion = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_width, box_height = math.sqrt(area * proportion), math.sqrt(area / proportion)
        if box_width <= width and box_height <= height:
            left, upper = rng.uniform(0, width - box_width), rng.uniform(0, height - box_height)
            return left, upper, min(left + box_width, width), min(upper + box_height, height)
    return central_box(width, height, ratio[0], ratio[1])
