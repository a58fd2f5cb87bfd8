"""hydra/launcher=slurm and its keys: what sbatch is told, and which mistakes are named."""

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.trainer.launch.conftest import no_run
from trainer.config.compose import CONF, parse_overrides
from trainer.errors import UserError
from trainer.launch.hydra_app import run_app
from trainer.launch.slurm_options import PREFIX, SlurmOptions, read_options


def options(*overrides: str) -> SlurmOptions:
    values: dict[str, Any] = {each.key_or_group.removeprefix(PREFIX): each.value() for each in parse_overrides(list(overrides))}
    return read_options(values)


def test_every_key_is_in_the_file_that_explains_it():
    explained = OmegaConf.load(CONF / "hydra" / "launcher" / "slurm.yaml")
    assert explained.pop("_target_") == "hydra_plugins.limoe.SlurmLauncher"
    assert OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SlurmOptions), explained)) == SlurmOptions()
    assert set(explained) == set(SlurmOptions.__dataclass_fields__)


def test_sbatch_is_told_what_was_given_and_nothing_else():
    assert options().arguments() == ["--nodes=1", "--ntasks-per-node=1"]
    given = options(
        "hydra.launcher.nodes=2",
        "hydra.launcher.gpus_per_node=8",
        "hydra.launcher.cpus_per_task=12",
        "hydra.launcher.mem=64G",
        "hydra.launcher.time=2-12:00:00",
        "hydra.launcher.partition=main",
        "hydra.launcher.account=lab",
        "hydra.launcher.qos=high",
        'hydra.launcher.additional=["--constraint=a&b",--exclusive]',
    )
    assert given.arguments() == [
        "--nodes=2",
        "--gpus-per-node=8",
        "--cpus-per-task=12",
        "--mem=64G",
        "--time=2-12:00:00",
        "--partition=main",
        "--account=lab",
        "--qos=high",
        "--ntasks-per-node=8",
        "--constraint=a&b",
        "--exclusive",
    ]


def test_there_is_a_process_a_gpu_unless_it_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SBATCH_GPUS_PER_NODE", raising=False)
    assert options("hydra.launcher.nodes=3").world == 3
    assert options("hydra.launcher.nodes=3", "hydra.launcher.gpus_per_node=h100:4").world == 12
    assert options("hydra.launcher.tasks_per_node=2", "hydra.launcher.gpus_per_node=4").world == 2
    monkeypatch.setenv("SBATCH_GPUS_PER_NODE", "8")
    assert options().world == 8


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("hydra.launcher.partitoin=x", "no key 'hydra.launcher.partitoin' (did you mean 'hydra.launcher.partition'?)"),
        ("hydra.launcher.nodes=1,2", "give hydra.launcher.nodes a single value"),
        ("hydra.launcher.nodes=0", "hydra.launcher.nodes=0 must be at least 1"),
        ("hydra.launcher.nodes=two", "hydra.launcher.nodes: Value 'two'"),
        ("hydra.launcher.array_parallelism=0", "hydra.launcher.array_parallelism=0 must be at least 1"),
        ('hydra.launcher.additional=["--nodes=3"]', "the sweep sets --nodes=3 itself"),
        ("hydra.launcher.additional=--exclusive", "hydra.launcher.additional"),
        ("hydra/launcher=slurm,local", "give hydra/launcher a single value"),
    ],
)
def test_a_mistake_is_named(here: Path, override: str, told: str):
    with pytest.raises(UserError) as caught:
        run_app(["-m", "hydra/launcher=slurm", "seed=0,1", override], no_run)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(here.iterdir())


def test_a_number_of_gpus_that_is_none_is_named(here: Path):
    with pytest.raises(UserError, match=r"hydra.launcher.gpus_per_node=all must be a number"):
        run_app(["-m", "hydra/launcher=slurm", "seed=0,1", "hydra.launcher.gpus_per_node=all"], no_run)


@pytest.mark.parametrize("target", ["hydra_plugins.limoe.SlurmLauncher", "hydra_plugins.limoe.LocalLauncher"])
def test_a_launcher_of_the_user_s_own_may_hold_other_values(here: Path, target: str):
    group = here / "cfg" / "hydra" / "launcher"
    group.mkdir(parents=True)
    (group / "mine.yaml").write_text(f"_target_: {target}\nnodse: 3\n")
    with pytest.raises(UserError, match=re.escape("hydra.launcher.nodse")):
        run_app(["-m", "--config-dir", "cfg", "hydra/launcher=mine", "seed=0,1"], no_run)
