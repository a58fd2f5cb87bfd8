"""Sweepers that are plugins from PyPI, where they are installed: pip install hydra-optuna-sweeper hydra-list-sweeper."""

from pathlib import Path

import pytest

from tests.trainer.launch.conftest import Plan, no_run
from trainer.errors import UserError
from trainer.launch import sweep as module
from trainer.launch.hydra_app import run_app

OPTUNA = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.seed=1", "optim.lr=interval(0.1,0.9)"]
TEXT = '"a,{b} c"'
QUIET = ["log.wandb=disabled", "run.device=cpu", "train.steps=1"]


@pytest.fixture
def optuna() -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")


def pretend_to_train(monkeypatch: pytest.MonkeyPatch, fail_above: float = 1.0) -> list[float]:
    """Runs that record loss = |lr - 0.5| and end; those with a larger lr than `fail_above` fail. Gives the lr of each."""
    tried: list[float] = []

    def train(arguments: list[str]) -> int:
        given = dict(text.split("=", 1) for text in arguments)
        assert given.get("log.project", TEXT) == TEXT, "what the command line fixes comes through the sweeper as it was"
        lr = float(given["optim.lr"])
        tried.append(lr)
        folder = Path(given.get("run.dir", f"runs/{given['run.name']}"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").write_text(f'{{"step": 1, "train/loss": {abs(lr - 0.5)}}}\n')
        return int(lr > fail_above)

    monkeypatch.setattr(module, "train", train)
    return tried


def test_optuna_learns_what_the_runs_came_to(optuna: None, here: Path, monkeypatch: pytest.MonkeyPatch):
    tried = pretend_to_train(monkeypatch)
    into = ["hydra.sweep.dir=study", "hydra.launcher.result=train/loss", "checkpoint.every_minutes=null"]
    assert run_app([*OPTUNA, *QUIET, *into, f"log.project={TEXT}"], no_run) == 0
    assert len(tried) == 4
    found = (here / "study" / "optimization_results.yaml").read_text()
    best = min(tried, key=lambda lr: abs(lr - 0.5))
    assert f"best_value: {abs(best - 0.5)}" in found
    assert {path.name for path in (here / "study").iterdir() if path.is_dir()} == {f"limoe-lr-{lr}" for lr in tried}


def test_optuna_s_rule_decides_how_many_failures_end_it(
    optuna: None, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    tried = pretend_to_train(monkeypatch, fail_above=0.0)
    result = "hydra.launcher.result=train/loss"
    assert run_app([*OPTUNA, *QUIET, result], no_run) == 1
    assert len(tried) == 2, "a batch of hydra.sweeper.n_jobs"
    assert "error: 2 of 2 runs failed, see above" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "hydra/sweeper=optuna needs a value from each run: checkpoint.best="),
        (["checkpoint.best=eval/zeroshot/top1"], "hydra.sweeper.direction=maximize"),
    ],
)
def test_a_search_without_an_aim_is_refused(optuna: None, here: Path, overrides: list[str], told: str):
    with pytest.raises(UserError) as caught:
        run_app([*OPTUNA, *QUIET, *overrides], no_run)
    assert told in str(caught.value)
    assert not list(here.iterdir())


def test_a_dry_search_checks_its_first_batch(optuna: None, here: Path, capsys: pytest.CaptureFixture[str]):
    assert run_app([*OPTUNA, *QUIET, "hydra.launcher.result=train/loss", "run.dry=true"], no_run) == 0
    assert capsys.readouterr().out.count("ready to run") == 2
    assert not list(here.iterdir())


def test_a_list_sweeper_takes_values_in_pairs(plan: Plan):
    pytest.importorskip("hydra_plugins.list_sweeper_plugin", reason="hydra-list-sweeper is not installed")
    runs = plan("hydra/sweeper=list", "+hydra.sweeper.list_params={seed: [1, 2], optim.lr: [0.1, 0.2]}")
    assert [(run.config.seed, run.config.optim.lr) for run in runs] == [(1, 0.1), (2, 0.2)]


def test_a_launcher_from_elsewhere_is_refused(here: Path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="hydra-joblib-launcher is not installed")
    with pytest.raises(UserError, match=r"hydra/launcher=joblib cannot be used: .* choose local .* or slurm"):
        run_app(["-m", "hydra/launcher=joblib", "seed=0,1"], no_run)
    assert not list(here.iterdir())
