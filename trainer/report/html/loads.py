"""The load of every expert over time: as many moments of it as a page can hold."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.stream import MODALITIES
from trainer.report.load_records import line_starts, records_at, rising
from trainer.reporting.loads import LOADS

DIGITS = 2
ALL_NUMBERS = 300_000
"""In the heat maps of all runs together; about a megabyte, before it is compressed."""
MOST_MOMENTS, LEAST_MOMENTS = 150, 10


def read_loads(folders: Sequence[Path]) -> dict[int, dict[str, Any]]:
    """By index of the folder, for those that have any: `{"steps": […], "layers": {"layer03": {"text": [[a load an expert] …]}}}`.

    `every` says how many moments were recorded; the first and the last are always among those that are shown.
    """
    having = {index: folder / LOADS for index, folder in enumerate(folders) if (folder / LOADS).is_file()}
    found = {}
    for index, path in having.items():
        starts = line_starts(path)
        last = records_at(path, starts[-2:])
        if not last:
            continue
        numbers = sum(len(loads) for of_layer in _layers(last[-1]).values() for loads in of_layer.values())
        most = max(LEAST_MOMENTS, min(MOST_MOMENTS, ALL_NUMBERS // max(1, numbers * len(having))))
        rows = rising(records_at(path, _spread(starts, most)))
        found[index] = {
            "steps": [row["step"] for row in rows],
            "every": len(starts),
            "layers": {
                layer: {name: [_rounded(row.get(layer, {}).get(name, ())) for row in rows] for name in MODALITIES}
                for layer in _layers(last[-1])
            },
        }
    return found


def _spread(starts: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly, with the first and the last two (of which one may be cut off)."""
    count = len(starts)
    chosen = {count - 2, *(number * (count - 1) // max(1, most - 1) for number in range(most))} if count > most else range(count)
    return [starts[index] for index in sorted(chosen)]


def _layers(row: Mapping[str, Any]) -> dict[str, Mapping[str, Sequence[float]]]:
    return {name: of_layer for name, of_layer in row.items() if isinstance(of_layer, Mapping)}


def _rounded(loads: Sequence[float | None]) -> list[float | None]:
    return [None if load is None else round(load, DIGITS) for load in loads]
