"""Draws training images of an embedded data set with their captions: `python -m docs.pictures.shapes_hard`.

Needs matplotlib (requirements-report.txt). Another data set, and where to: `python -m docs.pictures.shapes_hard shapes OUT.png`.
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

ROWS, COLUMNS = 3, 7
IMAGE_SIZE = 32
LINE = 26  # characters of a caption below an image


def main(kind: str = "shapes_hard", path: str = str(Path(__file__).with_suffix(".png"))) -> None:
    """Draw the sheet of the data set `kind` into `path`."""
    rng = random.Random(11)
    scenes = [RECIPES[kind].training(rng) for _ in range(ROWS * COLUMNS)]
    pyplot.rcParams.update({"font.family": "DejaVu Sans", "font.size": 6.5})
    figure, panels = pyplot.subplots(ROWS, COLUMNS, figsize=(1.4 * COLUMNS, 2.15 * ROWS), layout="constrained")
    for panel, scene, image in zip(panels.flat, scenes, draw(scenes, IMAGE_SIZE, np.random.default_rng(0)), strict=True):
        panel.imshow(image, interpolation="nearest")
        panel.set_axis_off()
        panel.text(0, IMAGE_SIZE + 1, "\n".join(textwrap.wrap(scene.caption, LINE)), va="top")
    figure.savefig(path, dpi=110, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
