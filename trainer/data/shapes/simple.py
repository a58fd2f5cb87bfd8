"""The data set `shapes`: scenes of one or two coloured shapes, and their captions.

Six combinations of shape and colour are kept out of training: a model that names them has combined what it learned separately.
"""

import random

from trainer.data.shapes.recipe import Recipe, ZeroShotSet
from trainer.data.shapes.scene import Item, Scene, turn

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "pink", "cyan", "white")
BACKGROUNDS = ("dark", "grey", "light")
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
SEEN_IMAGES = 24  # of each class
UNSEEN_IMAGES = 50


def training_scene(rng: random.Random) -> Scene:
    """A scene of seen combinations with a caption that says more or less about it."""
    if rng.random() < SINGLE_SHARE:
        return single_scene(*rng.choice(SEEN), rng)
    return _pair_scene(rng, full=False)


def single_scene(shape: str, colour: str, rng: random.Random, full: bool = False) -> Scene:
    """One shape near the middle, as a photographer would have it.

    A `full` caption names size and background, others may leave them out.
    """
    size, background = rng.choice(list(SIZES)), rng.choice(BACKGROUNDS)
    radius = rng.uniform(*SIZES[size]) / 32
    x, y = (0.5 + rng.uniform(-JITTER, JITTER) for _ in range(2))
    item = Item(shape, colour, x, y, radius, turn(rng))
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
    relation, background = rng.choice(RELATIONS), rng.choice(BACKGROUNDS)
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
        Item(shape, colour, *places[0], radii[0], turn(rng)),
        Item(other_shape, other_colour, *places[1], radii[1], turn(rng)),
    )
    caption = f"a {colour} {shape} {relation} a {other_colour} {other_shape}"
    if full or rng.random() < 0.3:
        caption += f" on a {background} background"
    return Scene(items, background, caption)


def _zeroshot(combinations: tuple[tuple[str, str], ...], each: int) -> ZeroShotSet:
    return ZeroShotSet(
        class_names=CLASS_NAMES,
        templates=TEMPLATES,
        attributes={"colour": tuple(colour for _, colour in CLASSES), "shape": tuple(shape for shape, _ in CLASSES)},
        labels=tuple(CLASSES.index(combination) for combination in combinations for _ in range(each)),
        scene=lambda label, rng: single_scene(*CLASSES[label], rng),
    )


RECIPE = Recipe(
    version=1,
    training=training_scene,
    validation=distinct_scenes,
    zeroshot={"default": _zeroshot(SEEN, SEEN_IMAGES), "unseen": _zeroshot(tuple(sorted(UNSEEN)), UNSEEN_IMAGES)},
)
