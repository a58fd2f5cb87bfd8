"""What a picture of an embedded data set is made of, before it is drawn."""

import random
from dataclasses import dataclass

PLAIN = "plain"


@dataclass(frozen=True)
class Item:
    """One shape: its place and radius in units of the image's side, its turn in radians, and a texture of `textures.py`."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float
    texture: str = PLAIN


@dataclass(frozen=True)
class Scene:
    """One image: its shapes from back to front, the background's name, and its caption."""

    items: tuple[Item, ...]
    background: str
    caption: str


def turn(rng: random.Random) -> float:
    """A shape's angle: a little off the upright."""
    return rng.uniform(-0.2, 0.2)
