"""The best value of a metric, which W&B shows beside its last one: for which metrics there is one, and what it is."""

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

BEST = (
    ("eval/*/bad_*", None),
    ("eval/*", max),
    ("routing/success/*", max),
    ("train/loss", min),
    ("train/loss_contrastive", min),
    ("perf/pairs_per_second", max),
    ("perf/mfu", max),
    ("perf/memory_gib", max),  # not the best, but what must fit
    ("perf/step_seconds", min),
)
"""Patterns of names, and which value counts; the first that matches decides. For other metrics no value is better than others."""


def best_of(name: str) -> str | None:
    """`max` or `min`, as W&B's define_metric calls them; None for a metric of which there is no best value."""
    choose = next((choose for pattern, choose in BEST if fnmatchcase(name, pattern)), None)
    return None if choose is None else choose.__name__


def better(name: str, one: float, other: float) -> float:
    """The better of two values of a metric that has a best one."""
    return max(one, other) if best_of(name) == "max" else min(one, other)


def best_values(lines: Iterable[str]) -> dict[str, float]:
    """The best values so far, by metric, from the lines of a metrics.jsonl; a line that is cut off is left out."""
    best: dict[str, float] = {}
    for line in lines:
        try:
            metrics = json.loads(line)
        except ValueError:
            continue
        for name, value in _numbers(metrics).items():
            best[name] = better(name, best.get(name, value), value)
    return best


def _numbers(metrics: object) -> Mapping[str, float]:
    if not isinstance(metrics, dict):
        return {}
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float)) and best_of(name)}
