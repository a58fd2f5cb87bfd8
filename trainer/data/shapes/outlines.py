"""The shapes, as signed distances to their outlines: at radius 1, negative inside; x to the right, y down."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


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


def _diamond(x: Floats, y: Floats) -> NDArray[Any]:
    return (np.abs(x) + 0.68 * np.abs(y) - 0.68) / np.hypot(1, 0.68)


def _heart(x: Floats, y: Floats) -> NDArray[Any]:
    # A square on its corner, and on each of its two upper sides half a circle.
    side, up = np.abs(x), 0.86 - y
    half = 0.52
    along, across = (up + side) / np.sqrt(2), (up - side) / np.sqrt(2)
    square = np.maximum(np.abs(along - half), np.abs(across - half)) - half
    return np.minimum(square, np.hypot(along - 2 * half, across - half) - half)


def _moon(x: Floats, y: Floats) -> NDArray[Any]:
    return np.maximum(np.hypot(x, y) - 0.95, 0.74 - np.hypot(x - 0.46, y))


def _arrow(x: Floats, y: Floats) -> NDArray[Any]:
    height = np.abs(y)
    head = np.maximum(-x, (0.82 * x + 0.98 * height - 0.82 * 0.98) / np.hypot(0.82, 0.98))
    shaft = np.maximum(height - 0.27, np.abs(x + 0.45) - 0.5)
    return np.minimum(head, shaft)


def _hourglass(x: Floats, y: Floats) -> NDArray[Any]:
    height = np.abs(y)
    return np.maximum(height - 0.82, (np.abs(x) - 0.8 * height - 0.08) / np.hypot(1, 0.8))


def _bar(x: Floats, y: Floats) -> NDArray[Any]:
    return np.maximum(np.abs(x) - 0.98, np.abs(y) - 0.4)


DISTANCES: dict[str, Callable[[Floats, Floats], NDArray[Any]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "diamond": _diamond,
    "heart": _heart,
    "moon": _moon,
    "arrow": _arrow,
    "hourglass": _hourglass,
    "bar": _bar,
}
