"""Sweeps that train here: what is refused before the first run starts, what a failure and a stop do, and how a run is started."""

import json
import os
from pathlib import Path

import pytest

from tests.trainer.launch.conftest import Plan, no_run
from trainer.config.compose import compose_config
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.launch import sweep as module
from trainer.launch.hydra_app import run_app

TRAIN = module.train
LEFT_ALONE = ["log.wandb=disabled", "run.device=cpu"]


def sweep(*arguments: str) -> int:
    return run_app([*arguments, *LEFT_ALONE], no_run)


def test_every_combination_is_a_run_and_the_last_key_varies_fastest(plan: Plan):
    runs = plan("optim.lr=1e-3,3e-4", "seed=0", "router=limoe,none")
    assert [run.own for run in runs] == [
        ["optim.lr=0.001", "router=limoe"],
        ["optim.lr=0.001", "router=none"],
        ["optim.lr=0.0003", "router=limoe"],
        ["optim.lr=0.0003", "router=none"],
    ]
    assert [(run.config.optim.lr, run.config.seed) for run in runs[1:3]] == [(1e-3, 0), (3e-4, 0)]


@pytest.mark.parametrize("values", ["range(0,2)", "choice(0,1)", "0,1"])
def test_values_are_what_hydra_s_grammar_says(plan: Plan, values: str):
    assert [run.config.seed for run in plan(f"seed={values}")] == [0, 1]


def test_choices_of_a_group_can_be_named_by_a_pattern(plan: Plan):
    assert [run.config.router.kind if hasattr(run.config.router, "kind") else run.own for run in plan("router=glob(*)")]
    assert [run.own for run in plan("schedule=glob(*)")] == [["schedule=cosine"], ["schedule=rsqrt"]]


def test_shard_patterns_need_no_quotes(plan: Plan):
    assert [run.config.data.train for run in plan("seed=0,1", "data.train=/a-{0..1}.tar")] == ["/a-{0..1}.tar"] * 2
    assert compose_config(plan("seed=0,1", "data.train=/a-{0..1}.tar")[1].overrides).data.train == "/a-{0..1}.tar"


def test_values_may_stand_in_the_sweeper_s_own_configuration(plan: Plan, here: Path):
    (here / "cfg").mkdir()
    (here / "cfg" / "own.yaml").write_text(
        "defaults: [config, _self_]\nhydra:\n  sweeper:\n    params:\n      seed: 3,4\n      optim.lr: 1e-3\n"
    )
    runs = plan("--config-dir", "cfg", "--config-name", "own")
    assert [(run.config.seed, run.config.run.dir) for run in runs] == [
        (3, "runs/limoe-seed-3-lr-0.001"),
        (4, "runs/limoe-seed-4-lr-0.001"),
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["optim.lr=1e-3,x", "run.name=${optim.lr}"], "optim.lr: Value 'x'"),
        (["train.stpes=1,2", "run.name=${seed}"], "the configuration has no key 'train.stpes' (did you mean 'train.steps'?)"),
        (["--cfg", "job"], "Only one of --run, --multirun, --cfg"),
        (["seed=1,1"], "would train the same run twice: seed=1"),
        (["seed=1,2", "hydra/launcher=slrm"], "did you mean 'slurm'?"),
        (["seed=1,2", "hydra.launcher.nodes=2"], "hydra.launcher.nodes is for SLURM: add hydra/launcher=slurm"),
        (["seed=1,2", "hydra/sweeper=optunaa"], "hydra/sweeper can be basic"),
        (["model=glob(nothing*)"], "nothing*"),
        (["optim.lr=1e-3,3e-4", "run.dir=runs/one"], "2 runs of this sweep would share run.dir=runs/one: leave run.dir out"),
        (["seed=interval(0,3)"], "does not support sweep type : INTERVAL_SWEEP"),
        (["seed=0,1", "hydra.run.dir=/x"], "the directory of a run is run.dir"),
        (["seed=0,1", "hydra.sweep.dri=/x"], "did you mean 'hydra.sweep.dir'?"),
    ],
)
def test_a_mistake_is_told_before_the_first_run_and_leaves_nothing(here: Path, arguments: list[str], told: str):
    with pytest.raises(UserError) as caught:
        sweep("-m", *arguments)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["optim.lr=1,-1", "--multirun"], "error: run 1 (optim.lr=-1): optim.lr=-1.0 must be above 0"),
        (["-m", "schedule.kind=cosine,cosin"], "error: run 1 (schedule.kind=cosin): schedule.kind=cosin: choose cosine or rsqrt"),
        (["-m", "seed=0,1", "data.val=/nowhere.tar"], "error: data.val: no shards match; /nowhere.tar does not exist"),
    ],
)
def test_what_a_dry_run_would_find_in_any_run_is_told_before_the_first(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
):
    assert sweep(*arguments) == 2
    assert capsys.readouterr().err.startswith(told)
    assert not list(here.iterdir())


def test_a_dry_sweep_starts_and_leaves_nothing(here: Path, capsys: pytest.CaptureFixture[str]):
    assert sweep("-m", "seed=0,1", "run.dry=true") == 0
    assert capsys.readouterr().out.splitlines() == [
        "run 1: seed=0 in runs/limoe-seed-0: ready to run",
        "run 2: seed=1 in runs/limoe-seed-1: ready to run",
    ]
    assert not list(here.iterdir())


def test_under_a_launcher_a_sweep_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start the runs one by one"):
        sweep("-m", "seed=0,1")


