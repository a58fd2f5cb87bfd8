"""Home directories in what a user types, through the whole program: a run, its resume, a run from its weights, its evaluation."""

import json
from pathlib import Path

import pytest

from tests.distributed.program import TINY, Ended, run
from trainer.checkpoint.files import complete_checkpoints
from trainer.config.compose import load_config
from trainer.config.stored import stored_config

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `~` leads."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def train(log: Path, *overrides: str) -> Ended:
    return run([*TINY, "data.cache=~/cache/", *overrides], log)


def test_a_home_directory_is_one_wherever_it_is_typed(home: Path, tmp_path: Path):
    log = tmp_path / "log"
    done = train(log, "run.dir=~/run/", "train.steps=1")
    assert done.code == 0, done.output
    assert load_config(home / "run" / "config.yaml").run.dir == str(home / "run")
    assert stored_config(home / "run" / "config.yaml", []).data.cache == str(home / "cache")

    done = train(log, "run.dir=~/run", "train.steps=2", "model.heads=2")
    assert done.code == 2, done.output
    assert (
        "belongs to another model (model.heads was 4, is 2): use model.heads=4, or start a new run with another run.dir"
        in done.errors[0]
    )
    done = train(log, "run.dir=~/run", "train.steps=2", "resume=~/run")
    assert done.code == 0, done.output
    assert [path.name for path in complete_checkpoints(home / "run")] == ["step-00000001", "step-00000002"]

    done = train(log, "run.dir=~/next", "train.steps=1", "init_from=~/run/")
    assert done.code == 0, done.output
    done = run(["--run", "~/next", "--eval.zeroshot", "{unseen: null}", "--to", "~/judged.json"], log, module="trainer.evaluate")
    assert done.code == 0, done.output
    judged = json.loads((home / "judged.json").read_text())
    groups = {name.rpartition("/")[0] for name in judged["metrics"]}
    assert "eval/zeroshot" in groups and "eval/zeroshot_unseen" not in groups
    worst = judged["confusions"]["eval/zeroshot"][0]
    assert f"{worst['true']} for {worst['predicted']}" in done.output
    assert not (tmp_path / "~").exists()
