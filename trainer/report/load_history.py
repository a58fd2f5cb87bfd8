"""The load of every expert over a run, from its loads.jsonl: as many moments as a picture has room for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.report.load_records import line_starts, records_at, rising

MOMENTS = 200


@dataclass(frozen=True)
class LoadsOverTime:
    """first, last: steps; layers: by layer and modality, the loads of each moment, an expert each, in the order of the steps.

    A moment is the mean over as many records as there are for each.
    """

    first: int
    last: int
    layers: dict[str, dict[str, list[list[float]]]]


def read_loads(path: Path) -> LoadsOverTime | None:
    """None for a file without records. Raises OSError for one that cannot be read."""
    rows = rising(records_at(path, line_starts(path)))
    if not rows:
        return None
    names = [name for name in rows[-1] if name != "step"]
    layers = {name: {modality: _moments(rows, name, modality) for modality in rows[-1][name]} for name in names}
    return LoadsOverTime(rows[0]["step"], rows[-1]["step"], layers)


def _moments(rows: Sequence[Mapping[str, Any]], layer: str, modality: str) -> list[list[float]]:
    each = -(-len(rows) // MOMENTS)
    parts = [[row[layer][modality] for row in rows[start : start + each]] for start in range(0, len(rows), each)]
    return [[sum(loads) / len(part) for loads in zip(*part, strict=True)] for part in parts]
