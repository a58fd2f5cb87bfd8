"""A sweep on SLURM, with a program in the place of sbatch that notes what it is told. The real one is in tests/cluster/."""

import json
import stat
from pathlib import Path

import pytest

from tests.trainer.launch.conftest import no_run
from trainer.config.compose import compose_config
from trainer.errors import UserError
from trainer.launch.hydra_app import run_app
from trainer.launch.job_array import read_array_line, write_runs

SLURM = ["-m", "hydra/launcher=slurm", "log.wandb=disabled", "run.device=cpu"]


def sweep(arguments: list[str]) -> int:
    return run_app(arguments, no_run)


def sbatch_that(here: Path, does: str) -> None:
    """Put an sbatch on PATH that notes its arguments, one a line, and then does something."""
    program = here.parent / "bin" / "sbatch"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {here.parent}/told\n{does}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def told(here: Path) -> list[str]:
    return (here.parent / "told").read_text().splitlines()


def test_a_sweep_is_one_array_and_tells_where_each_run_lies(here: Path, capsys: pytest.CaptureFixture[str]):
    sbatch_that(here, "echo '4711;lab'")
    launch = ["hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=2", "hydra.launcher.array_parallelism=3"]
    assert sweep([*SLURM, *launch, "optim.lr=1e-3,3e-4"]) == 0
    (folder,) = (here / "runs" / "sweeps").iterdir()
    relative = folder.relative_to(here)
    *options, script, overrides = told(here)
    assert options == ["--parsable", "--array=0-1%3", f"--output={relative}/%a.log", "--nodes=2", "--ntasks-per-node=2"]
    assert Path(script).parts[-2:] == ("slurm", "train.sbatch")
    assert overrides == f"@{relative}/overrides.jsonl"
    said = capsys.readouterr()
    assert said.err == ""
    for index, lr in enumerate(("0.001", "0.0003")):
        for part in (f"optim.lr={lr}", f"{relative}/limoe-lr-{lr}", f"{relative}/{index}.log"):
            assert part in said.out
    assert "job array 4711: 2 runs on 4 processes each" in said.out
    assert set(folder.iterdir()) == {folder / "overrides.jsonl", folder / "multirun.yaml"}, "no run has written anything"


def test_each_task_of_the_array_takes_its_own_line(here: Path, monkeypatch: pytest.MonkeyPatch):
    runs = [["optim.lr=0.001", "data.train=/a b-{0..3}.tar"], ["optim.lr=0.0003", "run.name='a\"b,ü'", "seed=2"]]
    write_runs(here / "runs.jsonl", runs)
    for index, run in enumerate(runs):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(index))
        arguments = read_array_line([f"@{here}/runs.jsonl", "run.dry=true"])
        assert arguments == [*run, "run.dry=true"]
        assert compose_config(arguments).run.dry
    assert read_array_line(["seed=1"]) == ["seed=1"]


