"""Where a run's measurements go: its files and Weights & Biases."""

import socket
from dataclasses import asdict
from pathlib import Path

import torch

from trainer.checkpoint.files import BEST, complete_checkpoints, step_of
from trainer.config.schema import Config
from trainer.distributed.agree import raise_together
from trainer.distributed.environment import slurm_job_from_environment
from trainer.distributed.processes import Processes
from trainer.distributed.program import EXIT_FAILURE
from trainer.distributed.signals import EXIT_INTERRUPTED, EXIT_STOPPED
from trainer.errors import UserError
from trainer.evaluation.suite import is_constant
from trainer.reporting.journal import Journal
from trainer.reporting.loads import LOADS, Loads, rounded
from trainer.reporting.wandb_run import NodeMetrics, Nodes, WandbRun
from trainer.training.directory import METRICS

WANDB_PLACE = "limoe/wandb"
"""The key in the ranks' store under which rank 0 says where the run is in W&B."""


class Recorder:
    """Writes metrics on rank 0. Other ranks do nothing, but for one on each other node, which watches that node for W&B."""

    def __init__(self, config: Config, run_dir: Path, resume_step: int | None, processes: Processes) -> None:
        """Open both; `resume_step` as in `Journal`. A collective: what rank 0 cannot open is a UserError on every rank."""
        self.exit_code = EXIT_FAILURE
        """The state that W&B shows at the end: failed, unless the run says otherwise before it is closed."""
        self._config, self._run_dir = config, run_dir
        self._journal: Journal | None = None
        self._loads: Journal | None = None
        self._wandb: WandbRun | None = None
        self._node: NodeMetrics | None = None
        hosts = processes.gather_objects(socket.gethostname())
        problem = None
        try:
            if processes.is_first:
                self._journal = Journal(run_dir / METRICS, resume_step)
                if config.model.expert_layers:
                    self._loads = Journal(run_dir / LOADS, resume_step)
                self._wandb = self._start_wandb(hosts, resume_step, processes)
        except UserError as error:
            problem = str(error)
            self.close()
        raise_together(problem, processes)
        first_of_node = hosts.index(hosts[processes.rank]) == processes.rank
        if first_of_node and processes.rank and config.log.system_metrics == "nodes" and config.log.wandb in ("auto", "online"):
            self._node = _watch_node(processes)

    def _start_wandb(self, hosts: list[str], resume_step: int | None, processes: Processes) -> WandbRun:
        nodes = list(dict.fromkeys(hosts))
        layout = {
            "processes": processes.world,
            "nodes": len(nodes),
            "hosts": nodes,
            "device": _device_name(processes.device),
            "expert_copies": processes.world // self._config.parallel.expert_parallel,
        }
        return WandbRun.start(
            self._config.log,
            self._run_dir,
            self._config.run.name,
            asdict(self._config) | {"layout": layout, "slurm": slurm_job_from_environment()},
            _tell_nodes(len(nodes), processes),
            earlier=None if resume_step is None else self._run_dir / METRICS,
        )

    @property
    def has_curves(self) -> bool:
        """Whether W&B files are in the run directory."""
        return self._wandb is not None and self._wandb.mode != "disabled"

    def write(self, step: int, metrics: dict[str, float], loads: Loads | None = None) -> None:
        """Record the metrics of a step. loads: of every expert."""
        if not (self._journal and self._wandb):
            return
        self._journal.write(step, metrics)
        if loads and self._loads:
            self._loads.write(step, rounded(loads))
        # A curve of a constant would only be in the way; metrics.jsonl has them all.
        self._wandb.log(step, {name: value for name, value in metrics.items() if not is_constant(name)})

    def close(self) -> None:
        """Finish what is open; no `write` may follow."""
        try:
            for journal in filter(None, (self._journal, self._loads)):
                journal.close()
        finally:
            if self._wandb:
                self._name_checkpoint(self._wandb)
                self._wandb.finish(self.exit_code, stopped=self.exit_code in (EXIT_STOPPED, EXIT_INTERRUPTED))
            if self._node:
                self._node.finish()

    def _name_checkpoint(self, wandb_run: WandbRun) -> None:
        kind = self._config.log.artifacts
        if kind == "none":
            return
        found = complete_checkpoints(self._run_dir)
        if kind == "best":
            best = (self._run_dir / "checkpoints" / BEST).resolve()
            found = [path for path in found if path.resolve() == best]
        if found:
            wandb_run.checkpoint(found[-1].resolve(), step_of(found[-1]), kind)


def _tell_nodes(count: int, processes: Processes) -> Nodes:
    """How W&B's thread on rank 0 reaches the other nodes."""
    if count == 1 or processes.store is None:
        return Nodes()
    store = processes.store.clone()  # type: ignore[attr-defined]  # torch's stubs lack it; a connection for another thread
    return Nodes(count, lambda where: store.set(WANDB_PLACE, where))


def _watch_node(processes: Processes) -> NodeMetrics | None:
    if processes.store is None:
        return None
    store = processes.store.clone()  # type: ignore[attr-defined]  # as above
    return NodeMetrics(lambda: store.get(WANDB_PLACE).decode() if store.check([WANDB_PLACE]) else None)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
