"""The load of every expert over time: as many moments of it as a page can hold."""

import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.stream import MODALITIES
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
        starts = _starts(path)
        last = _rows(path, starts[-2:])
        if not last:
            continue
        numbers = sum(len(loads) for of_layer in _layers(last[-1]).values() for loads in of_layer.values())
        most = max(LEAST_MOMENTS, min(MOST_MOMENTS, ALL_NUMBERS // max(1, numbers * len(having))))
        rows = _rising(_rows(path, _spread(starts, most)))
        found[index] = {
            "steps": [row["step"] for row in rows],
            "every": len(starts),
            "layers": {
                layer: {name: [_rounded(row.get(layer, {}).get(name, ())) for row in rows] for name in MODALITIES}
                for layer in _layers(last[-1])
            },
        }
    return found


def _starts(path: Path) -> "array[int]":
    """Where in the file each line begins."""
    starts, place = array("q"), 0
    with path.open("rb") as lines:
        for line in lines:
            starts.append(place)
            place += len(line)
    return starts


def _rows(path: Path, starts: Sequence[int]) -> list[dict[str, Any]]:
    """The records that begin there, without a line that was cut off."""
    rows = []
    with path.open("rb") as file:
        for start in starts:
            file.seek(start)
            try:
                row = json.loads(file.readline())
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows


def _rising(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what a resumed run did again."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        while kept and kept[-1]["step"] >= row["step"]:
            kept.pop()
        kept.append(row)
    return kept


def _spread(starts: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly, with the first and the last two (of which one may be cut off)."""
    count = len(starts)
    chosen = {count - 2, *(number * (count - 1) // max(1, most - 1) for number in range(most))} if count > most else range(count)
    return [starts[index] for index in sorted(chosen)]


def _layers(row: Mapping[str, Any]) -> dict[str, Mapping[str, Sequence[float]]]:
    return {name: of_layer for name, of_layer in row.items() if isinstance(of_layer, Mapping)}


def _rounded(loads: Sequence[float | None]) -> list[float | None]:
    return [None if load is None else round(load, DIGITS) for load in loads]
