"""torchrun restarts a run (--max-restarts): it resumes from its checkpoint, despite what dead ranks left in the store."""

import json
from pathlib import Path

import pytest

from tests.distributed.crashes_once import STEP
from tests.distributed.program import TINY, torchrun
from trainer.checkpoint.files import checkpoint_path

pytestmark = pytest.mark.slow

STEPS = 8


@pytest.mark.parametrize(("how", "victim"), [("killed", 1), ("killed", 0), ("fails", 1)])
def test_a_run_that_crashed_once_goes_on_from_its_checkpoint(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, how, victim
):
    overrides = [*TINY, f"data.cache={tmp_path_factory.getbasetemp()}/restarts", f"run.dir={tmp_path}/run"]
    layout = ["parallel.expert_parallel=2", "checkpoint.every_steps=2", "checkpoint.asynchronous=false", f"train.steps={STEPS}"]
    arguments = [how, str(victim), *overrides, *layout]
    done = torchrun(2, "tests.distributed.crashes_once", arguments, "--max-restarts=1")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    told = "rank 1 failed: IndexError: a bug" if how == "fails" else f"rank {victim} died without a message"
    assert said.count(f"error: {told}") == 1, said
    assert f"continuing from step {STEP - 1} of {STEPS}" in said
    assert checkpoint_path(tmp_path / "run", STEPS).is_dir()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert list({row["step"]: None for row in rows if "train/loss" in row}) == list(range(1, STEPS + 1))
