"""What W&B shows besides curves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb
from torch import Tensor

from trainer.reporting.example_tables import Cell, ExampleTable, picture
from trainer.reporting.loads import Loads

SPREAD_EDGES = [step / 4 for step in range(17)]
"""Edges of the histogram of loads: from 0 to 4 times an even share; what is above counts as 4."""


def heat_maps(loads: Loads) -> dict[str, Any]:
    """What W&B draws without a picture from us: `experts/layer03/load/text`, a heat map over the steps with a row an expert.

    For W&B that is a histogram whose bins are the experts: those of a run's history it draws as heat maps over the steps.
    `experts/layer03/spread/text` is a histogram of the loads: how many experts have which. A layer that is too wide for
    W&B is left out.
    """
    shown: dict[str, Any] = {}
    for layer, of_layer in loads.items():
        for modality, load_e in of_layer.items():
            if len(load_e) <= wandb.Histogram.MAX_LENGTH:
                edges = [expert - 0.5 for expert in range(len(load_e) + 1)]
                shown[f"experts/{layer}/load/{modality}"] = _histogram(load_e, edges)
            shown[f"experts/{layer}/spread/{modality}"] = _histogram(_spread(load_e), SPREAD_EDGES)
    return shown


def wandb_tables(tables: Mapping[str, ExampleTable]) -> dict[str, wandb.Table]:
    """`predictions/zeroshot` and the like, with a column that says which rows are right."""
    return {f"predictions/{name}": _table(table) for name, table in tables.items()}


def wandb_images(paths: Mapping[str, Path]) -> dict[str, wandb.Image]:
    """Pictures from files, by name."""
    return {name: wandb.Image(str(path)) for name, path in paths.items()}


def _table(table: ExampleTable) -> wandb.Table:
    rows = [[is_hit, *map(_cell, cells)] for cells, is_hit in zip(table.rows, table.hits, strict=True)]
    return wandb.Table(columns=["right", *table.columns], data=rows)


def _cell(cell: Cell) -> Any:
    return wandb.Image(picture(cell), file_type="jpg") if isinstance(cell, Tensor) else cell


def _histogram(values: list[Any], edges: list[float]) -> wandb.Histogram:
    return wandb.Histogram(np_histogram=(values, edges))  # type: ignore[arg-type]  # it takes lists as well as arrays


def _spread(load_e: list[float]) -> list[int]:
    counts = [0] * (len(SPREAD_EDGES) - 1)
    for load in load_e:
        counts[min(len(counts) - 1, int(load / SPREAD_EDGES[1]))] += 1
    return counts
