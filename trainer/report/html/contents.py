"""What stands on the page: runs and their settings, tables as rows of text, and what its script draws, as plain JSON."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.dashboard.panels import SECTIONS
from trainer.evaluation.suite import is_constant, summary_rows
from trainer.report.groups import Group, group_runs, shown
from trainer.report.html.curves import Curves, most_points
from trainer.report.html.experts import Experts, read_experts
from trainer.report.html.loads import read_loads
from trainer.report.runs import RunRecord
from trainer.report.theme import THEMES
from trainer.reporting.summaries import best_of, better

LAST_STEPS = 100
LONGEST_LABEL = 60
"""Characters that the differing keys may take to name a setting; else its runs' names do."""
MOST_EXPERTS = 4
"""Runs whose experts are shown."""
NOT_COMPARED = ("run.", "log.", "hydra.", "resume")
"""Keys that only say where a run is and what it reports."""
KEY_FIGURES = (
    ("train/loss", "loss"),
    ("routing/success/image", "routing success, image"),
    ("routing/success/text", "routing success, text"),
    ("perf/pairs_per_second", "pairs per second"),
    ("perf/mfu", "model FLOPs utilisation"),
)


@dataclass(frozen=True)
class Table:
    """A table of text. first: how many columns at the left name the row; marks: cells (row, column) to be emphasised."""

    header: list[str]
    rows: list[list[str]]
    first: int = 1
    marks: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Contents:
    """The whole page. figures: (what, value, beside it); experts: by the name of the run; drawn: for the script."""

    title: str
    subtitle: str
    notes: list[str]
    figures: list[tuple[str, str, str]]
    results: Table | None
    evaluation: Table | None
    differing: Table | None
    runs: Table | None
    configuration: Table
    experts: dict[str, Experts]
    experts_left_out: int
    command: str
    drawn: dict[str, Any]


def contents_of(runs: Sequence[RunRecord], title: str | None = None) -> Contents:
    """The page about one run, or about several laid over each other."""
    groups = group_runs(runs)
    single = runs[0] if len(runs) == 1 else None
    labels = [_label(group, groups) for group in groups]
    curves, drawn = _curves(runs, groups)
    experts = {run.name: found for run in runs if (found := read_experts(run.folder)) is not None}
    loads = read_loads([run.folder for run in runs])
    drawn |= {
        "runs": [{"name": run.name, "group": _group_of(run, groups)} for run in runs],
        "groups": labels,
        "loads": loads,
        "themes": {name: asdict(theme) for name, theme in THEMES.items()},
        "atlas": {
            f"atlas-{number}-{layer.name}-{index}": panel
            for number, found in enumerate(list(experts.values())[:MOST_EXPERTS])
            for layer in found.layers
            for index, panel in enumerate(layer.panels)
        },
    }
    return Contents(
        title=title or (single.name if single else f"{len(runs)} runs"),
        subtitle=_subtitle(runs, groups),
        notes=[*_unfinished(runs), *_gaps(runs), *_thinning(curves, loads, runs)],
        figures=_figures(single) if single else [],
        results=None if single else _results(groups, labels),
        evaluation=_evaluation(single) if single else None,
        differing=None if single else _differing(groups, labels),
        runs=None if single else _runs(runs, groups, labels),
        configuration=_configuration(runs),
        experts=dict(list(experts.items())[:MOST_EXPERTS]),
        experts_left_out=max(0, len(experts) - MOST_EXPERTS),
        command=f"python -m trainer.report {single.folder if single else 'RUN'} experts=true",
        drawn=drawn,
    )


def _label(group: Group, groups: Sequence[Group]) -> str:
    """How a legend calls a setting: by what differs, or where that is too much, by its runs."""
    label = group.label()
    if len(groups) > 1 and len(label) <= LONGEST_LABEL:
        return label
    others = len(group.runs) - 1
    return group.runs[0].name + (f" and {others} more" if others else "")


