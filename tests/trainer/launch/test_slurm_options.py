"""hydra/launcher=slurm and its keys: what sbatch is told, and which mistakes are named."""

import pytest
from omegaconf import OmegaConf

from trainer.errors import UserError
from trainer.launch.slurm_options import DEFAULTS, SlurmOptions, read_launcher


def options(*overrides: str) -> SlurmOptions:
    slurm, others = read_launcher(["hydra/launcher=slurm", *overrides])
    assert slurm is not None
    assert others == []
    return slurm


def test_the_launchers_own_overrides_are_taken_out():
    slurm, others = read_launcher(["optim.lr=1,2", "hydra/launcher=slurm", "hydra.launcher.nodes=3", "run.name='a,b'"])
    assert slurm == SlurmOptions(nodes=3)
    assert others == ["optim.lr=1,2", "run.name='a,b'"]
    assert read_launcher(["seed=1", "hydra/launcher=local"]) == (None, ["seed=1"])
    assert read_launcher(["seed=1"]) == (None, ["seed=1"])


def test_every_key_is_in_the_file_that_explains_it():
    assert OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SlurmOptions), OmegaConf.load(DEFAULTS))) == SlurmOptions()
    assert set(OmegaConf.load(DEFAULTS)) == set(SlurmOptions.__dataclass_fields__)


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
        ("hydra.launcher.partitoin=x", "no 'hydra.launcher.partitoin' (did you mean 'partition'?); it has nodes, "),
        ("hydra.launcher.nodes=1,2", "give hydra.launcher.nodes one value"),
        ("hydra.launcher.nodes=0", "hydra.launcher.nodes=0 must be at least 1"),
        ("hydra.launcher.nodes=two", "hydra.launcher.nodes: Value 'two'"),
        ("hydra.launcher.array_parallelism=0", "hydra.launcher.array_parallelism=0 must be at least 1"),
        ('hydra.launcher.additional=["--nodes=3"]', "--nodes=3 is decided by the sweep itself"),
        ("hydra.launcher.additional=--exclusive", "hydra.launcher.additional"),
        ("hydra/launcher=slurm,local", "give hydra/launcher one value"),
    ],
)
def test_a_mistake_is_named(override: str, told: str):
    with pytest.raises(UserError) as caught:
        read_launcher(["hydra/launcher=slurm", override])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_number_of_gpus_that_is_none_is_named():
    with pytest.raises(UserError, match=r"hydra.launcher.gpus_per_node=all should be a number"):
        _ = options("hydra.launcher.gpus_per_node=all").world
