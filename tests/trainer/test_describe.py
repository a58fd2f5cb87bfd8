"""What `python -m trainer.describe` is asked for."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from trainer.config.compose import compose_config
from trainer.describe import read_arguments
from trainer.errors import UserError


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=dense_tiny", "train.steps=7"],
        ["--model", "dense_tiny", "--train.steps=7"],
        ["--model=dense_tiny", "train.steps=7"],
    ],
)
def test_keys_and_groups_in_any_form(arguments: list[str]):
    config = read_arguments(arguments)
    assert (config.model.name, config.train.steps) == ("dense_tiny", 7)


def test_a_run_is_described_as_it_was_trained(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(compose_config(["model=dense_tiny"]))))
    config = read_arguments(["--run", str(tmp_path), "parallel.zero_stage=3"])
    assert (config.model.name, config.parallel.zero_stage) == ("dense_tiny", 3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["modle=limoe_h14"], "trainer.describe has no 'modle' (did you mean 'model'?)"),
        (["train.stpes=7"], "the configuration has no key 'train.stpes' (did you mean 'train.steps'?)"),
        (["limoe_h14"], "trainer.describe has no 'limoe_h14'"),
        (["--model"], "model has no value"),
        (["run=/nowhere"], "/nowhere/config.yaml is not the configuration of a run"),
        (["model=limoe_h41"], "'model=limoe_h41' does not exist (did you mean 'limoe_h14'?)"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: list[str], told: str):
    with pytest.raises(UserError) as caught:
        read_arguments(arguments)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