def _group_of(run: RunRecord, groups: Sequence[Group]) -> int:
    return next(index for index, group in enumerate(groups) if any(member is run for member in group.runs))


def _subtitle(runs: Sequence[RunRecord], groups: Sequence[Group]) -> str:
    models = list(dict.fromkeys(str(run.settings.get("model.name", "")) for run in runs))
    model = ", ".join(name for name in models if name)
    if len(runs) == 1:
        return f"{model} · step {runs[0].step:,} of {runs[0].steps:,}".removeprefix(" · ")
    return f"{model} · {len(groups)} {'setting' if len(groups) == 1 else 'settings'}".removeprefix(" · ")


# Notes


def _unfinished(runs: Sequence[RunRecord]) -> list[str]:
    unfinished = [run for run in runs if not run.is_finished]
    if len(runs) == 1 and unfinished:
        return [f"Not finished: at step {runs[0].step:,} of {runs[0].steps:,} when this page was written."]
    names = [f"{run.name} (step {run.step:,} of {run.steps:,})" for run in unfinished]
    return [f"Not finished when this page was written: {_some(names)}."] if names else []


def _gaps(runs: Sequence[RunRecord]) -> list[str]:
    """Losses that were not finite."""
    found = []
    for run in runs:
        curve = run.curves.get("train/loss")
        broken = (
            [step for step, value in zip(curve.steps, curve.values, strict=True) if not math.isfinite(value)] if curve else []
        )
        if broken:
            where = f"step {broken[0]:,}" if len(broken) == 1 else f"{len(broken):,} recorded steps, first {broken[0]:,}"
            found.append(where if len(runs) == 1 else f"{run.name} ({where})")
    if not found:
        return []
    return [f"The loss was not finite {'at' if len(runs) == 1 else 'in'} {_some(found)}; curves have a gap there."]


def _thinning(curves: Curves, loads: dict[int, dict[str, Any]], runs: Sequence[RunRecord]) -> list[str]:
    said = []
    if curves.is_thinned:
        said.append(
            f"Curves of more than {curves.most:,} points are thinned: the lowest and the highest of each stretch are drawn. "
            "Tables are of all points."
        )
    if any(of_run["every"] > len(of_run["steps"]) + 1 for of_run in loads.values()):
        said.append("Heat maps show a part of the recorded steps, evenly spread.")
    if not any(run.rows for run in runs):
        said.append("Nothing has been recorded yet.")
    return said


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# What the script draws


def _curves(runs: Sequence[RunRecord], groups: Sequence[Group]) -> tuple[Curves, dict[str, Any]]:
    """Sections of panels, as in the dashboard, and the curves of their metrics by run and by setting."""
    known = list(dict.fromkeys(name for run in runs for name in run.metrics() if not is_constant(name)))
    sections: list[dict[str, Any]] = []
    used: list[str] = []
    for section in SECTIONS:
        panels: list[dict[str, Any]] = []
        for panel in section.panels:
            metrics = sorted((name for name in known if panel.shows(name)), key=_natural)
            if not metrics or any(metrics == other["metrics"] for other in panels):
                continue
            used += metrics
            names = _short_names(metrics)
            # Curves of several runs are laid over each other a metric at a time; two have room side by side.
            split = len(runs) > 1 and len(metrics) == 2
            for of_panel in [[0], [1]] if split else [range(len(metrics))]:
                panels.append(
                    {
                        "title": f"{panel.title}: {names[of_panel[0]]}" if split else panel.title,
                        "metrics": [metrics[index] for index in of_panel],
                        "names": [names[index] for index in of_panel],
                        "share": all(_is_share(metrics[index], runs) for index in of_panel),
                    }
                )
        if panels:
            sections.append({"id": _slug(section.name), "name": section.name, "panels": panels})
    metrics = list(dict.fromkeys(used))
    several = [group for group in groups if len(group.runs) > 1]
    count = sum(name in run.curves for name in metrics for run in runs) + len(metrics) * len(several)
    curves = Curves(most_points(count))
    of_runs = {
        name: {index: curves.of_run(run, name) for index, run in enumerate(runs) if name in run.curves} for name in metrics
    }
    of_groups = {
        name: {
            index: found
            for index, group in enumerate(groups)
            if len(group.runs) > 1 and (found := curves.of_group(group, name)) is not None
        }
        for name in metrics
    }
    chance = {name: value for name in metrics if (value := _chance(name, runs)) is not None}
    drawn = {"sections": sections, "curves": of_runs, "means": of_groups, "chance": chance, "steps": curves.steps}
    return curves, drawn