@pytest.mark.parametrize(("codes", "code", "runs"), [([0, 0], 0, 2), ([2, 0], 1, 2), ([130], 130, 1), ([85], 85, 1)])
@pytest.mark.parametrize("batch", [None, 1])
def test_a_failure_does_not_end_a_sweep_and_a_stop_does(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    codes: list[int],
    code: int,
    runs: int,
    batch: int | None,
):
    left = list(codes)
    monkeypatch.setattr(module, "train", lambda arguments: left.pop(0))
    batches = [f"hydra.sweeper.max_batch_size={batch}"] if batch else []
    assert sweep("-m", "seed=0,1", "run.name=s${seed}", *batches) == code
    said = capsys.readouterr()
    lines = [line.replace(" of 2", "").replace(" of 1", "") for line in said.out.splitlines()]
    assert lines == ["run 1: seed=0 in runs/s0", "run 2: seed=1 in runs/s1"][:runs]
    assert ("error: 1 of 2 runs failed" in said.err) == (code == 1)


def test_a_run_is_started_with_its_name_and_its_number(here: Path, monkeypatch: pytest.MonkeyPatch):
    started: list[list[str]] = []
    monkeypatch.setattr(module, "train", lambda arguments: started.append(arguments) or 0)
    assert sweep("-m", "hydra/launcher=local", "hydra.verbose=true", "seed=0,1") == 0
    assert started[1] == [
        *("hydra.verbose=true", "hydra.mode=RUN", "hydra.job.num=1", "hydra.job.id=1"),
        *("seed=1", *LEFT_ALONE, "run.name=limoe-seed-1"),
    ]
    (record,) = here.glob("runs/sweeps/*/multirun.yaml")
    assert "seed=0,1" in record.read_text()


def test_a_run_is_the_program_itself_with_its_exit_code(capfd: pytest.CaptureFixture[str]):
    assert TRAIN(["train.stpes=3"]) == 2
    assert "did you mean 'train.steps'?" in capfd.readouterr().err


def test_the_front_end_s_variable_does_not_reach_a_run(here: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[str | None] = []

    def spawn(command: list[str], env: dict[str, str]) -> None:
        seen.append(env.get("HYDRA_FULL_ERROR"))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", TRAIN)
    monkeypatch.setattr(module.subprocess, "Popen", spawn)
    with pytest.raises(KeyboardInterrupt):
        sweep("-m", "seed=0,1")
    assert seen == [None]
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_runs_end_with_what_they_recorded(here: Path, plan: Plan):
    (run, _) = plan("seed=0,1", "checkpoint.best=eval/zeroshot/top1")
    folder = here / run.config.run.dir
    folder.mkdir(parents=True)
    from trainer.launch.results import has_ended, read_result

    assert not has_ended(run.config)
    values = [(0, 0.1, None), (500, 0.4, 2.5), (1000, 0.3, 2.0)]
    lines = [json.dumps({"step": step, "eval/zeroshot/top1": top1, "train/loss": loss}) for step, top1, loss in values]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 10']))
    assert has_ended(run.config)
    assert read_result(run.config, None) == 0.4
    assert read_result(run.config, "train/loss") == 2.0
    assert read_result(run.config, ["train/loss", "eval/zeroshot/top1"]) == [2.0, 0.3]
    run.config.checkpoint.best_mode = "min"
    assert read_result(run.config, None) == 0.1
    run.config.checkpoint.best = None
    assert read_result(run.config, None) == {"eval/zeroshot/top1": 0.3, "train/loss": 2.0}
    with pytest.raises(UserError, match=r"no 'train/los' \(did you mean 'train/loss'\?\)"):
        read_result(run.config, "train/los")


def test_a_sweep_that_an_experiment_asks_for_starts_single_runs(plan: Plan, here: Path):
    (here / "cfg" / "experiment").mkdir(parents=True)
    (here / "cfg" / "experiment" / "seeds.yaml").write_text(
        "# @package _global_\ndefaults: [debug, _self_]\nrun: {name: seeds}\n"
        "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params: {seed: '3,4', router: 'none,limoe'}\n"
    )
    runs = plan("--config-dir", "cfg", "experiment=seeds")
    assert [run.config.run.name for run in runs][:2] == ["seeds-seed-3-router-none", "seeds-seed-3-router-limoe"]
    kept: list[Config] = []
    for run in runs:  # what each run's own process gets, without -m
        assert run_app(run.arguments, kept.append) == 0
    assert [config.run.dir for config in kept] == [run.config.run.dir for run in runs]


def test_one_wandb_run_around_a_sweep_is_not_that_of_all_its_runs(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    seen: list[str | None] = []
    monkeypatch.setenv("WANDB_RUN_ID", "outer")
    monkeypatch.setattr(module.CheckedLauncher, "check", lambda launcher, runs: None)
    monkeypatch.setattr(module, "train", lambda arguments: seen.append(os.environ.get("WANDB_RUN_ID")) or 0)
    assert sweep("-m", "seed=0,1") == 0
    assert seen == [None, None]
    assert "WANDB_RUN_ID=outer is not heeded" in caplog.text


def test_the_runs_of_a_sweep_share_a_group_in_wandb(here: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[str | None] = []
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    monkeypatch.setattr(module.CheckedLauncher, "check", lambda launcher, runs: None)
    monkeypatch.setattr(module, "train", lambda arguments: seen.append(os.environ.get("WANDB_RUN_GROUP")) or 0)
    assert sweep("-m", "seed=0,1", "run.name=first") == 0
    assert sweep("-m", "seed=0,1", "run.name=s${seed}") == 0
    assert sweep("-m", "seed=0,1", "hydra.sweep.dir=runs/mine") == 0
    assert "WANDB_RUN_GROUP" not in os.environ
    monkeypatch.setenv("WANDB_RUN_GROUP", "theirs")
    assert sweep("-m", "seed=0,1") == 0
    assert seen == ["first", "first", "s", "s", "mine", "mine", "theirs", "theirs"]
    assert os.environ["WANDB_RUN_GROUP"] == "theirs"
