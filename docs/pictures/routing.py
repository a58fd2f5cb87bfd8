"""Draws routing success by modality and layer, for light and dark pages: `python docs/pictures/routing.py runs/demo`.

Needs matplotlib, which nothing else here does: `pip install matplotlib`.
"""

import json
import re
import sys
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

matplotlib.use("svg")

MODALITIES = ("image", "text")
STYLES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
"""A line style an expert layer; more layers begin again."""
SMOOTH = 5
"""Points of the running mean; the points themselves stay behind it, faint."""
THEMES = {
    "light": {"ink": "#1f2328", "soft": "#59636e", "grid": "#d1d9e0", "image": "#0969da", "text": "#bc4c00"},
    "dark": {"ink": "#f0f6fc", "soft": "#9198a1", "grid": "#3d444d", "image": "#4493f8", "text": "#db6d28"},
}


def read_rows(run: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl that hold routing metrics, a step once."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = {row["step"]: row for row in map(json.loads, lines) if "routing/success/image" in row}
    return [rows[step] for step in sorted(rows)]


def running_mean(values: list[float]) -> list[float]:
    """The mean of each value and those before it, SMOOTH at most."""
    windows = [values[max(0, place - SMOOTH + 1) : place + 1] for place in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def plot(panel: Axes, steps: list[float], values: list[float], colour: str, style: object, label: str) -> None:
    """The running mean of a curve, with the curve itself behind it."""
    panel.plot(steps, values, color=colour, alpha=0.15, linewidth=0.8)
    panel.plot(steps, running_mean(values), color=colour, linestyle=style, linewidth=1.6, label=label)


def draw(rows: list[dict[str, float]], theme: dict[str, str], path: Path) -> None:
    """Success by modality and expert layer on the left; on the right how unevenly the experts are wanted."""
    layers = sorted({name.split("/")[1] for row in rows for name in row if re.match(r"routing/layer\d+/", name)})
    steps = [row["step"] for row in rows]
    pyplot.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "svg.fonttype": "path", "svg.hashsalt": "routing"})
    figure, panels = pyplot.subplots(1, 2, figsize=(8.6, 3.0), layout="constrained", gridspec_kw={"wspace": 0.06})
    for place, layer in enumerate(layers):
        block = f"block {int(layer.removeprefix('layer'))}"
        for modality in MODALITIES:
            values = [row[f"routing/{layer}/success/{modality}"] for row in rows]
            plot(panels[0], steps, values, theme[modality], STYLES[place % len(STYLES)], f"{modality}, {block}")
        values = [row[f"routing/{layer}/load/max"] for row in rows]
        plot(panels[1], steps, values, theme["ink"], STYLES[place % len(STYLES)], block)
    titles = ("routing success: tokens that got an expert", "demand for the busiest expert (1: even)")
    for panel, title, corner in zip(panels, titles, ("lower right", "upper right"), strict=True):
        panel.set_title(title, color=theme["ink"], fontsize=10, fontweight="bold")
        panel.set_xlabel("step", color=theme["soft"])
        panel.tick_params(colors=theme["soft"], length=0)
        panel.grid(axis="y", color=theme["grid"], linewidth=0.6)
        panel.set_xlim(0, steps[-1])
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
        panel.spines["bottom"].set_color(theme["grid"])
        panel.legend(frameon=False, labelcolor=theme["ink"], ncols=2, loc=corner, handlelength=2.8)
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    panels[0].set_ylim(0.4, 1.0)
    panels[1].set_ylim(1.0, None)
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def main() -> None:
    """Write both pictures beside this file."""
    rows = read_rows(Path(sys.argv[1]))
    for name, theme in THEMES.items():
        draw(rows, theme, Path(__file__).with_name(f"routing-{name}.svg"))


if __name__ == "__main__":
    main()