def _chance(metric: str, runs: Sequence[RunRecord]) -> float | None:
    """What guessing would give, as the first run says that knows it."""
    return next((value for run in runs if (value := run.final(f"{metric}_chance", 1)) is not None), None)


def _is_share(metric: str, runs: Sequence[RunRecord]) -> bool:
    """Whether a metric goes from 0 to 1 and is read as a percentage."""
    if metric.startswith("eval/") and metric.endswith(("mean_per_class", "_std", "mean_average_precision")):
        return True
    return "/success/" in metric or metric == "routing/text_share" or any(f"{metric}_chance" in run.curves for run in runs)


def _short_names(metrics: Sequence[str]) -> list[str]:
    """What tells the metrics of a panel from each other: `layer 3` of `routing/layer03/success/text`."""
    parts = [metric.split("/") for metric in metrics]
    if len(parts) > 1:
        while len({tuple(of[:1]) for of in parts}) == 1:
            parts = [of[1:] for of in parts]
        while len({tuple(of[-1:]) for of in parts}) == 1:
            parts = [of[:-1] for of in parts]
    return [re.sub(r"^layer0*(?=\d)", "layer ", "/".join(of) or metric) for of, metric in zip(parts, metrics, strict=True)]


def _natural(name: str) -> list[Any]:
    """Sorts 5shot before 10shot."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z]+", "-", name.lower())


# Tables


def _figures(run: RunRecord) -> list[tuple[str, str, str]]:
    """The numbers at the top of the page about one run."""
    figures = []
    for metric, what in KEY_FIGURES:
        value = run.final(metric, LAST_STEPS)
        if value is not None:
            figures.append((what, _said(metric, value, [run]), f"last {LAST_STEPS} steps"))
    return figures[:3] + _figures_of_evaluation(run) + figures[3:]


def _figures_of_evaluation(run: RunRecord) -> list[tuple[str, str, str]]:
    """The first of each kind of evaluation."""
    kinds: dict[str, tuple[str, str, str]] = {}
    for metric, what, value, chance in _evaluated(run):
        kinds.setdefault(metric.split("/")[1].partition("_")[0], (what, value, f"chance {chance}" if chance else ""))
    return list(kinds.values())


def _evaluated(run: RunRecord) -> list[tuple[str, str, str, str]]:
    """Metric, what it is, its last value and that of chance: what the table in the terminal shows."""
    last = {name: value for name in run.metrics() if name.startswith("eval/") and (value := run.final(name, 1)) is not None}
    found = []
    for metric, value in last.items():
        if is_constant(metric):
            continue
        rows = summary_rows({name: last[name] for name in (metric, f"{metric}_chance") if name in last} | _shots(metric, last))
        found += [(metric, what, said, chance) for what, said, chance in rows if last[metric] == value][:1]
    return found


def _shots(metric: str, last: dict[str, float]) -> dict[str, float]:
    """The other numbers of shots, without which a probe's row cannot be chosen."""
    if not metric.startswith("eval/fewshot"):
        return {}
    return {
        name: value for name, value in last.items() if name.startswith(metric.rpartition("/")[0]) and not name.endswith("_chance")
    }


