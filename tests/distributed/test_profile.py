"""A profile of a run on two ranks: it changes nothing that is computed, and W&B knows where it is."""

import gzip
import json
from pathlib import Path

import pytest

from tests.distributed.spawn import run_distributed
from tests.distributed.test_runs import COMMON, TWO, run_program
from tests.trainer.reporting.wandb_records import records

pytestmark = pytest.mark.slow

PARTS = {"data", "forward", "route", "dispatch", "exchange", "experts", "combine", "loss", "backward", "optimizer", "agree"}


def measured(run_dir: Path) -> list[dict[str, float]]:
    """What a run has computed, all but the times."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in rows]


def test_a_profile_changes_no_number_and_is_named_in_wandb(tmp_path: Path):
    settings = [*COMMON, *TWO, f"data.cache={tmp_path / 'cache'}", "train.steps=4"]
    profile = ["train.profile=3:4", "train.profile_ranks=[0,1]", "log.wandb=offline"]
    assert run_distributed(run_program, 2, [*settings, f"run.dir={tmp_path / 'plain'}"]) == [0, 0]
    assert run_distributed(run_program, 2, [*settings, f"run.dir={tmp_path / 'profiled'}", *profile]) == [0, 0]
    assert measured(tmp_path / "profiled") == measured(tmp_path / "plain")

    folder = tmp_path / "profiled" / "profile" / "steps-3-4"
    for rank in (0, 1):
        with gzip.open(folder / f"rank-{rank}.pt.trace.json.gz") as file:
            trace = json.load(file)
        names = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
        assert set(names) >= PARTS | {"step 3", "step 4"}
        assert trace["distributedInfo"]["rank"] == rank
    (artifact,) = records(tmp_path / "profiled", "artifact")
    assert artifact["type"] == "profile"
    refs = {entry["ref"] for entry in artifact["manifest"]["contents"]}
    assert refs == {path.as_uri() for path in folder.iterdir()}
