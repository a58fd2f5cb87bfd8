"""Runs that differ only in their seed are one setting, measured several times."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.errors import UserError, did_you_mean
from trainer.report.runs import RunRecord

NOT_SETTINGS = ("seed", "resume", "run.", "log.", "hydra.", "checkpoint.", "data.workers", "data.cache")
"""Keys, or beginnings of keys, that do not make another setting: a run's name, and what it leaves behind."""
NAMES = ("model.name", "router.name")
"""What the files in conf/ call a model and a router: one word for many keys."""


@dataclass(frozen=True)
class Statistic:
    """Values of several runs. deviation: of the sample (n - 1); None for a single run."""

    mean: float
    deviation: float | None
    runs: int

    @staticmethod
    def of(values: Sequence[float]) -> "Statistic | None":
        """None for no values."""
        if not values:
            return None
        return Statistic(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        """`0.974 ± 0.003`"""
        return f"{self.mean:.3f}" + ("" if self.deviation is None else f" ± {self.deviation:.3f}")


@dataclass(frozen=True)
class Group:
    """The runs of one setting. setting: the value of each key that differs between groups."""

    setting: dict[str, Any]
    runs: list[RunRecord]

    def statistic(self, metric: str, last_steps: int) -> Statistic | None:
        """The results of the runs; see RunRecord.final. Runs without the metric do not count."""
        values = [run.final(metric, last_steps) for run in self.runs]
        return Statistic.of([value for value in values if value is not None and math.isfinite(value)])

    def label(self) -> str:
        """`priority=gate, aux.load=0`, as short as the keys allow; "all" if nothing differs."""
        named = zip(short_names(self.setting), self.setting.values(), strict=True)
        return ", ".join(f"{name}={shown(value)}" for name, value in named) or "all"


def mean_curve(group: Group, metric: str) -> dict[int, Statistic]:
    """By step, over the runs of a group; steps that some of the runs with this metric did not record are left out."""
    curves = [dict(zip(*run.curve(metric), strict=True)) for run in group.runs]
    curves = [curve for curve in curves if curve]
    if not curves:
        return {}
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    found = {step: Statistic.of([curve[step] for curve in curves]) for step in common}
    return {step: statistic for step, statistic in found.items() if statistic is not None}


def group_runs(runs: Iterable[RunRecord], by: Sequence[str] | None = None) -> list[Group]:
    """The runs by what differs between them, in the order of their first runs.

    by: the keys to look at; None: all whose values differ, but for NOT_SETTINGS and what NAMES already tell.
    Raises UserError for a key that no run has.
    """
    runs = list(runs)
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    for key in by or ():
        if key not in keys:
            raise UserError(f"by={key}: no run has this key{did_you_mean(key, keys)}")
    differing = list(by) if by is not None else _distinguishing(keys, runs)
    groups: dict[tuple[str, ...], Group] = {}
    for run in runs:
        setting = {key: run.settings.get(key) for key in differing}
        groups.setdefault(tuple(map(repr, setting.values())), Group(setting, [])).runs.append(run)
    return list(groups.values())


def short_names(keys: Iterable[str]) -> list[str]:
    """Each key by the fewest last parts that distinguish it from the others: `router.aux.load`, `optim.lr` are `load`, `lr`.

    The name of a router or a model is called `router` or `model`.
    """
    keys = [key.removesuffix(".name") if key in NAMES else key for key in keys]
    names = []
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        own = [end for end in endings if sum(other == end or other.endswith(f".{end}") for other in keys) == 1]
        names.append(own[0] if own else key)  # the whole key may be the end of another, as seed is of data.seed
    return names


def shown(value: Any) -> str:
    """A value of the configuration as a user writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _distinguishing(keys: list[str], runs: list[RunRecord]) -> list[str]:
    """The keys whose values differ, without those that the name of a model or of a router already tells."""
    differing = [key for key in keys if not key.startswith((*NOT_SETTINGS, *NAMES)) and _differs(key, runs)]
    names = []
    for name in NAMES:
        told = [key for key in differing if key.startswith(name.removesuffix("name")) and _tells(name, key, runs)]
        if told:
            names.append(name)
            differing = [key for key in differing if key not in told]
    return names + differing


def _tells(name: str, key: str, runs: list[RunRecord]) -> bool:
    """Whether runs of one name never differ in the key, though the names differ."""
    values: dict[str, set[str]] = {}
    for run in runs:
        values.setdefault(repr(run.settings.get(name)), set()).add(repr(run.settings.get(key)))
    return len(values) > 1 and all(len(found) == 1 for found in values.values())


def _differs(key: str, runs: list[RunRecord]) -> bool:
    return len({repr(run.settings.get(key)) for run in runs}) > 1
