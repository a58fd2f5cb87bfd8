"""The data set `shapes_hard`: one to three textured shapes in every arrangement, and captions that say how they stand.

720 kinds of object (texture, colour, shape) occur as often as words do: a few all the time, most of them rarely. Twelve pairs of
colour and shape are kept out of training, whatever the texture.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from trainer.data.shapes.recipe import Recipe, ZeroShotSet
from trainer.data.shapes.scene import PLAIN, Item, Scene, turn

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart", "moon", "arrow", "hourglass", "bar")
COLOURS = ("red", "green", "blue", "yellow", "purple", "pink", "cyan", "white", "orange", "brown")
TEXTURES = {"plain": "", "striped": "stripes", "dotted": "dots", "checked": "checks", "bordered": "a border", "faded": ""}
"""The word before the colour, and what may be said in its place: with …, after the shape."""
BACKGROUNDS = ("dim", "grey", "light")  # on a dark one a black border would not be seen
SIZES = {"small": (4.9, 5.6), "medium": (6.7, 7.5), "large": (10.6, 12.2)}  # radius in 1/32 of the image's side
SHARED_SIZES = ("small", "medium")  # of objects that share an image
JITTER = 0.02  # a shape's largest distance from its place, as a share of the image's side
PLACES = {
    "in the middle": (0.5, 0.5),
    "on the left": (0.25, 0.5),
    "on the right": (0.75, 0.5),
    "at the top": (0.5, 0.25),
    "at the bottom": (0.5, 0.75),
    "in the top left corner": (0.25, 0.25),
    "in the top right corner": (0.75, 0.25),
    "in the bottom left corner": (0.25, 0.75),
    "in the bottom right corner": (0.75, 0.75),
}
CORNERS = tuple(place for place in PLACES if "corner" in place)
SIDES = (("on the left", "on the right"), ("at the top", "at the bottom"))
RELATIONS = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "over",
    "below": "under",
}
"""The word of full captions, and another of the same meaning."""
BESIDE = {"left of": "on its right", "right of": "on its left", "above": "below it", "below": "above it"}
"""Where the other object is, as seen from the one that has the relation to it."""


@dataclass(frozen=True, order=True)
class Kind:
    """What can be said of an object wherever it stands."""

    texture: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.texture} {self.colour} {self.shape}"


# Never shown or named in training, with any texture; every shape, colour and texture occurs in other combinations.
UNSEEN_PAIRS = frozenset(
    {
        ("purple", "circle"),
        ("cyan", "square"),
        ("red", "triangle"),
        ("blue", "star"),
        ("pink", "ring"),
        ("green", "cross"),
        ("yellow", "diamond"),
        ("orange", "heart"),
        ("white", "moon"),
        ("brown", "arrow"),
        ("blue", "hourglass"),
        ("yellow", "bar"),
    }
)
KINDS = tuple(Kind(texture, colour, shape) for texture in TEXTURES for colour in COLOURS for shape in SHAPES)
UNSEEN = tuple(kind for kind in KINDS if (kind.colour, kind.shape) in UNSEEN_PAIRS)
SEEN = tuple(kind for kind in KINDS if kind not in UNSEEN)


def _ranked() -> tuple[Kind, ...]:
    """The seen kinds from the commonest to the rarest, which does not depend on `data.shapes_seed`."""
    return tuple(random.Random("kinds").sample(SEEN, len(SEEN)))


RANKED = _ranked()
SHARES = list(accumulate(1 / (rank + 10) for rank in range(len(RANKED))))  # Zipf's law, with a blunt tip (Mandelbrot)
RARE = RANKED[-len(RANKED) // 3 :]
"""The third of the seen kinds that is shown least, altogether in about a tenth of the places."""

OBJECTS = {1: 0.3, 2: 0.4, 3: 0.3}  # the share of the images with so many
PAIRS = 24  # of objects in the set of relations


@dataclass(frozen=True)
class Placed:
    """An object of an arrangement: its place is a key of PLACES, its size of SIZES."""

    kind: Kind
    size: str
    place: str


@dataclass(frozen=True)
class Arrangement:
    """The content of an image: its objects in the order in which a caption names them."""

    objects: tuple[Placed, ...]
    background: str

    @property
    def meaning(self) -> frozenset[tuple[Kind, str]]:
        """What is where, in whatever words."""
        return frozenset((placed.kind, placed.place) for placed in self.objects)

    def exchanged(self) -> "Arrangement":
        """The same objects, with the first and the second in each other's place."""
        first, second, *others = self.objects
        moved = (Placed(second.kind, second.size, first.place), Placed(first.kind, first.size, second.place))
        return Arrangement((*moved, *others), self.background)


