"""The content of the embedded data set: scenes of one or two coloured shapes, and their captions."""

import random
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = {
    "red": (215, 40, 40),
    "green": (30, 150, 50),
    "blue": (45, 75, 225),
    "yellow": (245, 225, 50),
    "purple": (140, 45, 180),
    "pink": (250, 125, 190),
    "cyan": (60, 220, 225),
    "white": (252, 252, 252),
}
BACKGROUNDS = {"dark": 28, "grey": 105, "light": 180}  # brightness out of 255
SIZES = {"small": (6.4, 7.4), "medium": (8.8, 9.8), "large": (11.4, 12.4)}  # radius in 1/32 of the image's side
PAIR_SIZES = (5.8, 6.8)
JITTER = 0.07  # a shape's largest distance from its place, as a share of the image's side: about two pixels at 32
RELATIONS = ("left of", "right of", "above", "below")

# Never shown or named in training, alone or in pairs; every shape and every colour occurs in other combinations.
UNSEEN = frozenset(
    {("circle", "purple"), ("square", "cyan"), ("triangle", "red"), ("star", "blue"), ("ring", "pink"), ("cross", "green")}
)
CLASSES = tuple((shape, colour) for colour in COLOURS for shape in SHAPES)
SEEN = tuple(pair for pair in CLASSES if pair not in UNSEEN)
CLASS_NAMES = tuple(f"{colour} {shape}" for shape, colour in CLASSES)
TEMPLATES = (
    "{c}",
    "a {c}",
    "a small {c}",
    "a medium {c}",
    "a large {c}",
    "a {c} on a dark background",
    "a {c} on a grey background",
    "a {c} on a light background",
)

SINGLE_SHARE = 0.7  # of the images show one shape, the others two


@dataclass(frozen=True)
class Item:
    """One shape: its place and radius in units of the image's side, its turn in radians."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """One image: its shapes from back to front, the background's name, and its caption."""

    items: tuple[Item, ...]
    background: str
    caption: str


def training_scene(rng: random.Random) -> Scene:
    """A scene of seen combinations with a caption that says more or less about it."""
    if rng.random() < SINGLE_SHARE:
        return single_scene(*rng.choice(SEEN), rng)
    return _pair_scene(rng, full=False)


def single_scene(shape: str, colour: str, rng: random.Random, full: bool = False) -> Scene:
    """One shape near the middle, as a photographer would have it.

    A `full` caption names size and background, others may leave them out.
    """
    size, background = rng.choice(list(SIZES)), rng.choice(list(BACKGROUNDS))
    radius = rng.uniform(*SIZES[size]) / 32
    x, y = (0.5 + rng.uniform(-JITTER, JITTER) for _ in range(2))
    item = Item(shape, colour, x, y, radius, _turn(rng))
    words = [f"{colour} {shape}"]
    if full or rng.random() < 0.5:
        words.insert(0, size)
    if full or rng.random() < 0.8:
        words.insert(0, "a")
    if full or rng.random() < 0.5:
        words.append(f"on a {background} background")
    return Scene((item,), background, " ".join(words))


def distinct_scenes(count: int, rng: random.Random) -> list[Scene]:
    """Scenes of seen combinations with full captions, no two captions alike while the grammar has others left."""
    most_single = len(SEEN) * len(SIZES) * len(BACKGROUNDS)
    singles = min(round(SINGLE_SHARE * count), most_single)
    scenes: dict[str, Scene] = {}
    spare: list[Scene] = []
    while len(scenes) + len(spare) < count:
        single = len(scenes) < singles
        scene = single_scene(*rng.choice(SEEN), rng, full=True) if single else _pair_scene(rng, full=True)
        if scene.caption not in scenes:
            scenes[scene.caption] = scene
        elif len(scenes) > singles + _PAIR_CAPTIONS // 2:
            # Nearly all captions are used up; finding the rest would take forever.
            spare.append(scene)
    ordered = [*scenes.values(), *spare]
    rng.shuffle(ordered)
    return ordered


_PAIR_CAPTIONS = len(SEEN) * (len(SEEN) - 1) * len(RELATIONS) * len(BACKGROUNDS)


def _pair_scene(rng: random.Random, full: bool) -> Scene:
    (shape, colour), (other_shape, other_colour) = rng.sample(SEEN, 2)
    relation, background = rng.choice(RELATIONS), rng.choice(list(BACKGROUNDS))
    # Along the relation's axis each shape has its half of the image; across it they are nearly level.
    radii = [rng.uniform(*PAIR_SIZES) / 32 for _ in range(2)]
    near, far = (place + rng.uniform(-JITTER, JITTER) / 2 for place in (0.26, 0.74))
    if relation in ("right of", "below"):
        near, far = far, near
    across = [0.5 + rng.uniform(-JITTER, JITTER) for _ in range(2)]
    places = [(near, across[0]), (far, across[1])]
    if relation in ("above", "below"):
        places = [(y, x) for x, y in places]
    items = (
        Item(shape, colour, *places[0], radii[0], _turn(rng)),
        Item(other_shape, other_colour, *places[1], radii[1], _turn(rng)),
    )
    caption = f"a {colour} {shape} {relation} a {other_colour} {other_shape}"
    if full or rng.random() < 0.3:
        caption += f" on a {background} background"
    return Scene(items, background, caption)


def _turn(rng: random.Random) -> float:
    return rng.uniform(-0.2, 0.2)
