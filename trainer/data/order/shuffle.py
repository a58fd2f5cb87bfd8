"""The shuffle buffer of a stream."""

import random
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def shuffled(items: Iterator[T], buffer: int, rng: random.Random, held: list[T]) -> Iterator[T]:
    """All the items once, in an order drawn through a buffer. The draws depend only on counts, never on an item.

    It starts with a quarter of the buffer filled and then reads two items for each one it yields, so that a run starts sooner.
    `held` is the buffer, empty at first. After any draw, the buffer and `rng` are the whole state: a shuffle of the remaining
    items, started with both as they are then, continues as this one would.
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
