"""What `experts=true` found out about a run, for the page: specialists and atlas from its numbers, patches from its pictures."""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from model.stream import MODALITIES
from trainer.report.expert_page import NUMBERS
from trainer.report.expert_panels import KNOCKED, most_changed
from trainer.report.theme import THEMES

FOLDER = "experts"
"""Where the page looks for them in a run directory."""
WORDS = 6
PICTURES = 6
"""Most layers whose patches are shown: pictures are what makes a page large."""
QUALITY = 72


@dataclass(frozen=True)
class ExpertLayer:
    """One layer. specialists: a row an expert; panels: of the atlas; patches: pictures by theme, as data URIs, or none."""

    name: str
    title: str
    specialists: list[dict[str, Any]]
    panels: list[dict[str, Any]]
    patches: dict[str, str]


@dataclass(frozen=True)
class Experts:
    """What the page shows of a run's experts. what: which model, measured with what."""

    what: str
    tasks: list[tuple[str, str]]
    layers: list[ExpertLayer]


def read_experts(run_dir: Path) -> Experts | None:
    """What `python -m trainer.report RUN experts=true output=RUN/experts` has left, or the run itself in a folder for each step.

    The newest of them; None without any, and for one that is not whole.
    """
    try:
        found = [*(run_dir / FOLDER).glob(NUMBERS), *(run_dir / FOLDER).glob(f"step-*/{NUMBERS}")]
        newest = max(found, key=lambda path: path.stat().st_mtime)
        return _experts(json.loads(newest.read_text()), newest.parent)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def _experts(numbers: Mapping[str, Any], folder: Path) -> Experts:
    shown = numbers["shown_with"]
    what = f"{shown['images']} images and {shown['texts']} texts ({numbers['name']})"
    tasks = [(_label(name), f"{task['baseline']:.1%}") for name, task in numbers["tasks"].items()]
    layers = [
        ExpertLayer(
            name,
            f"layer {int(name.removeprefix('layer'))}",
            _specialists(layer),
            _panels(layer, numbers["tasks"]),
            _patches(folder, name) if number < PICTURES else {},
        )
        for number, (name, layer) in enumerate(numbers["layers"].items())
    ]
    return Experts(what, tasks, layers)


def _specialists(layer: Mapping[str, Any]) -> list[dict[str, Any]]:
    largest = max(1e-9, *(share for name in MODALITIES for share in layer["share"][name]))
    rows = []
    for expert in range(layer["experts"]):
        shares = {name: layer["share"][name][expert] for name in MODALITIES}
        rows.append(
            {
                "expert": expert,
                "of": "" if not any(shares.values()) else max(shares, key=lambda name: shares[name]),
                "shares": {name: (f"{share:.1%}", f"{share / largest:.3f}") for name, share in shares.items()},
                "words": [typical["word"] for typical in layer["words"][expert][:WORDS]],
            }
        )
    return rows


def _panels(layer: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As in the pictures: each task as a whole, then the groups of the first classification set and of retrieval."""
    panels = []
    costs = layer["costs"]
    for task, of_task in costs.items():
        overall = of_task["overall"]
        panels.append({"title": _label(task), "rows": [KNOCKED[name] for name in overall], "values": list(overall.values())})
    first = next((task for task in costs if task.startswith("zeroshot")), None)
    for task in costs:
        for kind, groups in tasks[task]["groups"].items() if task in (first, "retrieval") else ():
            by_group = [list(row) for row in zip(*costs[task][kind]["both"], strict=True)]
            shown = most_changed(by_group)
            if shown:
                rows = [f"{groups[row]['name']} {groups[row]['baseline']:.0%}" for row in shown]
                panels.append({"title": f"{_label(task)}, by {kind}", "rows": rows, "values": [by_group[row] for row in shown]})
    return panels


def _patches(folder: Path, layer: str) -> dict[str, str]:
    found = {}
    for theme in THEMES:
        path = folder / f"{layer}-patches-{theme}.png"
        if not path.is_file():
            return {}
        small = io.BytesIO()
        with Image.open(path) as picture:
            picture.convert("RGB").save(small, "WEBP", quality=QUALITY)
        found[theme] = f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"
    return found


def _label(task: str) -> str:
    return task.replace("zeroshot", "zero-shot").replace("_", " ")
