"""What `hydra/launcher=slurm hydra.launcher.nodes=2 …` requests from SLURM for each run of a sweep."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.config.compose import explain
from trainer.errors import UserError, did_you_mean

GROUP = "hydra/launcher"
PREFIX = "hydra.launcher."
SBATCH_OPTIONS = {
    "nodes": "--nodes",
    "gpus_per_node": "--gpus-per-node",
    "cpus_per_task": "--cpus-per-task",
    "mem": "--mem",
    "time": "--time",
    "partition": "--partition",
    "account": "--account",
    "qos": "--qos",
}
OURS = ("--array", "--output", "--ntasks", "--ntasks-per-node", "--parsable", *SBATCH_OPTIONS.values())
"""What `additional` may not contain: it would contradict what was checked or printed."""


@dataclass
class SlurmOptions:
    """The keys of conf/hydra/launcher/slurm.yaml, where each is explained."""

    nodes: int = 1
    gpus_per_node: str | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    array_parallelism: int | None = None
    additional: list[str] = field(default_factory=list)
    wait: bool | None = None
    result: Any = None

    @property
    def tasks(self) -> int:
        """Processes on each node: one per GPU, unless given."""
        if self.tasks_per_node is not None:
            return self.tasks_per_node
        gpus = self.gpus_per_node or os.environ.get("SBATCH_GPUS_PER_NODE") or "1"
        count = gpus.rpartition(":")[2]  # h100:8
        if not (count.isdigit() and int(count) > 0):
            raise UserError(f"{PREFIX}gpus_per_node={gpus} must be a number of GPUs, or a type and a number, as in h100:8")
        return int(count)

    @property
    def world(self) -> int:
        """Processes per run."""
        return self.nodes * self.tasks

    def arguments(self) -> list[str]:
        """The same for sbatch; null values are left to sbatch's own variables and defaults."""
        given = {name: getattr(self, name) for name in SBATCH_OPTIONS}
        options = [f"{SBATCH_OPTIONS[name]}={value}" for name, value in given.items() if value is not None]
        return [*options, f"--ntasks-per-node={self.tasks}", *self.additional]


def read_options(values: Mapping[str, Any]) -> SlurmOptions:
    """The launcher's configuration, typed. Raises UserError for an unknown key and for an invalid value."""
    known = [entry.name for entry in fields(SlurmOptions)]
    for name in values:
        if name not in known:
            raise UserError(f"{GROUP}=slurm has no '{PREFIX}{name}'{did_you_mean(name, known)}; it has {', '.join(known)}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(SlurmOptions), dict(values))
        options = OmegaConf.to_object(merged)
    except OmegaConfBaseException as problem:
        raise UserError(f"{PREFIX}{explain(problem)}") from problem
    assert isinstance(options, SlurmOptions)  # what a structured SlurmOptions becomes
    for name in ("nodes", "tasks_per_node", "cpus_per_task", "array_parallelism"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise UserError(f"{PREFIX}{name}={number} must be at least 1")
    for option in options.additional:
        if option.partition("=")[0] in OURS:
            raise UserError(f"{PREFIX}additional: the sweep sets {option} itself; use its keys: {', '.join(known)}")
    return options
