"""A sweep in this process, up to the moment at which it would start its runs."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.launch import sweep
from trainer.launch.hydra_app import run_app
from trainer.launch.sweep import CheckedLauncher, Ended, LocalLauncher, SweepRun

Plan = Callable[..., list[SweepRun]]


def no_run(*args: object) -> int:
    """In the place of what starts a run."""
    pytest.fail("a run has started")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without a launcher around it, with a PATH of its own, and a command line that Hydra may rewrite."""
    for name in ("WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SBATCH_GPUS_PER_NODE", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(sweep, "train", no_run)
    return tmp_path / "work"


@pytest.fixture
def plan(here: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Gives the runs that a command line with -m means, named and composed, neither checked nor started."""

    def planned(*arguments: str) -> list[SweepRun]:
        runs: list[SweepRun] = []

        def keep(launcher: CheckedLauncher, batch: list[SweepRun]) -> None:
            runs.extend(batch)

        def end(launcher: CheckedLauncher, batch: list[SweepRun]) -> None:
            raise Ended(0)

        monkeypatch.setattr(CheckedLauncher, "check", keep)
        monkeypatch.setattr(LocalLauncher, "start", end)
        assert run_app(["-m", *arguments], no_run) == 0
        return runs

    return planned
