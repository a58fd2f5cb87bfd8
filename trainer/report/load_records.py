"""The records of a run's loads.jsonl, read one by one or some of them: a long run has many."""

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def line_starts(path: Path) -> "array[int]":
    """Where in the file each line begins."""
    starts, place = array("q"), 0
    with path.open("rb") as lines:
        for line in lines:
            starts.append(place)
            place += len(line)
    return starts


def records_at(path: Path, starts: Sequence[int]) -> list[dict[str, Any]]:
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


def rising(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what a resumed run did again."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        while kept and kept[-1]["step"] >= row["step"]:
            kept.pop()
        kept.append(row)
    return kept