def arrangement(rng: random.Random) -> Arrangement:
    """One, two or three objects, no two of the same colour and shape."""
    (count,) = rng.choices(list(OBJECTS), list(OBJECTS.values()))
    kinds = _different_kinds(count, rng)
    if count == 1:
        size, place = _size_and_place(rng)
        sizes, places = [size], [place]
    else:
        places = rng.sample(rng.choice(SIDES), 2) if count == 2 else _corners(rng)
        sizes = [rng.choice(SHARED_SIZES) for _ in kinds]
    objects = tuple(Placed(*parts) for parts in zip(kinds, sizes, places, strict=True))
    return Arrangement(objects, rng.choice(BACKGROUNDS))


def _size_and_place(rng: random.Random) -> tuple[str, str]:
    """Of an object alone: a large one fills the middle."""
    size = rng.choice(list(SIZES))
    return size, "in the middle" if size == "large" else rng.choice(list(PLACES))


def _different_kinds(count: int, rng: random.Random) -> list[Kind]:
    kinds: dict[tuple[str, str], Kind] = {}
    while len(kinds) < count:
        (kind,) = rng.choices(RANKED, cum_weights=SHARES)
        kinds.setdefault((kind.colour, kind.shape), kind)
    return list(kinds.values())


def _corners(rng: random.Random) -> list[str]:
    """Three corners: one, then its neighbours beside it and above or below it, in either order."""
    first = rng.choice(CORNERS)
    x, y = PLACES[first]
    neighbours = [place for place in CORNERS if (PLACES[place][0] == x) != (PLACES[place][1] == y)]
    return [first, *rng.sample(neighbours, 2)]


def scene(arranged: Arrangement, rng: random.Random, full: bool = False) -> Scene:
    """The arrangement with a caption, which names everything if it is `full`, and may leave out much if not."""
    caption = _caption(arranged, rng, full)
    return Scene(tuple(_item(placed, rng) for placed in arranged.objects), arranged.background, caption)


def training_scene(rng: random.Random) -> Scene:
    """A scene of seen kinds with a caption that says more or less about it."""
    return scene(arrangement(rng), rng)


def distinct_scenes(count: int, rng: random.Random) -> list[Scene]:
    """Scenes of seen kinds with full captions, no two with the same kinds in the same places.

    Those with several objects come in twos, of which the second has two objects exchanged: only the relation tells them apart.
    """
    found: dict[frozenset[tuple[Kind, str]], Arrangement] = {}
    while len(found) < count:
        arranged = arrangement(rng)
        for each in (arranged,) if len(arranged.objects) == 1 else (arranged, arranged.exchanged()):
            found.setdefault(each.meaning, each)
    scenes = [scene(arranged, rng, full=True) for arranged in list(found.values())[:count]]
    rng.shuffle(scenes)
    return scenes


def _item(placed: Placed, rng: random.Random) -> Item:
    x, y = (place + rng.uniform(-JITTER, JITTER) for place in PLACES[placed.place])
    kind, radius = placed.kind, rng.uniform(*SIZES[placed.size]) / 32
    return Item(kind.shape, kind.colour, x, y, radius, turn(rng), kind.texture)


def _caption(arranged: Arrangement, rng: random.Random, full: bool) -> str:
    say = {1: _say_one, 2: _say_two, 3: _say_three}[len(arranged.objects)]
    caption = say(arranged.objects, rng, full)
    if full or rng.random() < 0.3:
        caption += f" on a {arranged.background} background"
    return caption


def _say_one(objects: tuple[Placed, ...], rng: random.Random, full: bool) -> str:
    (placed,) = objects
    caption = _name(placed, rng, full, may_trail=True)
    if not full and rng.random() < 0.2:
        caption = caption.split(" ", 1)[1]  # without the article
    if full or rng.random() < 0.5:
        caption += f" {placed.place}"
    return caption


def _say_two(objects: tuple[Placed, ...], rng: random.Random, full: bool) -> str:
    first, second = objects
    one, other = (_name(placed, rng, full, may_trail=not full) for placed in objects)
    relation = _relation(first, second)
    form = rng.random()
    if form < 0.15 and not full:
        return f"{one} and {other}"
    if form < 0.35:
        return f"{one} with {other} {BESIDE[relation]}"
    if form < 0.65:
        relation = RELATIONS[relation]
    return f"{one} {relation} {other}"


