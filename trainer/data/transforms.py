"""Images into what the model sees: crops on the CPU, normalisation on the device."""

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels

CROP_TRIES = 10  # random boxes tried until one fits into the image
REDUCING_GAP = 2.0  # a large box is first shrunk by a whole factor to no less than twice the size: faster, looks the same


def random_crop(
    image: Image.Image, size: int, scale: Sequence[float], ratio: Sequence[float], flip: bool, rng: random.Random
) -> Tensor:
    """A random part of an RGB image as uint8 `[3, size, size]`.

    The part takes a share of the area drawn from `scale`, with a width to height from `ratio` (drawn evenly in its
    logarithm); with `flip` half of the crops are mirrored. Only `rng` decides.
    """
    crop = _resized(image, size, _random_box(image.width, image.height, scale, ratio, rng))
    return crop.flip(2) if flip and rng.random() < 0.5 else crop


def centre_crop(image: Image.Image, size: int) -> Tensor:
    """The central square of an RGB image, its shorter side scaled to `size`, as uint8 `[3, size, size]`."""
    return _resized(image, size, _central_box(image.width, image.height, 1.0, 1.0))


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """uint8 `[B, 3, H, W]` as `(value / 255 - mean) / std` in `dtype`, on the device the images are on."""
    mean_c11 = torch.tensor(list(mean), dtype=torch.float32, device=images.device).view(3, 1, 1)
    std_c11 = torch.tensor(list(std), dtype=torch.float32, device=images.device).view(3, 1, 1)
    return torch.addcmul(-mean_c11 / std_c11, images.float(), 1 / (255 * std_c11)).to(dtype)


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
    return _central_box(width, height, ratio[0], ratio[1])


def _central_box(width: int, height: int, lowest_ratio: float, highest_ratio: float) -> Box:
    """The largest box in the middle whose width to height lies between the two ratios."""
    box_width, box_height = min(width, height * highest_ratio), min(height, width / lowest_ratio)
    left, upper = (width - box_width) / 2, (height - box_height) / 2
    return left, upper, left + box_width, upper + box_height


def _resized(image: Image.Image, size: int, box: Box) -> Tensor:
    resized = image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=REDUCING_GAP)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
