"""A colour for each expert: as different from each other as can be, also for people who see fewer colours."""

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

LEVELS = 16
"""Steps of each channel among which colours are chosen."""
LIGHTNESS = (0.50, 0.86)
"""Of OKLab: not so dark or so light that they vanish on a page."""
CHROMA = (0.06, 0.19)
"""Grey means something else, and glaring colours hide the picture below them."""
FIRST = "#4f8ef7"
PALE_WEIGHT = 1.3
"""How much more a distance counts for the two common kinds of colour blindness, whose colours are nearer to each other."""

# Linear RGB to what is seen without the cones for middle or for long wavelengths: Machado, Oliveira and Fernandes, "A
# physiologically-based model for simulation of color vision deficiency", 2009, table 1, severity 1.
BLINDNESS = (
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
)
# Linear RGB to cone responses, and their cube roots to OKLab: Ottosson, "A perceptual color space for image processing", 2020.
TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


@functools.cache
def expert_colours(count: int) -> tuple[str, ...]:
    """`#rrggbb` for experts 0 to count - 1; those of a smaller count are the first of a larger one.

    Each is the candidate that is farthest from all before it, in the kind of vision where it is nearest to one of them.
    """
    steps = torch.linspace(0, 1, LEVELS)
    candidates = torch.tensor([[*rgb] for rgb in itertools.product(steps.tolist(), repeat=3)])
    lab = oklab(candidates)
    chroma = lab[:, 1:].norm(dim=1)
    good = (lab[:, 0] >= LIGHTNESS[0]) & (lab[:, 0] <= LIGHTNESS[1]) & (chroma >= CHROMA[0]) & (chroma <= CHROMA[1])
    candidates = torch.cat([_rgb([FIRST]), candidates[good]])
    seen = _visions(candidates)
    chosen = [0]
    nearest = torch.full((len(candidates),), torch.inf)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, _distance(seen, [seen_one[chosen[-1]] for seen_one in seen]))
        chosen.append(int(nearest.argmax()))
    return tuple("#" + "".join(f"{round(255 * channel):02x}" for channel in candidates[one].tolist()) for one in chosen[:count])


def oklab(rgb: Tensor) -> Tensor:
    """sRGB `[n, 3]` from 0 to 1 to OKLab `[n, 3]`: lightness 0 to 1, then green to red and blue to yellow."""
    return _lab(_linear(rgb))


def _rgb(colours: Sequence[str]) -> Tensor:
    return torch.tensor([[int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)] for colour in colours])


def _linear(rgb: Tensor) -> Tensor:
    return torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _lab(linear: Tensor) -> Tensor:
    cones = linear @ torch.tensor(TO_CONES).T
    return cones.clamp(min=0) ** (1 / 3) @ torch.tensor(TO_LAB).T


def _visions(rgb: Tensor) -> list[Tensor]:
    """The colours as OKLab, to normal sight and to each kind of colour blindness."""
    linear = _linear(rgb)
    return [_lab(linear), *(_lab((linear @ torch.tensor(kind).T).clamp(0, 1)) for kind in BLINDNESS)]


def _distance(seen: Sequence[Tensor], one: Sequence[Tensor]) -> Tensor:
    normal, *pale = [(of_all - of_one).norm(dim=1) for of_all, of_one in zip(seen, one, strict=True)]
    return torch.stack([normal, *(PALE_WEIGHT * distance for distance in pale)]).amin(0)
