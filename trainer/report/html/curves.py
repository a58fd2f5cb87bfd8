"""Curves as the page holds them: few enough points to draw, and none that matters left out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.report.groups import Group, mean_curve
from trainer.report.runs import RunRecord

DIGITS = 5
MOST_POINTS, LEAST_POINTS = 1000, 60
"""Of one curve; between them, as many as the page has room for."""
ALL_POINTS = 250_000
"""About a megabyte, before it is compressed."""


def most_points(curves: int) -> int:
    """How many points each of so many curves may have."""
    return max(LEAST_POINTS, min(MOST_POINTS, ALL_POINTS // max(1, curves)))


def thinned(values: Sequence[float], most: int) -> list[int]:
    """The indices to draw of a curve: first and last, and the lowest and the highest of each of `most` / 2 equal stretches.

    So no spike is lost. NaN marks a gap; a stretch with one keeps it.
    """
    count = len(values)
    if count <= most:
        return list(range(count))
    stretches = max(1, (most - 2) // 2)
    kept = {0, count - 1}
    for stretch in range(stretches):
        indices = range(stretch * count // stretches, (stretch + 1) * count // stretches)
        finite = [index for index in indices if math.isfinite(values[index])]
        if len(finite) < len(indices):
            kept.add(next(index for index in indices if not math.isfinite(values[index])))
        if finite:
            kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
    return sorted(kept)


@dataclass
class Curves:
    """Curves as JSON: `{"x": [...], "y": [...], ...}`, of which many share their steps, which are held once."""

    most: int
    steps: list[list[int]] = field(default_factory=list)
    """What the `x` of a curve is an index of."""
    is_thinned: bool = False
    _places: dict[tuple[int, ...], int] = field(default_factory=dict)

    def of_run(self, run: RunRecord, metric: str) -> dict[str, Any]:
        """A run's own curve; null where it was not finite."""
        curve = run.curves[metric]
        return self._packed(curve.steps, curve.values)

    def of_group(self, group: Group, metric: str) -> dict[str, Any] | None:
        """The mean over the runs of a group with its standard deviation; None where fewer than two runs have the metric."""
        if sum(metric in run.curves for run in group.runs) < 2:
            return None
        points = mean_curve(group, metric)
        deviations = [statistic.deviation or 0.0 for statistic in points.values()]
        return self._packed(list(points), [statistic.mean for statistic in points.values()], deviations) if points else None

    def _packed(self, steps: Sequence[int], values: Sequence[float], spread: Sequence[float] = ()) -> dict[str, Any]:
        kept = thinned(values, self.most)
        self.is_thinned |= len(kept) < len(values)
        place = tuple(steps[index] for index in kept)
        if place not in self._places:
            self._places[place] = len(self.steps)
            self.steps.append(list(place))
        packed: dict[str, Any] = {"x": self._places[place], "y": [rounded(values[index]) for index in kept]}
        return packed | ({"spread": [rounded(spread[index]) for index in kept]} if spread else {})


def rounded(value: float) -> float | None:
    """As precise as a screen is; None for what is not finite."""
    if not math.isfinite(value):
        return None
    number = float(f"{value:.{DIGITS}g}")
    return int(number) if number.is_integer() and abs(number) < 1e15 else number
