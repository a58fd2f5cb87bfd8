"""Each run of a sweep gets a directory that tells what it is, and that no other has."""

from pathlib import Path

import pytest

from trainer.config.compose import compose_config
from trainer.errors import UserError
from trainer.launch.names import differences, name_in_wandb, name_runs
from trainer.launch.sweep import list_runs


def directories(*overrides: str, home: Path | None = None) -> list[str]:
    """Where the runs that a command line means would lie."""
    return [compose_config(run).run.dir for run in name_runs(list_runs(list(overrides)), home)]


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
def test_what_differs_is_added_where_the_user_has_not_told_the_runs_apart(overrides: list[str], expected: list[str]):
    assert directories(*overrides) == expected


def test_keys_that_end_in_the_same_are_told_with_their_whole_names():
    assert directories("train.batch_size=8,16", "eval.batch_size=32,64")[0] == "runs/limoe-train.batch_size-8-eval.batch_size-32"


@pytest.mark.parametrize("values", ["/a/b,/a-b", f"/{'a' * 90},/b"])
def test_runs_whose_names_would_be_alike_or_too_long_are_numbered(values: str):
    assert directories(f"data.train={values}") == ["runs/limoe-0", "runs/limoe-1"]


def test_a_name_may_hold_what_hydras_grammar_cannot_read():
    assert directories("seed=0,1", "run.name='a b,{c}'") == ["runs/a b,{c}-seed-0", "runs/a b,{c}-seed-1"]


def test_unnamed_runs_lie_in_the_folder_that_is_given(tmp_path: Path):
    assert directories("seed=0,1", home=tmp_path) == [f"{tmp_path}/limoe-seed-0", f"{tmp_path}/limoe-seed-1"]
    assert directories("seed=3", home=tmp_path) == [f"{tmp_path}/limoe"]
    assert directories("seed=0,1", "run.name=mine", home=tmp_path) == ["runs/mine-seed-0", "runs/mine-seed-1"]


def test_the_same_run_twice_is_refused():
    with pytest.raises(UserError, match=r"the same run twice: optim.lr=0.001$"):
        name_runs(list_runs(["optim.lr=1e-3,0.001"]))


def test_only_what_varies_tells_runs_apart():
    assert differences([["a=1", "b=2", "c=1"], ["a=1", "b=1", "c=1"]]) == [["b=2"], ["b=1"]]


def test_a_name_that_is_typed_is_that_of_the_wandb_run_too():
    for overrides, name in ((["run.name=mine"], "mine"), ([], None), (["run.name=mine", "log.name=other"], "other")):
        config = compose_config(overrides)
        name_in_wandb(config, overrides)
        assert config.log.name == name
