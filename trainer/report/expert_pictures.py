"""Pictures of the experts of one layer: what they take, the patches they are surest of, what is lost without them."""

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # works without a screen

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from matplotlib.typing import ColorType

from model.stream import MODALITIES
from trainer.evaluation.specialists import PATCHES, Specialists, SurePatch
from trainer.report.expert_panels import Panel
from trainer.report.theme import Theme

# A word in a script that the font lacks. Set once: this may run in a thread, and a change of the filters there is one for all.
warnings.filterwarnings("ignore", message="Glyph .* missing")

WIDTH = 5.2
"""Inches: narrow, so that it can be read on a phone."""
DOTS_PER_INCH = 160
ROW = 0.30
WORDS = 4
"""Words of an expert in its picture."""
LEAST_SCALE = 0.1
NUMBERED = 16
"""Most experts for which the cells of a heat map have room for their numbers."""


def picture_of_specialists(title: str, layer: Specialists, theme: Theme) -> Figure:
    """A bar an expert, its share of either modality's tokens stacked, with its typical words beside it."""
    shares = {name: layer.share(name).tolist() for name in MODALITIES}
    height = ROW * layer.experts
    figure = _figure(height + 1.0, theme)
    bars, beside = figure.subplots(1, 2, width_ratios=(1.0, 1.05), sharey=True)
    begins = [0.0] * layer.experts
    for name in MODALITIES:
        bars.barh(range(layer.experts), shares[name], left=begins, height=0.72, color=theme.of(name), label=f"{name} tokens")
        begins = [begin + share for begin, share in zip(begins, shares[name], strict=True)]
    bars.set_ylim(layer.experts - 0.4, -0.6)
    bars.set_yticks(range(layer.experts), [str(expert) for expert in range(layer.experts)])
    bars.set_ylabel("expert", color=theme.soft, fontsize=8)
    bars.set_xlim(0, max(begins) * 1.02 or 1)
    bars.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    bars.set_xlabel("share of the modality's tokens", color=theme.soft, fontsize=8)
    bars.grid(axis="x", color=theme.grid, linewidth=0.6)
    bars.set_axisbelow(True)
    _plain(bars, theme)
    _colour_experts(bars.get_yticklabels(), layer, theme)
    beside.set_axis_off()
    beside.set_xlim(0, 1)
    beside.set_title("typical words", loc="left", color=theme.soft, fontsize=8, pad=5)
    for expert in range(layer.experts):
        words = ", ".join(_short(typical.word) for typical in layer.words(expert, WORDS))
        unused = not any(shares[name][expert] for name in MODALITIES)
        said = "(unused)" if unused else words or "–"
        beside.text(0, expert, said, va="center", fontsize=8.5, color=theme.ink if words else theme.soft, parse_math=False)
    bars.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=2,
        frameon=False,
        fontsize=8,
        labelcolor=theme.ink,
        handlelength=1.0,
        handletextpad=0.4,
        columnspacing=1.0,
        borderpad=0,
    )
    _title(figure, title, theme)
    return figure


