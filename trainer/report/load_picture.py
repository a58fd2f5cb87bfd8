"""A picture of the load of the experts of one layer over the steps, by modality."""

import matplotlib

matplotlib.use("Agg")  # works without a screen

from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from trainer.report.load_history import LoadsOverTime
from trainer.report.theme import Theme

WIDTH = 5.2
"""Inches, as of the other pictures of experts."""
MOST_LOAD = 4.0
"""Times an even share from which on a colour is the darkest."""
LABELLED = 16
"""Most experts for which each row has its number."""


def picture_of_load(title: str, loads: LoadsOverTime, layer: str, theme: Theme) -> Figure:
    """A heat map a modality: a row an expert, from the first to the last step; the page's own colour is an even share."""
    of_layer = loads.layers[layer]
    experts = len(next(iter(of_layer.values()))[0])
    height = min(0.18 * experts, 3.0) + 0.45
    figure = Figure(figsize=(WIDTH, height * len(of_layer) + 0.9), layout="constrained", facecolor=theme.page)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold", color=theme.ink, parse_math=False)
    panels = figure.subplots(len(of_layer), 1, sharex=True, squeeze=False)[:, 0]
    step = max(1, loads.last - loads.first)
    for axes, (modality, moments) in zip(panels, of_layer.items(), strict=True):
        drawn = axes.imshow(
            [list(of_expert) for of_expert in zip(*moments, strict=True)],
            cmap=theme.scale(),
            norm=TwoSlopeNorm(1, 0, MOST_LOAD),
            aspect="auto",
            interpolation="nearest",
            extent=(loads.first, loads.first + step, experts - 0.5, -0.5),
        )
        axes.set_title(f"{modality} tokens", loc="left", fontsize=8.5, fontweight="bold", color=theme.of(modality))
        axes.set_facecolor(theme.page)
        axes.tick_params(colors=theme.soft, labelsize=8, length=0)
        axes.spines[:].set_visible(False)
        if experts <= LABELLED:
            axes.set_yticks(range(experts))
        axes.set_ylabel("expert", color=theme.soft, fontsize=8)
    panels[-1].set_xlabel("step", color=theme.soft, fontsize=8)
    scale = figure.colorbar(drawn, ax=list(panels), ticks=[0, 1, 2, 3, MOST_LOAD], fraction=0.04, pad=0.02)
    scale.ax.set_yticklabels(["0", "even", "2", "3", f"{MOST_LOAD:g} or more"])
    scale.ax.tick_params(colors=theme.soft, labelsize=7, length=0)
    scale.outline.set_visible(False)
    return figure
