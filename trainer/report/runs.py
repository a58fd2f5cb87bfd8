"""Runs as they are on disk: configuration, curves, last values."""

import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trainer.checkpoint.files import CONFIG
from trainer.config.compose import load_config
from trainer.errors import UserError
from trainer.training.directory import METRICS


class Curve:
    """One metric over the steps, which rise; NaN where it was not finite. Sixteen bytes a point: runs can be long."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.values = array("d")

    def add(self, step: int, value: float) -> None:
        """Append a value. If the step is no later than the last one, a resumed run has done the steps since then again."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self.steps.append(step)
        self.values.append(value)

    def points(self) -> list[tuple[int, float]]:
        """Those that are finite."""
        return [(step, value) for step, value in zip(self.steps, self.values, strict=True) if math.isfinite(value)]


@dataclass
class RunRecord:
    """One run. settings: its configuration by dotted key; curves: every metric, in the order of its first appearance.

    step: the last recorded one; rows: how many records of metrics it left.
    """

    folder: Path
    settings: dict[str, Any]
    curves: dict[str, Curve] = field(default_factory=dict)
    step: int = 0
    rows: int = 0

    @property
    def name(self) -> str:
        """The name its user gave it."""
        return str(self.settings.get("run.name", self.folder.name))

    @property
    def steps(self) -> int:
        """How many it is to take."""
        return int(self.settings["train.steps"])

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its last step, and evaluated there if it evaluates at all."""
        return self.step >= self.steps

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric where it was recorded as a number."""
        points = self.curves[metric].points() if metric in self.curves else []
        return [step for step, _ in points], [value for _, value in points]

    def final(self, metric: str, last_steps: int) -> float | None:
        """The result of a run: the last value of an evaluation, the mean over the last steps of anything else; None without any.

        last_steps: how many count, those up to the run's last one.
        """
        steps, values = self.curve(metric)
        if not values:
            return None
        if metric.startswith("eval/"):
            return values[-1]
        recent = [value for step, value in zip(steps, values, strict=True) if step > self.step - last_steps]
        return sum(recent) / len(recent) if recent else None

    def metrics(self) -> list[str]:
        """Every name that was recorded as a number, in the order of its first appearance."""
        return [name for name, curve in self.curves.items() if any(map(math.isfinite, curve.values))]

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in a line of metrics.jsonl."""
        self.step = row["step"]
        self.rows += 1
        for name, value in row.items():
            if name != "step" and (value is None or isinstance(value, (int, float))):
                if name not in self.curves:
                    self.curves[name] = Curve()
                self.curves[name].add(self.step, math.nan if value is None else value)


def read_runs(places: Iterable[str | Path]) -> list[RunRecord]:
    """The runs in the given places, each a run directory or a folder with run directories in it, however deep.

    Each run appears once, in the order of the paths. Raises UserError for a place without any.
    """
    folders: dict[Path, None] = {}
    for place in places:
        found = sorted(_run_folders(Path(place)))
        if not found:
            raise UserError(
                f"{place}: no run there: give run directories (with {METRICS} and {CONFIG}), or a folder that contains some"
            )
        folders |= dict.fromkeys(folder.resolve() for folder in found)
    return [read_run(folder) for folder in folders]


def read_run(folder: Path) -> RunRecord:
    """The run of one directory. Raises UserError when its configuration cannot be read."""
    run = RunRecord(folder, flat(load_config(folder / CONFIG)))
    for row in rows_of(folder / METRICS):
        run.add(row)
    return run


def flat(config: DictConfig) -> dict[str, Any]:
    """A configuration by dotted key; lists are values."""

    def walk(values: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, Mapping) and value:
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)  # what a DictConfig becomes
    return dict(walk(plain, ""))


def is_run(place: Path) -> bool:
    """Whether a folder is a run's directory with something recorded in it."""
    return (place / METRICS).is_file() and (place / CONFIG).is_file()


def _run_folders(place: Path) -> Iterator[Path]:
    if is_run(place):
        yield place
    elif place.is_dir():
        for inner in place.iterdir():
            # What an earlier start left, checkpoints and hidden folders are not separate runs.
            if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith((".", "earlier-", "checkpoints")):
                yield from _run_folders(inner)


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of measurements, each with its `step`; without one that a crash cut off."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield row
