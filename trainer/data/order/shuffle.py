"""The shuffle buffer of a stream."""

import random
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def shuffled(items: Iterator[T], buffer: int, rng: random.Random, held: list[T]) -> Iterator[T]:
    """All the items once, in an order drawn through a buffer. What is drawn depends on numbers alone, never on an item.

    It starts with a quarter of the buffer filled and then reads two for each one it gives, so that a run starts sooner.
    `held` is the buffer, empty at first. After any draw it and `rng` are the whole state: a shuffle of the items that are
    left, with the two as they are then, goes on as this one would.
    """
    for item in items:
        held.append(item)
        if len(held) < buffer and (another := next(items, None)) is not None:
            held.append(another)
        if len(held) >= max(1, buffer // 4):
            yield _draw(held, rng)
    while held:
        yield _draw(held, rng)


def _draw(held: list[T], rng: random.Random) -> T:
    chosen = rng.randrange(len(held))
    held[chosen], held[-1] = held[-1], held[chosen]
    return held.pop()