def picture_of_patches(title: str, layer: Specialists, theme: Theme, most: int = PATCHES) -> Figure:
    """A row an expert: the patches with its largest gates, outlined, each with what is around it and its gate below.

    Experts without an image token are named at the foot.
    """
    shown = [expert for expert in range(layer.experts) if layer.patches(expert)]
    others = [str(expert) for expert in range(layer.experts) if expert not in shown]
    figure = _figure(0.74 * len(shown) + 0.85, theme)
    panels = figure.subplots(max(1, len(shown)), most, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for expert, row in zip(shown, panels, strict=False):
        for axes, patch in zip(row, layer.patches(expert), strict=False):
            _draw_patch(axes, patch, theme)
        _beside(row[0], 0.5, str(expert), theme.ink, fontsize=9, fontweight="bold")
        _beside(row[0], 0.2, f"{float(layer.share('image')[expert]):.0%}", theme.image, fontsize=7)
    told = "outlined: the patch; below it: its gate; blue: the expert's share of all image tokens"
    if others:
        told += "\n" + textwrap.fill(f"no image token: {', '.join(others)}", 90)
    _footer(figure, told, theme)
    _title(figure, title, theme)
    return figure


def picture_of_atlas(title: str, panels: Sequence[Panel], layer: Specialists, theme: Theme) -> Figure:
    """Heat maps: what each row loses, in points, without each expert. The experts' numbers have the colour of their modality.

    Each panel has a scale of its own, but none makes less than LEAST_SCALE look like much.
    """
    heights = [len(panel.rows) + 1.2 for panel in panels]
    experts = layer.experts
    figure = _figure(0.24 * sum(heights) + 1.0, theme, max(WIDTH, 1.9 + 0.2 * experts))
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0], panels, strict=True):
        largest = max(LEAST_SCALE, *(abs(value) for row in panel.values for value in row))
        axes.imshow(panel.values, cmap=theme.scale(), vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest")
        title_of_panel = panel.title if experts <= NUMBERED else f"{panel.title} (darkest: {100 * largest:.0f})"
        axes.set_title(title_of_panel, loc="left", fontsize=8.5, color=theme.ink, fontweight="bold", parse_math=False, pad=14)
        axes.set_yticks(range(len(panel.rows)), panel.rows, parse_math=False)
        axes.set_xticks(range(experts), [str(expert) for expert in range(experts)])
        axes.xaxis.tick_top()
        _plain(axes, theme)
        _colour_experts(axes.get_xticklabels(), layer, theme)
        axes.tick_params(axis="x", pad=0)
        for edge in range(1, experts):
            axes.axvline(edge - 0.5, color=theme.grid, linewidth=0.4)
        for edge in range(1, len(panel.rows)):
            axes.axhline(edge - 0.5, color=theme.grid, linewidth=0.4)
        if experts <= NUMBERED:
            _number(axes, panel, largest, theme)
    _footer(figure, "percentage points: purple is a loss, green a gain; beside a name: with all experts", theme)
    _title(figure, title, theme)
    return figure


def save(figure: Figure, path: Path, theme: Theme) -> None:
    """Write a picture as PNG."""
    figure.savefig(path, dpi=DOTS_PER_INCH, facecolor=theme.page)


def _draw_patch(axes: Axes, patch: SurePatch, theme: Theme) -> None:
    axes.imshow(patch.crop.permute(1, 2, 0).numpy(), interpolation="nearest")
    corner = (patch.left - 0.5, patch.top - 0.5)
    for colour, width in (("#000000", 2.2), ("#ffffff", 0.9)):  # seen on any picture
        axes.add_patch(Rectangle(corner, patch.side, patch.side, fill=False, edgecolor=colour, linewidth=width))
    axes.text(0.5, -0.06, f"{patch.gate:.2f}", transform=axes.transAxes, ha="center", va="top", fontsize=7, color=theme.soft)


def _beside(axes: Axes, height: float, said: str, colour: str, **how: Any) -> None:
    """Text to the left of a panel."""
    axes.text(-0.12, height, said, transform=axes.transAxes, ha="right", va="center", color=colour, **how)


def _number(axes: Axes, panel: Panel, largest: float, theme: Theme) -> None:
    for row, values in enumerate(panel.values):
        for expert, value in enumerate(values):
            if points := round(100 * value):
                cell = theme.scale()(0.5 + 0.5 * value / largest)
                colour = theme.page if _contrast(theme.page, cell) > _contrast(theme.ink, cell) else theme.ink
                axes.text(expert, row, f"{points}".replace("-", "−"), ha="center", va="center", fontsize=7.5, color=colour)


def _contrast(one: ColorType, other: ColorType) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    lights = sorted(_luminance(colour) for colour in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _luminance(colour: ColorType) -> float:
    """Relative luminance, 0 to 1 (WCAG 2.2)."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _colour_experts(labels: Sequence[object], layer: Specialists, theme: Theme) -> None:
    """An expert's number in the colour of the modality of which it takes the larger share."""
    image, text = layer.share("image").tolist(), layer.share("text").tolist()
    for expert, label in enumerate(labels):
        used = image[expert] + text[expert] > 0
        colour = theme.soft if not used else theme.image if image[expert] >= text[expert] else theme.text
        label.set(color=colour, fontweight="bold")  # type: ignore[attr-defined]


def _figure(height: float, theme: Theme, width: float = WIDTH) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", facecolor=theme.page)


def _title(figure: Figure, title: str, theme: Theme) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold", color=theme.ink, parse_math=False)


def _footer(figure: Figure, said: str, theme: Theme) -> None:
    figure.supxlabel(said, x=0.01, ha="left", fontsize=7, color=theme.soft)


def _plain(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor(theme.page)
    axes.tick_params(colors=theme.soft, labelsize=8, length=0)
    axes.spines[:].set_visible(False)


def _short(word: str, most: int = 14) -> str:
    return word if len(word) <= most else f"{word[: most - 1]}…"
