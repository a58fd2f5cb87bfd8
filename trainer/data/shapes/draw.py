"""Draws scenes: many images at once, from signed distances, so that edges are smooth and positions finer than a pixel."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.shapes.scenes import BACKGROUNDS, COLOURS, Item, Scene

Floats = NDArray[np.float32]

COLOUR_JITTER = 10.0  # largest change of a colour channel, out of 255
NOISE = 6.0  # standard deviation of the pixel noise, out of 255


def draw(scenes: Sequence[Scene], image_size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The scenes as uint8 `[n, image_size, image_size, 3]`."""
    images_nhwc = np.empty((len(scenes), image_size, image_size, 3), np.float32)
    for index, scene in enumerate(scenes):
        images_nhwc[index] = BACKGROUNDS[scene.background] + rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3)
    layers = max(len(scene.items) for scene in scenes)
    for layer in range(layers):
        _paint(images_nhwc, {n: scene.items[layer] for n, scene in enumerate(scenes) if layer < len(scene.items)}, rng)
    images_nhwc += NOISE * rng.standard_normal(images_nhwc.shape, np.float32)
    return images_nhwc.round().clip(0, 255).astype(np.uint8)


def _paint(images_nhwc: Floats, items: dict[int, Item], rng: np.random.Generator) -> None:
    image_size = images_nhwc.shape[1]
    centres = (np.arange(image_size, dtype=np.float32) + 0.5) / image_size
    for shape, distance in _DISTANCES.items():
        chosen = [n for n, item in items.items() if item.shape == shape]
        if not chosen:
            continue
        x, y, radius, angle = (
            np.array([getattr(items[n], name) for n in chosen], np.float32)[:, None, None]
            for name in ("x", "y", "radius", "angle")
        )
        right, down = centres[None, None, :] - x, centres[None, :, None] - y
        along = (right * np.cos(angle) + down * np.sin(angle)) / radius
        across = (down * np.cos(angle) - right * np.sin(angle)) / radius
        # A pixel is covered in proportion to how far its centre lies inside the edge, within half a pixel.
        cover_nhw = (0.5 - distance(along, across) * radius * image_size).clip(0, 1)[..., None]
        colours = np.array([COLOURS[items[n].colour] for n in chosen], np.float32)
        colours += rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, colours.shape).astype(np.float32)
        images_nhwc[chosen] += cover_nhw * (colours[:, None, None, :] - images_nhwc[chosen])


# Signed distances to shapes of radius 1, negative inside; x to the right, y down.


def _circle(x: Floats, y: Floats) -> NDArray[Any]:
    return np.hypot(x, y) - 0.92


def _ring(x: Floats, y: Floats) -> NDArray[Any]:
    return np.abs(np.hypot(x, y) - 0.74) - 0.22


def _square(x: Floats, y: Floats) -> NDArray[Any]:
    return np.maximum(np.abs(x), np.abs(y)) - 0.78


def _cross(x: Floats, y: Floats) -> NDArray[Any]:
    longer, shorter = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(longer - 0.95, shorter - 0.27)


def _triangle(x: Floats, y: Floats) -> NDArray[Any]:
    # One side below, two sloping ones that meet above.
    return np.maximum(y - 0.62, 0.88 * np.abs(x) - 0.475 * y - 0.47)


def _star(x: Floats, y: Floats) -> NDArray[Any]:
    # Fold the five points onto one half of the upper one, whose edge is then a straight line.
    fifth = 2 * np.pi / 5
    radius, turn = np.hypot(x, y), np.arctan2(x, -y)
    turn = np.abs((turn + fifth / 2) % fifth - fifth / 2)
    tip, notch = (0.0, 1.05), (0.44 * np.sin(fifth / 2), 0.44 * np.cos(fifth / 2))
    edge = (notch[0] - tip[0], notch[1] - tip[1])
    length = np.hypot(*edge)
    return (-(edge[1] * (radius * np.sin(turn) - tip[0]) - edge[0] * (radius * np.cos(turn) - tip[1])) / length).astype(
        np.float32
    )


_DISTANCES: dict[str, Callable[[Floats, Floats], NDArray[Any]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
}