def _say_three(objects: tuple[Placed, ...], rng: random.Random, full: bool) -> str:
    # Sizes are left out: with them the caption would be longer than a small model reads.
    first, second, third = objects
    names = [_name(placed, rng, full, sized=False) for placed in objects]
    relations = _relation(first, second), _relation(first, third)
    form = rng.random()
    if form < 0.15 and not full:
        return f"{names[0]}, {names[1]} and {names[2]}"
    if form < 0.35:
        return f"{names[0]} with {names[1]} {BESIDE[relations[0]]} and {names[2]} {BESIDE[relations[1]]}"
    return f"{names[0]} {relations[0]} {names[1]} and {relations[1]} {names[2]}"


def _name(placed: Placed, rng: random.Random, full: bool, sized: bool = True, may_trail: bool = False) -> str:
    """The object with its article; may_trail: whether its texture may follow the shape."""
    kind = placed.kind
    words = [kind.colour, kind.shape]
    if full or rng.random() < 0.75:
        trailing = TEXTURES[kind.texture] if may_trail and not full and rng.random() < 0.3 else ""
        words = [*words, "with", trailing] if trailing else [kind.texture, *words]
    if sized and (full or rng.random() < 0.4):
        words.insert(0, placed.size)
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _relation(first: Placed, second: Placed) -> str:
    (x, y), (other_x, other_y) = PLACES[first.place], PLACES[second.place]
    if y == other_y:
        return "left of" if x < other_x else "right of"
    return "above" if y < other_y else "below"


def _zeroshot_kinds(kinds: Iterable[Kind], each: int) -> ZeroShotSet:
    """Single objects, told from all kinds, seen or not."""

    def alone(label: int, rng: random.Random) -> Scene:
        size, place = _size_and_place(rng)
        return scene(Arrangement((Placed(KINDS[label], size, place),), rng.choice(BACKGROUNDS)), rng)

    return ZeroShotSet(
        class_names=tuple(map(str, KINDS)),
        templates=("{c}", "a {c}", "a {c} on a grey background"),
        attributes={name: tuple(getattr(kind, name) for kind in KINDS) for name in ("texture", "colour", "shape")},
        labels=tuple(KINDS.index(kind) for kind in kinds for _ in range(each)),
        scene=alone,
    )


def _zeroshot_relations(each: int) -> ZeroShotSet:
    """Two plain objects in their four arrangements, told from those of all pairs: a model without relations gets a quarter."""
    rng = random.Random("relations")
    plain = [kind for kind in SEEN if kind.texture == PLAIN]
    pairs: list[tuple[Kind, Kind]] = []
    while len(pairs) < PAIRS:
        one, other = rng.sample(plain, 2)
        if one.colour != other.colour and one.shape != other.shape and (other, one) not in pairs and (one, other) not in pairs:
            pairs.append((one, other))
    classes = [
        (first, relation, second) for pair in pairs for relation in ("left of", "above") for first, second in (pair, pair[::-1])
    ]

    def together(label: int, rng: random.Random) -> Scene:
        first, relation, second = classes[label]
        places = SIDES[0] if relation == "left of" else SIDES[1]
        sizes = [rng.choice(SHARED_SIZES) for _ in places]
        objects = tuple(Placed(*parts) for parts in zip((first, second), sizes, places, strict=True))
        return scene(Arrangement(objects, rng.choice(BACKGROUNDS)), rng)

    return ZeroShotSet(
        class_names=tuple(f"{first} {relation} a {second}" for first, relation, second in classes),
        templates=("{c}", "a {c}", "a {c} on a grey background"),
        attributes={
            "objects": tuple(f"{one}, {other}" for one, other in pairs for _ in range(4)),
            "axis": tuple("beside" if relation == "left of" else "over" for _, relation, _ in classes),
        },
        labels=tuple(label for label in range(len(classes)) for _ in range(each)),
        scene=together,
    )


RECIPE = Recipe(
    version=1,
    training=training_scene,
    validation=distinct_scenes,
    zeroshot={
        "default": _zeroshot_kinds(SEEN, 3),
        "rare": _zeroshot_kinds(RARE, 4),
        "unseen": _zeroshot_kinds(UNSEEN, 12),
        "relation": _zeroshot_relations(10),
    },
)
