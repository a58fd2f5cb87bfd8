"""conf/sweep/wandb.yaml: what W&B's agent would start."""

from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils

from trainer.config.compose import CONF, compose_config
from trainer.config.keys import KEYS

SWEEP = yaml.safe_load((CONF / "sweep" / "wandb.yaml").read_text())


def command_line(chosen: dict[str, Any]) -> list[str]:
    """The command that W&B's agent makes of the file and the values that it has chosen for a run."""
    words = utils.create_sweep_command(SWEEP["command"])
    macros = utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})
    macros |= {"interpreter": ["python"], "program": [SWEEP["program"]]}
    return [part for word in words for part in (macros.get(word[2:-1], []) if word.startswith("${") else [word])]


@pytest.mark.parametrize("edge", [0, -1])
def test_its_command_line_composes(edge: int, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "ab12cd34")
    chosen = {
        name: values["values"][edge] if "values" in values else values["max" if edge else "min"]
        for name, values in SWEEP["parameters"].items()
    }
    line = command_line(chosen)
    assert line[:3] == ["python", "-m", "trainer.train"]
    config = compose_config(line[3:])
    assert config.optim.lr == chosen["optim.lr"]
    assert config.router.capacity_factor == chosen["router.capacity_factor"]
    assert config.run.dir == "runs/demo-ab12cd34", "each run has its own directory"


def test_its_metric_and_parameters_exist():
    assert set(SWEEP["parameters"]) - {"router"} <= set(KEYS)
    assert SWEEP["metric"] == {"name": "eval/zeroshot/top1", "goal": "maximize"}
    assert SWEEP["method"] in ("bayes", "random", "grid")
