"""What `python -m trainer.evaluate` is asked for, and what is wrong with it."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from trainer.checkpoint.files import CONFIG, MARKER, checkpoint_path
from trainer.checkpoint.identity import warn_of_other_pictures
from trainer.config.checks import check_evaluation, check_layout
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.evaluate import COMMAND, read_arguments, read_open_clip
from trainer.evaluation.open_clip_model import load_open_clip


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for step in (5, 10):
        checkpoint = checkpoint_path(tmp_path, step)
        checkpoint.mkdir(parents=True)
        (checkpoint / MARKER).touch()
        (checkpoint / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(Config())))
    return tmp_path


def test_the_newest_checkpoint_and_the_runs_own_configuration_with_overrides(run_dir: Path):
    checkpoint, kind, config = read_arguments(
        [f"run={run_dir}", "eval.zeroshot={a: /x}", "eval.retrieval=/v/val-{000..003}.tar", "eval.batch_size=8"]
    )
    assert checkpoint.name == "step-00000010"
    assert kind == "model"
    assert config.eval.zeroshot == {"a": "/x"}
    assert config.eval.retrieval == "/v/val-{000..003}.tar"
    assert config.eval.batch_size == 8


def test_a_checkpoint_can_be_named_itself(run_dir: Path):
    checkpoint, _, _ = read_arguments([f"run={checkpoint_path(run_dir, 5)}"])
    assert checkpoint.name == "step-00000005"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "run=DIR is missing"),
        (["run=a", "run=b"], "run is given twice"),
        (["rnu=a"], "trainer.evaluate has no 'rnu' (did you mean 'run'?)"),
        (["run=RUN", "--eval.batch_size"], "eval.batch_size has no value"),
        (
            ["run=RUN", "model.heads=8"],
            "belongs to another model (model.heads was 4, is 8): use model.heads=4, or evaluate a run",
        ),
        (["run=RUN", "router.top_k=2", "model.expert_layers=[1]"], "model.expert_layers was [], is [1]"),
        (["run=~nobody-here/x"], "run=~nobody-here/x: the home directory of '~nobody-here' is unknown"),
        (["run=/nowhere"], "run=/nowhere: no complete checkpoint there"),
        (["run=RUN", "weights=best"], "weights=best: choose model or ema"),
        (["run=RUN", "eval.zershot=/x"], "(did you mean 'eval.zeroshot'?)"),
        (["run=RUN", "eval.batch_size=many"], "eval.batch_size: Value 'many'"),
        (["run=RUN", "eval.batch_size=[1"], "'eval.batch_size=[1' cannot be parsed"),
        (["run=RUN", "eval.zeroshot"], "'eval.zeroshot': eval.zeroshot has no value"),
        (["run=RUN", "model=dense_tiny"], "single keys can be set to one value each"),
        (["run=RUN", "eval.batch_size=1,2"], "single keys can be set to one value each"),
    ],
)
def test_a_mistake_is_told_in_one_line(run_dir: Path, arguments: list[str], told: str):
    with pytest.raises(UserError) as caught:
        read_arguments([argument.replace("RUN", str(run_dir)) for argument in arguments])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_open_clip() -> None:
    asked, config = read_open_clip(COMMAND.read(["open_clip=ViT-B-32:/x.pt", "eval.suite=/sets", "eval.batch_size=8"]))
    assert (asked, config.eval.suite, config.eval.batch_size) == ("ViT-B-32:/x.pt", "/sets", 8)
    assert (config.train.precision, config.data.kind) == ("fp32", "webdataset")
    _, config = read_open_clip(COMMAND.read(["open_clip=local-dir:/x", "train.precision=bf16"]))
    assert config.train.precision == "bf16"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["open_clip=a:b", "run=c"], "run=c does not go together with open_clip=a:b"),
        (["open_clip=a:b", "weights=ema"], "weights=ema does not go together with open_clip=a:b"),
        (["open_clip=a:b", "model.width=8"], "'model.width=8': a model of open_clip brings its own"),
        (["open_clip=a:b", "data.mean=[0,0,0]"], "'data.mean=[0,0,0]': a model of open_clip brings its own"),
        (["open_clip=a:b", "data=shapes"], "single keys can be set to one value each"),
    ],
)
def test_what_a_model_of_open_clip_has_no_use_for_is_told(arguments: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        read_open_clip(COMMAND.read(arguments))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("ViT-B-32", "open_clip=ViT-B-32: write NAME:WEIGHTS, such as ViT-B-32:PATH, or local-dir:FOLDER"),
        (":x", "write NAME:WEIGHTS"),
        ("ViT-B-32:x.pt", 'open_clip=ViT-B-32:x.pt needs open_clip_torch: pip install "limoe-trainer[open-clip]"'),
    ],
)
def test_a_model_of_open_clip_that_cannot_be_loaded(asked: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        load_open_clip(asked, torch.device("cpu"), torch.float32)
    assert told in str(caught.value)


def test_a_damaged_configuration_is_named(run_dir: Path):
    path = checkpoint_path(run_dir, 10) / CONFIG
    path.write_text("a: [")
    with pytest.raises(UserError, match="not the configuration of a run"):
        read_arguments([f"run={run_dir}"])


def test_a_run_is_evaluated_on_processes_that_its_training_batch_does_not_fit(run_dir: Path):
    *_, config = read_arguments([f"run={run_dir}", "eval.batch_size=6"])
    with pytest.raises(UserError, match="not divisible by 3 processes"):
        check_layout(config, 3)
    check_evaluation(config, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run=RUN", "weights=model", "eval.batch_size=8"],
        ["--run=RUN", "--weights=model", "--eval.batch_size=8"],
        ["--run", "RUN", "--weights", "model", "--eval.batch_size", "8"],
        ["RUN", "eval.batch_size=8"],
    ],
)
def test_the_ways_to_write_a_key_are_the_same(run_dir: Path, arguments: list[str]):
    checkpoint, kind, config = read_arguments([argument.replace("RUN", str(run_dir)) for argument in arguments])
    assert (checkpoint, kind, config.eval.batch_size) == (checkpoint_path(run_dir, 10), "model", 8)


def test_paths_are_read_by_the_one_rule(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(run_dir.parent))
    monkeypatch.setenv("STORE", "/store")
    for run in (f"~/{run_dir.name}", f"~/{run_dir.name}/", f"file://{run_dir}", "$HOME/" + run_dir.name):
        checkpoint, _, config = read_arguments(
            [f"run={run}", "eval.zeroshot={a:~/x,b:$STORE/y}", "eval.retrieval=~/v-{0..3}.tar"]
        )
        assert checkpoint == checkpoint_path(run_dir, 10)
        assert config.eval.zeroshot == {"a": f"{run_dir.parent}/x", "b": "/store/y"}
        assert config.eval.retrieval == f"{run_dir.parent}/v-{{0..3}}.tar"


def test_other_pictures_than_in_training_are_warned_of(run_dir: Path, caplog: pytest.LogCaptureFixture):
    same = ["eval.batch_size=8", "router.noise=0", "router.top_k=2"]  # a dense model has no experts to choose from
    for overrides in (same, ["data.mean=[0.4,0.4,0.4]"]):
        assert not caplog.text
        checkpoint, _, config = read_arguments([f"run={run_dir}", *overrides])
        warn_of_other_pictures(checkpoint, config)
    assert "data.mean=[0.4, 0.4, 0.4], but step-00000010 was trained with [0.5, 0.5, 0.5]" in caplog.text


def test_a_run_from_before_a_key_was_there_is_evaluated(run_dir: Path):
    path = checkpoint_path(run_dir, 10) / CONFIG
    old = OmegaConf.load(path)
    del old.model.towers, old.router.priority, old.data.mean
    path.write_text(OmegaConf.to_yaml(old))
    assert read_arguments([f"run={run_dir}"])[2].model.towers == 1
