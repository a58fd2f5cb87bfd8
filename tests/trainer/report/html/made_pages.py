"""Runs with everything that a page shows, and with what can be odd about them."""

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

from tests.trainer.report.made_runs import write_run

EXPERTS, LAYERS = 4, ("layer01", "layer03")
MODALITIES = ("image", "text")


def routed_rows(steps: int = 40, lift: float = 0.0) -> list[dict[str, Any]]:
    """Rows as a run with two expert layers leaves them, evaluated at its beginning and end."""
    rows: list[dict[str, Any]] = []
    for step in range(steps + 1):
        if step:
            success = {f"routing/success/{name}": min(1.0, 0.5 + step / (2 * steps) + lift) for name in MODALITIES}
            layers = {f"routing/{layer}/success/{name}": 0.5 + step / (2 * steps) for layer in LAYERS for name in MODALITIES}
            loss = {"train/loss": 4 / step + 0.1, "train/loss_contrastive": 4 / step, "train/lr": 1e-3 * step / steps}
            rows.append({"step": step, **loss, **success, **layers, "perf/pairs_per_second": 100.0 + step % 7})
        if step in (0, steps):
            rows.append({"step": step, "eval/zeroshot/top1": 0.1 + 0.5 * step / steps + lift, "eval/zeroshot/top1_chance": 0.1})
    return rows


def write_loads(folder: Path, steps: int = 40) -> None:
    """The load of every expert at every step: it moves from the first expert to an even share."""
    with (folder / "loads.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            even = step / steps
            loads = [EXPERTS * (1 - even) + even, *[even] * (EXPERTS - 1)]
            file.write(json.dumps({"step": step, **{layer: dict.fromkeys(MODALITIES, loads) for layer in LAYERS}}) + "\n")


def write_experts(folder: Path) -> None:
    """What `experts=true` leaves, of one layer and one task, with a word that looks like HTML."""
    experts = folder / "experts"
    experts.mkdir()
    costs = {name: [0.1, -0.02, 0.0, 0.03] for name in ("image", "text", "both")}
    by_class = {name: [[0.2, 0.0], [0.0, 0.001], [0.0, 0.0], [0.0, 0.0]] for name in ("image", "text", "both")}
    layer = {
        "experts": EXPERTS,
        "share": {"image": [0.7, 0.3, 0.0, 0.0], "text": [0.0, 0.2, 0.8, 0.0]},
        "words": [[{"word": "<b>bold</b>"}], [{"word": "a"}, {"word": "cat"}], [], []],
        "costs": {"zeroshot": {"overall": costs, "class": by_class}},
    }
    groups = {"class": [{"name": "<i>cat</i>", "baseline": 0.5}, {"name": "dog", "baseline": 0.25}]}
    numbers = {
        "name": "photos, step 40",
        "step": 40,
        "shown_with": {"images": 8, "texts": 16},
        "tasks": {"zeroshot": {"baseline": 0.5, "groups": groups}},
        "layers": {"layer01": layer},
    }
    (experts / "experts.json").write_text(json.dumps(numbers))
    for theme, colour in (("light", "white"), ("dark", "black")):
        Image.new("RGB", (40, 20), colour).save(experts / f"layer01-patches-{theme}.png")


def write_whole(folder: Path) -> Path:
    """A run with everything."""
    write_run(folder, routed_rows(), steps=40)
    write_loads(folder)
    write_experts(folder)
    return folder


def write_many(folder: Path) -> Path:
    """Ten settings with two seeds each: one of them spoilt, one interrupted, one without evaluation, one named like HTML."""
    for setting in range(10):
        for seed in (0, 1):
            rows = routed_rows(lift=setting / 50)
            name = f"run-{setting}-{seed}"
            if setting == 0:
                rows[20] |= {"train/loss": math.nan if seed else None}
            elif setting == 1:
                rows = rows[:15]
            elif setting == 2:
                rows = [row for row in rows if "train/loss" in row]
            elif setting == 3:
                name = f"<script>alert({seed})</script>&amp; <img src=x onerror=alert(1)>".replace("/", "∕")
            run = write_run(folder / name, rows, seed=seed, steps=40, load=setting / 10, router="<u>limoe</u>")
            if setting > 7:
                write_loads(run)
    return folder
