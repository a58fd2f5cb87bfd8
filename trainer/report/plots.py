"""Plots of several runs: one line or point per setting, with its spread over seeds as a band or a bar."""

import math
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # works without a screen

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.report.groups import Group, Statistic, mean_curve

COLUMNS = 2
PANEL = (4.6, 3.0)  # inches
DOTS_PER_INCH = 110
LETTER = 0.062  # inches of the legend's font, at most on average
HANDLE = 0.5  # inches beside a label in a legend


def plot_curves(groups: Sequence[Group], metrics: Sequence[str], path: Path) -> None:
    """One panel per metric, one line per setting: the mean over its runs, with one standard deviation around it."""
    figure, panels = _panels(len(metrics))
    colours = _colours(group.label() for group in groups)
    for axes, metric in zip(panels, metrics, strict=False):
        for group in groups:
            points = mean_curve(group, metric)
            steps, means = list(points), [statistic.mean for statistic in points.values()]
            if not steps:
                continue
            colour = colours[group.label()]
            axes.plot(steps, means, linewidth=1.4, label=group.label(), color=colour)
            spread = [statistic.deviation or 0.0 for statistic in points.values()]
            lower = [mean - deviation for mean, deviation in zip(means, spread, strict=True)]
            upper = [mean + deviation for mean, deviation in zip(means, spread, strict=True)]
            axes.fill_between(steps, lower, upper, color=colour, alpha=0.18, linewidth=0)
        _finish(axes, metric, "step")
    _save(figure, panels, path)


def plot_against(groups: Sequence[Group], key: str, metrics: Sequence[str], last_steps: int, path: Path) -> None:
    """One panel per metric: results against a number of the configuration, one line per setting of the other keys.

    Against another metric: one dot per run, one colour per setting.
    """
    figure, panels = _panels(len(metrics))
    colours = _colours(_without(key, group).label() for group in groups)
    for axes, metric in zip(panels, metrics, strict=False):
        if key not in groups[0].setting:
            _scatter(axes, groups, key, metric, last_steps, colours)
            _finish(axes, metric, key)
            continue
        lines: dict[str, list[tuple[float, Statistic]]] = defaultdict(list)
        for group in groups:
            statistic = group.statistic(metric, last_steps)
            if statistic is not None:
                lines[_without(key, group).label()].append((float(group.setting[key]), statistic))
        for label, points in lines.items():
            points.sort(key=lambda point: point[0])
            places = [place for place, _ in points]
            bars = [statistic.deviation or 0.0 for _, statistic in points]
            means = [statistic.mean for _, statistic in points]
            axes.errorbar(places, means, yerr=bars, marker="o", capsize=3, label=label, color=colours[label])
        _finish(axes, metric, key)
    _save(figure, panels, path)


def _without(key: str, group: Group) -> Group:
    """The same runs, without what they are plotted against."""
    return Group({name: value for name, value in group.setting.items() if name != key}, group.runs)


def _colours(labels: Iterable[str]) -> dict[str, str]:
    """Of each line: the same in all panels, also where some have nothing to draw."""
    return {label: f"C{number % 10}" for number, label in enumerate(dict.fromkeys(labels))}


def _scatter(axes: Axes, groups: Sequence[Group], across: str, metric: str, last_steps: int, colours: dict[str, str]) -> None:
    for group in groups:
        pairs = [(run.final(across, last_steps), run.final(metric, last_steps)) for run in group.runs]
        known = [(x, y) for x, y in pairs if x is not None and y is not None]
        x, y = [x for x, _ in known], [y for _, y in known]
        axes.scatter(x, y, s=18, alpha=0.8, label=group.label(), color=colours[group.label()])


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    rows, columns = math.ceil(count / COLUMNS), min(count, COLUMNS)
    figure, panels = pyplot.subplots(rows, columns, figsize=(PANEL[0] * columns, PANEL[1] * rows), squeeze=False)
    flat = list(panels.flat)
    for unused in flat[count:]:
        unused.set_axis_off()
    return figure, flat


def _finish(axes: Axes, metric: str, below: str) -> None:
    axes.set_title(metric, fontsize=9)
    axes.set_xlabel(below, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, panels: Sequence[Axes], path: Path) -> None:
    """One legend for all panels, under them, with as many columns as there is room for."""
    labelled = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if len(labelled) > 1:
        width = figure.get_figwidth()
        labels = [textwrap.fill(label, int((width - HANDLE) / LETTER)) for label in labelled]
        longest = max(len(line) for label in labels for line in label.splitlines())
        columns = max(1, min(len(labels), int(width / (HANDLE + LETTER * longest))))
        figure.legend(labelled.values(), labels, loc="outside lower center", ncols=columns, fontsize=8)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white")
    pyplot.close(figure)