@pytest.mark.parametrize(
    ("content", "task", "part"),
    [
        ('["seed=1"]\n', None, "not in one"),
        ('["seed=1"]\n', "1", "lists 1 runs, numbered from 0: none for task 1"),
        ("[\n", "0", "must contain one JSON list of overrides per line"),
        (None, "0", "No such file"),
    ],
)
def test_a_list_of_runs_that_cannot_be_used_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, task: str | None, part: str
):
    if content is not None:
        (here / "runs.jsonl").write_text(content)
    if task is not None:
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
    with pytest.raises(UserError) as caught:
        read_array_line([f"@{here}/runs.jsonl"])
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_bad_value_submits_nothing(here: Path, capsys: pytest.CaptureFixture[str]):
    sbatch_that(here, "echo 1")
    assert sweep([*SLURM, "hydra.launcher.tasks_per_node=2", "optim.lr=1e-3,-1", "schedule.kind=cosin", "run.name=x"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "error: schedule.kind=cosin: choose cosine or rsqrt (did you mean 'cosine'?)",
        "error: run 1 (optim.lr=-1): optim.lr=-1.0 must be above 0",
        "nothing is submitted (checked for 2 processes each)",
    ]
    assert not (here.parent / "told").exists()
    assert list(here.iterdir()) == []


def test_a_dry_sweep_is_checked_and_not_submitted(here: Path, capsys: pytest.CaptureFixture[str]):
    sbatch_that(here, "echo 1")
    assert sweep([*SLURM, "seed=0,1", "run.dry=true"]) == 0
    assert "ready: 2 runs on 1 process each; nothing is submitted (run.dry=true)" in capsys.readouterr().out
    assert not (here.parent / "told").exists()
    assert list(here.iterdir()) == []


def test_what_sbatch_says_is_told_in_one_line_and_nothing_is_left(here: Path):
    does = (
        "echo 'sbatch: error: invalid partition specified: x' >&2\necho 'sbatch: error: Batch job submission failed' >&2\nexit 1"
    )
    sbatch_that(here, does)
    with pytest.raises(
        UserError, match=r"^sbatch refuses the sweep: invalid partition specified: x; Batch job submission failed$"
    ):
        sweep([*SLURM, "seed=0,1", "hydra.launcher.partition=x"])
    assert not list(here.iterdir())


def test_without_sbatch_the_way_out_is_named(here: Path):
    with pytest.raises(UserError, match=r"needs sbatch, which is not on PATH: .* leave out hydra/launcher to train here"):
        sweep([*SLURM, "seed=0,1"])


def test_the_job_finds_the_project_wherever_it_is_submitted_from(here: Path):
    sbatch_that(here, f'echo "$LIMOE_HOME" > {here.parent}/home\necho 7')
    assert sweep([*SLURM, "seed=0,1"]) == 0
    assert (Path((here.parent / "home").read_text().strip()) / "trainer" / "train.py").is_file()


def test_the_list_of_runs_is_there_before_the_job_is_submitted(here: Path):
    sbatch_that(here, f'for last; do :; done\nread -r first < "${{last#@}}"\necho "$first" > {here.parent}/first\necho 7')
    assert sweep([*SLURM, "seed=0,1", "run.name=x"]) == 0
    assert "seed=0" in json.loads((here.parent / "first").read_text())


def test_the_jobs_get_what_says_where_the_configuration_is(here: Path, capsys: pytest.CaptureFixture[str]):
    sbatch_that(here, "echo 7")
    (here / "cfg").mkdir()
    (here / "cfg" / "own.yaml").write_text("defaults: [config, _self_]\nseed: 7\n")
    own = ["--config-dir", str(here / "cfg"), "-cn", "own", "+hydra.job.env_set.A=b"]
    assert sweep([*SLURM, *own, "optim.lr=1e-3,3e-4", "hydra.sweep.dir=swept"]) == 0
    lines = [json.loads(line) for line in (here / "swept" / "overrides.jsonl").read_text().splitlines()]
    given = [part for part in lines[1] if part.startswith(("--", "hydra", "+hydra", "own", "/"))]
    assert given[:4] == ["--config-name", "own", "--config-dir", str(here / "cfg")]
    assert given[4:] == ["+hydra.job.env_set.A=b", "hydra.mode=RUN", "hydra.job.num=1", "hydra.job.id=1"]
    assert lines[1][-2:] == ["run.name=limoe-lr-0.0003", "run.dir=swept/limoe-lr-0.0003"]


def test_runs_that_are_waited_for_are_told_apart_by_what_they_left(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The queue is empty at once, and only the first run has recorded its last step."""
    ended = here / "swept" / "limoe-seed-0"
    line = '{"step": 3, "train/loss": 2.5}'
    sbatch_that(here, f"/bin/mkdir -p {ended}\necho '{line}' > {ended}/metrics.jsonl\necho 7")
    queue = here.parent / "bin" / "squeue"
    queue.write_text("#!/bin/sh\n")
    queue.chmod(queue.stat().st_mode | stat.S_IXUSR)
    assert sweep([*SLURM, "seed=0,1", "hydra.sweep.dir=swept", "hydra.launcher.wait=true", "train.steps=3"]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "error: run 2 (seed=1) has not finished: see its log",
        "error: 1 of 2 runs failed, see above",
    ]
