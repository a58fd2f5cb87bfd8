"""The result of a run in a sweep, read from its files: the value that a sweeper such as Optuna's asks for."""

import json
from pathlib import Path
from typing import Any

from trainer.config.schema import Config
from trainer.errors import UserError, did_you_mean
from trainer.training.directory import METRICS

Result = float | list[float] | dict[str, float]


def read_result(config: Config, wanted: str | list[str] | None) -> Result:
    """The value of a run that has ended.

    wanted: a metric, or several, for the last value; None: the best value of checkpoint.best, which is that of the checkpoint
    kept for it; without checkpoint.best, the last value of every metric by its name.
    Raises UserError for a metric that the run has not recorded.
    """
    history = _history(Path(config.run.dir) / METRICS)
    if isinstance(wanted, list):
        return [_of(history, name, config)[-1] for name in wanted]
    if wanted is not None:
        return _of(history, wanted, config)[-1]
    if config.checkpoint.best is not None:
        values = _of(history, config.checkpoint.best, config)
        return max(values) if config.checkpoint.best_mode == "max" else min(values)
    return {name: values[-1] for name, values in history.items()}


def _of(history: dict[str, list[float]], name: str, config: Config) -> list[float]:
    if not history.get(name):
        raise UserError(f"{config.run.dir} has recorded no '{name}'{did_you_mean(name, history)}, which the sweeper asks for")
    return history[name]


def _history(path: Path) -> dict[str, list[float]]:
    """Every finite value of each metric, in the order of the steps."""
    history: dict[str, list[float]] = {}
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        for name, value in _parsed(line).items():
            if name != "step" and value is not None:
                history.setdefault(name, []).append(float(value))
    return history


def _parsed(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:  # cut off
        return {}
    return values if isinstance(values, dict) else {}


def has_ended(config: Config) -> bool:
    """Whether a run has recorded its last step."""
    try:
        lines = (Path(config.run.dir) / METRICS).read_text().splitlines()
    except OSError:
        return False
    return any(_parsed(line).get("step", -1) >= config.train.steps for line in reversed(lines[-50:]))
