"""The textures: where a shape shows its second tone.

Each takes the distance to the shape's outline, the place along and across the shape, all in pixels from its middle (`[n, h, w]`),
and the shape's radius in pixels (`[n, 1, 1]`), and gives the share of the second tone at each pixel, from 0 to 1.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]


def _period(radius: Pixels) -> Pixels:
    # Finer patterns than this would blur on the pixels' grid.
    return np.maximum(0.58 * radius, 3.6)


def _striped(outline: Pixels, along: Pixels, across: Pixels, radius: Pixels) -> Pixels:
    period = _period(radius)
    # Slanted, so that no side of a shape disappears behind a stripe.
    from_middle = np.abs((along + across) / np.sqrt(2) / period % 1 - 0.5) * period
    return (0.5 + 0.23 * period - from_middle).clip(0, 1)


def _dotted(outline: Pixels, along: Pixels, across: Pixels, radius: Pixels) -> Pixels:
    period = 1.15 * _period(radius)
    x, y = ((place / period % 1 - 0.5) * period for place in (along + period / 2, across + period / 2))
    return (0.5 + 0.28 * period - np.hypot(x, y)).clip(0, 1)


def _checked(outline: Pixels, along: Pixels, across: Pixels, radius: Pixels) -> Pixels:
    period = 1.5 * _period(radius)
    x, y = (np.sin(2 * np.pi * place / period) for place in (along, across))
    return (0.5 + 0.45 * period * x * y).clip(0, 1)


def _bordered(outline: Pixels, along: Pixels, across: Pixels, radius: Pixels) -> Pixels:
    return (0.5 + outline + np.maximum(0.15 * radius, 1.0)).clip(0, 1)


def _faded(outline: Pixels, along: Pixels, across: Pixels, radius: Pixels) -> Pixels:
    return (0.2 + 0.95 * across / radius).clip(0, 1)


TEXTURES: dict[str, Callable[[Pixels, Pixels, Pixels, Pixels], Pixels]] = {
    "striped": _striped,
    "dotted": _dotted,
    "checked": _checked,
    "bordered": _bordered,
    "faded": _faded,
}
