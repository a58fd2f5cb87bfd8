"""Crops and normalisation."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from model.preprocess import centre_crop, normalise
from trainer.data.transforms import least_side, random_crop


def gradient(width: int, height: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


@pytest.mark.parametrize("size", [(32, 32), (400, 100), (10, 300), (1, 1)])
def test_crops_have_the_asked_shape(size: tuple[int, int]) -> None:
    image = gradient(*size)
    for crop in (random_crop(image, 16, (0.1, 1.0), (0.75, 1.33), True, random.Random(0)), centre_crop(image, 16)):
        assert crop.shape == (3, 16, 16)
        assert crop.dtype == torch.uint8
        assert crop.is_contiguous()


def test_only_the_generator_decides() -> None:
    image = gradient(64, 64)

    def crop(seed: int) -> torch.Tensor:
        return random_crop(image, 16, (0.2, 1.0), (0.75, 1.33), True, random.Random(seed))

    assert torch.equal(crop(1), crop(1))
    assert not torch.equal(crop(1), crop(2))


def test_a_crop_takes_the_asked_share_of_the_area() -> None:
    rng = random.Random(0)
    for _ in range(50):
        crop = random_crop(gradient(256, 256), 64, (0.25, 0.25), (1.0, 1.0), False, rng).int()
        width = crop[0, 32, -1] - crop[0, 32, 0]
        assert 118 <= width <= 132  # half of the side, less the half pixels at both ends


def test_flip_mirrors_half() -> None:
    rng = random.Random(0)
    mirrored = [
        int(crop[0, 8, 0] > crop[0, 8, -1])
        for crop in (random_crop(gradient(32, 32), 16, (1.0, 1.0), (1.0, 1.0), True, rng) for _ in range(200))
    ]
    assert 70 < sum(mirrored) < 130


def test_centre_crop_takes_the_middle() -> None:
    crop = centre_crop(gradient(300, 100), 50)
    assert crop[0, 25, 0] == pytest.approx(255 / 3, abs=3)
    assert crop[0, 25, -1] == pytest.approx(255 * 2 / 3, abs=3)
    assert crop[1, 0, 25] <= 3
    assert crop[1, -1, 25] >= 252


def test_normalise() -> None:
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    values = normalise(images, [0.5, 0.4, 0.25], [0.5, 0.2, 0.25], torch.float32).flatten()
    torch.testing.assert_close(values, torch.tensor([-1.0, (128 / 255 - 0.4) / 0.2, 3.0]))
    assert normalise(images, [0.5] * 3, [0.5] * 3, torch.bfloat16).dtype == torch.bfloat16


def test_the_least_side_leaves_twice_the_size_to_the_narrowest_crop() -> None:
    side = least_side(32, (0.25, 1.0), (0.25, 4.0))
    assert side * (0.25 * 0.25) ** 0.5 >= 64
