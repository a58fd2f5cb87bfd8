"""Slow plain Python that says what the numbers should be."""

from fractions import Fraction
from itertools import pairwise, permutations
from math import comb


def hit_by_orders(scores: list[float], right: list[bool], k: int) -> Fraction:
    """The share of all orders that agree with the scores in which a right candidate is among the first k."""
    orders = [order for order in permutations(range(len(scores))) if all(scores[a] >= scores[b] for a, b in pairwise(order))]
    return Fraction(sum(any(right[candidate] for candidate in order[:k]) for order in orders), len(orders))


def hit_by_counting(scores: list[float], right: list[bool], k: int) -> Fraction:
    """The same for many candidates: places left for the level of the best right one, filled by drawing from that level."""
    best = max(score for score, is_right in zip(scores, right, strict=True) if is_right)
    places = k - sum(score > best for score in scores)
    level = [is_right for score, is_right in zip(scores, right, strict=True) if score == best]
    if places <= 0:
        return Fraction(0)
    if places >= len(level):
        return Fraction(1)
    return 1 - Fraction(comb(level.count(False), places), comb(len(level), places))


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def recall(queries: list[list[float]], owners: list[int], gallery: list[list[float]], gallery_owners: list[int], k: int) -> float:
    shares = [
        hit_by_counting([dot(query, row) for row in gallery], [owner == other for other in gallery_owners], k)
        for query, owner in zip(queries, owners, strict=True)
    ]
    return float(sum(shares) / len(shares))
