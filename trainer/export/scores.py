"""What the exported weights have been measured to do."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.checkpoint.files import step_of
from trainer.config.schema import Config
from trainer.engine.state import WEIGHTS
from trainer.errors import UserError, reason
from trainer.export.request import Export
from trainer.report.runs import rows_of
from trainer.training.directory import METRICS

EVALUATION = "eval/"


@dataclass(frozen=True)
class Scores:
    """metrics: what trainer.evaluation.suite.evaluate returned, empty if it was not measured; told: when, or why it was not."""

    told: str
    metrics: Mapping[str, float] = field(default_factory=dict)


def find_scores(export: Export, config: Config) -> Scores:
    """From the file that the command line names, or else from what the run recorded of just these weights.

    Raises UserError for a file that does not belong to them.
    """
    if export.page.evaluation is not None:
        return _from_file(export.page.evaluation, export)
    steps = [step_of(checkpoint) for checkpoint in export.checkpoints]
    if len(steps) > 1 or export.kind != WEIGHTS:
        return Scores("a run evaluates neither averages of its checkpoints nor moving averages while it trains")
    try:
        found = _recorded(export.run_dir / METRICS, steps[0])
    except OSError:
        return Scores(f"the run's {METRICS} is not there")
    if not found:
        return Scores(f"the run was not evaluated at step {steps[0]}")
    factor = config.router.eval_capacity_factor
    dropping = "" if factor is None else f"; with router.eval_capacity_factor={factor}, whereas this model drops no token"
    return Scores(f"Measured in training, after step {steps[0]}, in {config.train.precision}{dropping}.", found)


def _recorded(path: Path, step: int) -> dict[str, float]:
    """The evaluation in a metrics.jsonl after a step; the last, if there are several."""
    found: dict[str, float] = {}
    for row in rows_of(path):
        metrics = {name: value for name, value in row.items() if name.startswith(EVALUATION) and isinstance(value, (int, float))}
        if metrics and row["step"] == step:
            found = metrics
    return found


def _from_file(path: Path, export: Export) -> Scores:
    """What `trainer.evaluate … to=FILE` wrote."""
    asked = f"evaluation={path}"
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        metrics = {str(name): float(value) for name, value in values["metrics"].items()}
        checkpoint = Path(values["checkpoint"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
        raise UserError(
            f"{asked} is not what `python -m trainer.evaluate run=DIR to=FILE` writes ({reason(problem)}): give such a file"
        ) from problem
    newest, kind = export.checkpoints[-1], values.get("weights", WEIGHTS)
    if len(export.checkpoints) > 1 or checkpoint.name != newest.name or kind != export.kind:
        raise UserError(
            f"{asked} is of the weights ({kind}) of {checkpoint.name}, not of what is exported: evaluate that, or leave it out"
        )
    return Scores(f"Measured by `trainer.evaluate`, after step {step_of(newest)}.", metrics)
