"""Run directories with made-up numbers."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def write_run(
    folder: Path,
    rows: list[dict[str, Any]],
    *,
    seed: int = 0,
    steps: int = 4,
    priority: str = "gate",
    load: float = 1.0,
    router: str = "limoe",
) -> Path:
    """A run of which only these settings and metrics are known."""
    folder.mkdir(parents=True)
    config = {
        "seed": seed,
        "run": {"name": folder.name, "dir": str(folder)},
        "train": {"steps": steps},
        "router": {"name": router, "priority": priority, "aux": {"load": load}},
    }
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rising(last: float, top1: float, steps: int = 4) -> list[dict[str, Any]]:
    """Rows of a run whose text success rises to `last`, with an evaluation at its end."""
    rows: list[dict[str, Any]] = [{"step": step, "routing/success/text": last * step / steps} for step in range(1, steps + 1)]
    return [*rows, {"step": steps, "eval/zeroshot/top1": top1}]
