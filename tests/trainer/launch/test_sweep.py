"""Sweeps: which runs a command line means, and which are refused before the first one starts."""

import pytest

from trainer.config.compose import compose_config
from trainer.errors import UserError
from trainer.launch import sweep as module
from trainer.launch.names import check_directories, name_runs
from trainer.launch.sweep import is_sweep, list_runs, sweep


def test_every_combination_is_a_run_and_the_last_key_varies_fastest():
    assert list_runs(["optim.lr=1e-3,3e-4", "seed=0", "router=limoe,none"]) == [
        ["optim.lr=0.001", "seed=0", "router=limoe"],
        ["optim.lr=0.001", "seed=0", "router=none"],
        ["optim.lr=0.0003", "seed=0", "router=limoe"],
        ["optim.lr=0.0003", "seed=0", "router=none"],
    ]


def test_ranges_and_shard_patterns_are_understood():
    runs = list_runs(["seed=range(0,2)", "data.train=/a-{0..1}.tar"])
    assert [compose_config(run).seed for run in runs] == [0, 1]
    assert compose_config(runs[1]).data.train == "/a-{0..1}.tar"


def test_runs_that_would_share_a_directory_are_refused():
    shared = [compose_config(run) for run in name_runs(list_runs(["optim.lr=1e-3,3e-4", "run.dir=runs/one"]))]
    with pytest.raises(UserError, match=r"2 runs of this sweep would share run.dir=runs/one: leave run.dir out"):
        check_directories(shared)
    check_directories([compose_config(run) for run in name_runs(list_runs(["optim.lr=1e-3,3e-4"]))])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-m", "optim.lr=1e-3,x", "run.name=${optim.lr}"], "optim.lr: Value 'x'"),
        (["-m", "train.stpes=1,2", "run.name=${seed}"], "the configuration has no 'train.stpes'"),
        (["-m", "--cfg", "job"], "--cfg does not go together with -m"),
        (["-m", "seed=1,1"], "would train the same run twice: seed=1"),
        (["-m", "seed=1,2", "hydra/launcher=slrm"], "did you mean 'slurm'?"),
        (["-m", "seed=1,2", "hydra.launcher.nodes=2"], "hydra.launcher.nodes is for SLURM: add hydra/launcher=slurm"),
        (["-m", "model=glob(limoe_*)"], "write the values with commas between them"),
    ],
)
def test_a_mistake_in_any_run_is_told_before_the_first(monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str):
    monkeypatch.setattr(module, "_train", lambda overrides: pytest.fail("a run has started"))
    assert is_sweep(arguments)
    with pytest.raises(UserError) as caught:
        sweep(arguments)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["optim.lr=1,-1", "--multirun"], "error: run 1 (optim.lr=-1): optim.lr=-1.0 must be above 0"),
        (["-m", "schedule.kind=cosine,cosin"], "error: run 1 (schedule.kind=cosin): schedule.kind=cosin: choose cosine or rsqrt"),
        (["-m", "seed=0,1", "data.val=/nowhere.tar"], "error: data.val: no shards match; /nowhere.tar does not exist"),
    ],
)
def test_what_a_dry_run_would_find_in_any_run_is_told_before_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
):
    monkeypatch.setattr(module, "_train", lambda overrides: pytest.fail("a run has started"))
    assert sweep(arguments) == 2
    assert capsys.readouterr().err.startswith(told)


def test_under_a_launcher_a_sweep_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start the runs one by one"):
        sweep(["-m", "seed=0,1"])


@pytest.mark.parametrize(("codes", "code", "runs"), [([0, 0], 0, 2), ([2, 0], 1, 2), ([130], 130, 1), ([85], 85, 1)])
def test_a_failure_does_not_end_a_sweep_and_a_stop_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], codes: list[int], code: int, runs: int
):
    left = list(codes)
    monkeypatch.setattr(module, "_train", lambda overrides: left.pop(0))
    assert sweep(["-m", "seed=0,1", "run.name=s${seed}"]) == code
    said = capsys.readouterr()
    assert said.out.splitlines() == ["run 1 of 2: seed=0 in runs/s0", "run 2 of 2: seed=1 in runs/s1"][:runs]
    assert ("error: 1 of 2 runs failed" in said.err) == (code == 1)


def test_the_local_launcher_trains_here_in_directories_named_after_what_differs(monkeypatch: pytest.MonkeyPatch):
    started: list[list[str]] = []

    def note(overrides: list[str]) -> int:
        started.append(overrides)
        return 0

    monkeypatch.setattr(module, "_train", note)
    assert sweep(["-m", "hydra/launcher=local", "seed=0,1"]) == 0
    assert started == [["seed=0", "run.name=limoe-seed-0"], ["seed=1", "run.name=limoe-seed-1"]]


def test_a_run_is_the_program_itself_with_its_exit_code(capfd: pytest.CaptureFixture[str]):
    assert module._train(["train.stpes=3"]) == 2
    assert "did you mean 'train.steps'?" in capfd.readouterr().err
