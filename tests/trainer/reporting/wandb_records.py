"""What a run has recorded offline, as wandb's own reader tells it."""

import json
import shlex
import subprocess
from pathlib import Path

from trainer.reporting.leet import leet_command


def records(run_dir: Path, kind: str) -> list[dict]:
    """The newest part's records of one kind, as wandb's own reader tells them."""
    lines = map(json.loads, recorded(run_dir).splitlines())
    return [line[kind] for line in lines if line["type"] == kind]


def last_summary(run_dir: Path) -> dict:
    """What W&B shows of each metric, from all its records."""
    summary: dict = {}
    for record in records(run_dir, "summary"):
        summary |= record["update"]
    return summary


def recorded(run_dir: Path) -> str:
    """The records of the newest part of the run, as wandb's own reader tells them."""
    command = [*shlex.split(leet_command(run_dir)), "--json"]
    command.insert(command.index("leet") + 1, "inspect")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
