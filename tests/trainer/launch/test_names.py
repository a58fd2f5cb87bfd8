"""Each run of a sweep gets a directory that tells what it is, and that no other has."""

from pathlib import Path

import pytest

from tests.trainer.launch.conftest import Plan
from trainer.config.compose import compose_config
from trainer.errors import UserError
from trainer.launch.names import name_in_wandb


def directories(plan: Plan, *arguments: str) -> list[str]:
    """Where the runs that a command line means would lie."""
    return [run.config.run.dir for run in plan(*arguments)]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optim.lr=1e-3,3e-4"], ["runs/limoe-lr-0.001", "runs/limoe-lr-0.0003"]),
        (["optim.lr=1e-3,3e-4", "run.name=abl"], ["runs/abl-lr-0.001", "runs/abl-lr-0.0003"]),
        (["seed=0,1", "experiment=demo"], ["runs/demo-seed-0", "runs/demo-seed-1"]),
        (["seed=0,1", "run.name=s${seed}"], ["runs/s0", "runs/s1"]),
        (["seed=0,1", "run.dir=/x/${seed}"], ["/x/0", "/x/1"]),
        (
            ["seed=0,1", "run.name=a,b"],
            ["runs/a-seed-0-name-a", "runs/b-seed-0-name-b", "runs/a-seed-1-name-a", "runs/b-seed-1-name-b"],
        ),
        (["seed=3"], ["runs/limoe"]),
        (["model.expert_layers=[1],[1,3]"], ["runs/limoe-expert_layers-1", "runs/limoe-expert_layers-1-3"]),
        (["data.train=/a/b.tar,/c.tar"], ["runs/limoe-train-a-b.tar", "runs/limoe-train-c.tar"]),
    ],
)
def test_what_differs_is_added_where_the_user_has_not_told_the_runs_apart(plan: Plan, overrides: list[str], expected: list[str]):
    assert directories(plan, *overrides) == expected


def test_keys_that_end_in_the_same_are_told_with_their_whole_names(plan: Plan):
    assert (
        directories(plan, "train.batch_size=8,16", "eval.batch_size=32,64")[0]
        == "runs/limoe-train.batch_size-8-eval.batch_size-32"
    )


@pytest.mark.parametrize("values", ["/a/b,/a-b", f"/{'a' * 90},/b"])
def test_runs_whose_names_would_be_alike_or_too_long_are_numbered(plan: Plan, values: str):
    assert directories(plan, f"data.train={values}") == ["runs/limoe-0", "runs/limoe-1"]


def test_a_name_may_hold_what_hydras_grammar_cannot_read(plan: Plan):
    assert directories(plan, "seed=0,1", "run.name='a b,{c}'") == ["runs/a b,{c}-seed-0", "runs/a b,{c}-seed-1"]


def test_keys_that_a_command_line_fixes_are_in_no_name(plan: Plan):
    assert directories(plan, "seed=1", "optim.lr=1e-3,3e-4")[0] == "runs/limoe-lr-0.001"


def test_a_folder_of_hydra_s_for_the_sweep_holds_its_runs(plan: Plan, tmp_path: Path):
    into = f"hydra.sweep.dir={tmp_path}"
    assert directories(plan, "seed=0,1", into) == [f"{tmp_path}/limoe-seed-0", f"{tmp_path}/limoe-seed-1"]
    assert directories(plan, "seed=3", into) == [f"{tmp_path}/limoe"]
    assert directories(plan, "seed=0,1", into, "hydra.sweep.subdir=${hydra.job.num}") == [f"{tmp_path}/0", f"{tmp_path}/1"]
    assert directories(plan, "seed=0,1", "run.name=mine", into) == ["runs/mine-seed-0", "runs/mine-seed-1"]


def test_the_number_of_a_run_can_be_in_its_name(plan: Plan):
    assert directories(plan, "seed=5,6", "run.name=n${hydra:job.num}") == ["runs/n0", "runs/n1"]


def test_the_same_run_twice_is_refused(plan: Plan):
    with pytest.raises(UserError, match=r"the same run twice: optim.lr=0.001$"):
        plan("optim.lr=1e-3,0.001")


def test_a_name_that_is_typed_is_that_of_the_wandb_run_too():
    for overrides, name in ((["run.name=mine"], "mine"), ([], None), (["run.name=mine", "log.name=other"], "other")):
        config = compose_config(overrides)
        name_in_wandb(config, overrides)
        assert config.log.name == name


def test_batches_of_one_get_names_too(plan: Plan):
    assert directories(plan, "hydra.sweeper.max_batch_size=1", "seed=0,1") == ["runs/limoe-seed-0"]
    assert directories(plan, "hydra.sweeper.max_batch_size=1", "seed=0,1", "run.dir=/x/${seed}") == ["/x/0"]
