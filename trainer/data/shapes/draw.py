"""Draws scenes: many images at once, from signed distances, so that edges are smooth and positions finer than a pixel."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.data.shapes.outlines import DISTANCES, Floats
from trainer.data.shapes.scene import Item, Scene
from trainer.data.shapes.textures import TEXTURES

PALETTE = {
    "red": (215, 40, 40),
    "green": (30, 150, 50),
    "blue": (45, 75, 225),
    "yellow": (245, 225, 50),
    "purple": (140, 45, 180),
    "pink": (250, 125, 190),
    "cyan": (60, 220, 225),
    "white": (252, 252, 252),
    "orange": (250, 135, 20),
    "brown": (125, 72, 30),
}
BACKGROUNDS = {"dark": 28, "dim": 62, "grey": 105, "light": 180}  # brightness out of 255
BLACK, WHITE = 8.0, 252.0
"""The second tone of a texture: white on dark colours, black on bright ones."""
BRIGHT = 130.0  # mean of a colour's channels from which it is a bright one

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
    for shape, distance in DISTANCES.items():
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
        outline = distance(along, across) * radius * image_size
        cover_nhw = (0.5 - outline).clip(0, 1)[..., None]
        colours = np.array([PALETTE[items[n].colour] for n in chosen], np.float32)
        colours += rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, colours.shape).astype(np.float32)
        colours_nhwc = np.broadcast_to(colours[:, None, None, :], (*cover_nhw.shape[:-1], 3))
        size = radius * image_size
        tones_nhw = _second_tones([items[n].texture for n in chosen], outline, along * size, across * size, size)
        if tones_nhw is not None:
            second = np.array([_second_tone(items[n].colour) for n in chosen], np.float32)[:, None, None, None]
            colours_nhwc = colours_nhwc + tones_nhw[..., None] * (second - colours_nhwc)
        images_nhwc[chosen] += cover_nhw * (colours_nhwc - images_nhwc[chosen])


def _second_tone(colour: str) -> float:
    return BLACK if sum(PALETTE[colour]) / 3 >= BRIGHT else WHITE


def _second_tones(names: list[str], outline: Floats, along: Floats, across: Floats, radius: Floats) -> Floats | None:
    """The share of the second tone in each pixel, float32 `[n, h, w]`; None if all are plain."""
    tones_nhw = None
    for name, texture in TEXTURES.items():
        if chosen := [place for place, other in enumerate(names) if other == name]:
            tones_nhw = np.zeros_like(outline) if tones_nhw is None else tones_nhw
            tones_nhw[chosen] = texture(outline[chosen], along[chosen], across[chosen], radius[chosen])
    return tones_nhw