def _evaluation(run: RunRecord) -> Table | None:
    rows = []
    for metric, what, value, chance in _evaluated(run):
        steps, values = run.curve(metric)
        best = max(range(len(values)), key=values.__getitem__)
        rows.append([what, value, f"{values[best]:.1%} at step {steps[best]:,}", chance, metric])
    return Table(["", "last", "best", "chance", "metric"], rows) if rows else None


def _results(groups: Sequence[Group], labels: Sequence[str]) -> Table | None:
    """A row a setting: mean and deviation over its runs of what the terminal's table would show, and of losses and success."""
    runs = [run for group in groups for run in group.runs]
    columns = {metric: what for metric, what in KEY_FIGURES[:3] if any(metric in run.curves for run in runs)}
    columns |= {metric: what for run in runs for metric, what, _, _ in _evaluated(run)}
    columns |= {metric: what for metric, what in KEY_FIGURES[3:4] if any(metric in run.curves for run in runs)}
    found = [[group.statistic(metric, LAST_STEPS) for metric in columns] for group in groups]
    marks = set()
    for column, metric in enumerate(columns):
        means = {row: statistic.mean for row, statistics in enumerate(found) if (statistic := statistics[column]) is not None}
        if best_of(metric) is not None and len(set(means.values())) > 1:
            best = next(iter(means.values()))
            for mean in means.values():
                best = better(metric, best, mean)
            marks |= {(row, column + 2) for row, mean in means.items() if mean == best}
    rows = [
        [
            label,
            str(len(group.runs)),
            *(
                "" if statistic is None else _spread(metric, statistic.mean, statistic.deviation, runs)
                for metric, statistic in zip(columns, statistics, strict=True)
            ),
        ]
        for group, label, statistics in zip(groups, labels, found, strict=True)
    ]
    units = [f"{what},\N{NO-BREAK SPACE}%" if _is_share(metric, runs) else what for metric, what in columns.items()]
    return Table(["setting", "runs", *units], rows, marks=frozenset(marks)) if columns else None


def _differing(groups: Sequence[Group], labels: Sequence[str]) -> Table | None:
    """The keys whose values differ between settings (of a single one, between its runs): a row a key, a column a setting."""
    keys = _keys(run for group in groups for run in group.runs)
    rows = []
    for key in keys:
        of_groups = [list(dict.fromkeys(_value(run, key) for run in group.runs)) for group in groups]
        if len({tuple(values) for values in of_groups}) > 1 or (len(groups) == 1 and len(of_groups[0]) > 1):
            rows.append([key, *(", ".join(values) for values in of_groups)])
    return Table(["key", *labels], rows) if rows else None


def _runs(runs: Sequence[RunRecord], groups: Sequence[Group], labels: Sequence[str]) -> Table:
    rows = [
        [run.name, labels[_group_of(run, groups)], _value(run, "seed"), f"{run.step:,} of {run.steps:,}", str(run.folder)]
        for run in runs
    ]
    return Table(["run", "setting", "seed", "steps", "directory"], rows)


def _configuration(runs: Sequence[RunRecord]) -> Table:
    """Every key with its value, or the values that runs have."""
    rows = []
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        values = list(dict.fromkeys(_value(run, key) for run in runs))
        rows.append([key, _some(values, 4)])
    return Table(["key", "value"], rows)


def _keys(runs: Iterable[RunRecord]) -> list[str]:
    return [key for key in dict.fromkeys(key for run in runs for key in run.settings) if not key.startswith(NOT_COMPARED)]


def _value(run: RunRecord, key: str) -> str:
    return shown(run.settings[key]) if key in run.settings else "–"


def _said(metric: str, value: float, runs: Sequence[RunRecord]) -> str:
    if _is_share(metric, runs) or metric == "perf/mfu":
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}"


def _spread(metric: str, mean: float, deviation: float | None, runs: Sequence[RunRecord]) -> str:
    if _is_share(metric, runs):
        return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")
    return _said(metric, mean, runs) + ("" if deviation is None else f" ± {_said(metric, deviation, runs)}")
