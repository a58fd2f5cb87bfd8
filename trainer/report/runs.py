"""Runs as they are on disk: configuration, curves, last values."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trainer.checkpoint.files import CONFIG
from trainer.config.compose import load_config
from trainer.errors import UserError
from trainer.training.directory import METRICS

Row = Mapping[str, float | None]


@dataclass(frozen=True)
class RunRecord:
    """One run. settings: its configuration by dotted key; rows: the lines of metrics.jsonl, each with `step`, in their order."""

    folder: Path
    settings: dict[str, Any]
    rows: list[Row]

    @property
    def name(self) -> str:
        """The name its user gave it."""
        return str(self.settings.get("run.name", self.folder.name))

    @property
    def step(self) -> int:
        """The last recorded step."""
        return int(self.rows[-1]["step"] or 0) if self.rows else 0

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its last step, and evaluated there if it evaluates at all."""
        return self.step >= int(self.settings["train.steps"])

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric where it was recorded as a number."""
        points = [(int(row["step"] or 0), row[metric]) for row in self.rows if row.get(metric) is not None]
        return [step for step, _ in points], [float(value) for _, value in points if value is not None]

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
        return list(
            dict.fromkeys(name for row in self.rows for name, value in row.items() if value is not None and name != "step")
        )


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
    return RunRecord(folder, flat(load_config(folder / CONFIG)), list(_rows(folder / METRICS)))


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


def _run_folders(place: Path) -> Iterator[Path]:
    if (place / METRICS).is_file() and (place / CONFIG).is_file():
        yield place
    elif place.is_dir():
        for inner in place.iterdir():
            # What an earlier start left, checkpoints and hidden folders are not separate runs.
            if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith((".", "earlier-", "checkpoints")):
                yield from _run_folders(inner)


def _rows(path: Path) -> Iterator[Row]:
    """Without a line that a crash cut off."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield row
