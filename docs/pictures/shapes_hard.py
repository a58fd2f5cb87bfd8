"""Draws a sheet of training images of an embedded data set with their captions: `python docs/pictures/shapes_hard.py`.

Needs matplotlib, which training does not: `pip install matplotlib`. `shapes_hard.py simple OUT.png` draws the other set.
"""

import random
import sys
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot

from trainer.data.shapes.draw import draw
from trainer.data.shapes.write import RECIPES

matplotlib.use("agg")

ROWS, COLUMNS = 4, 8
IMAGE_SIZE = 32


def main(kind: str = "shapes_hard", path: str = str(Path(__file__).with_suffix(".png"))) -> None:
    """Draw the sheet of the data set `kind` into `path`."""
    rng = random.Random(3)
    scenes = [RECIPES[kind].training(rng) for _ in range(ROWS * COLUMNS)]
    pyplot.rcParams.update({"font.family": "DejaVu Sans", "font.size": 7})
    figure, panels = pyplot.subplots(ROWS, COLUMNS, figsize=(1.5 * COLUMNS, 2.1 * ROWS), layout="constrained")
    for panel, scene, image in zip(panels.flat, scenes, draw(scenes, IMAGE_SIZE, np.random.default_rng(0)), strict=True):
        panel.imshow(image, interpolation="nearest")
        panel.set_axis_off()
        panel.text(0, 33, "\n".join(textwrap.wrap(scene.caption, 24)), va="top", transform=panel.transData)
    figure.savefig(path, dpi=110, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
