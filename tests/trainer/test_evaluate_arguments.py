"""What `python -m trainer.evaluate` is asked for, and what is wrong with it."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from trainer.checkpoint.files import CONFIG, MARKER, checkpoint_path
from trainer.config.checks import check_evaluation, check_layout
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.evaluate import read_arguments


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
        ([], "say which run to evaluate"),
        (["run=a", "run=b"], "say which run to evaluate"),
        (["run=/nowhere"], "run=/nowhere: no complete checkpoint there"),
        (["run=RUN", "weights=best"], "weights=best: choose model (as trained) or ema"),
        (["run=RUN", "eval.zershot=/x"], "(did you mean 'eval.zeroshot'?)"),
        (["run=RUN", "eval.batch_size=many"], "eval.batch_size: Value 'many'"),
        (["run=RUN", "eval.batch_size=[1"], "'eval.batch_size=[1' cannot be parsed"),
        (["run=RUN", "eval.zeroshot"], "'eval.zeroshot' cannot be parsed"),
        (["run=RUN", "model=dense_tiny"], "evaluation takes single keys"),
        (["run=RUN", "eval.batch_size=1,2"], "evaluation takes single keys"),
    ],
)
def test_a_mistake_is_told_in_one_line(run_dir: Path, arguments: list[str], told: str):
    with pytest.raises(UserError) as caught:
        read_arguments([argument.replace("RUN", str(run_dir)) for argument in arguments])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_configuration_is_named(run_dir: Path):
    path = checkpoint_path(run_dir, 10) / CONFIG
    path.write_text("a: [")
    with pytest.raises(UserError, match="no configuration of a run"):
        read_arguments([f"run={run_dir}"])


def test_a_run_is_evaluated_on_processes_that_its_training_batch_does_not_fit(run_dir: Path):
    *_, config = read_arguments([f"run={run_dir}", "eval.batch_size=6"])
    with pytest.raises(UserError, match="not divisible by 3 processes"):
        check_layout(config, 3)
    check_evaluation(config, 3)
