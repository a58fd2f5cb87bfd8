"""This process among its fellows: start, small collectives, end. It and trainer.slurm alone read a launcher's variables."""

import os
import socket
import warnings
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.errors import UserError
from trainer.slurm import read_task, started_by_srun

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a run as seen from one of them. Every method is a collective: all ranks call it, in the same order."""

    rank: int
    world: int
    local_rank: int
    device: torch.device
    group: dist.ProcessGroup | None = field(default=None, kw_only=True)
    """What the collectives go over; None: the group that all ranks joined at the start."""

    def aside(self, timeout_minutes: float) -> "Processes":
        """The same processes over a group of their own (gloo, on CPUs), for a thread beside the training."""
        alone = replace(self, device=torch.device("cpu"))
        if self.world == 1:
            return alone
        return replace(alone, group=dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes)))

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints, logs and names directories."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks of a tensor of the same shape on each; the argument is left as it is."""
        total = values.detach().clone()
        if self.world > 1:
            dist.all_reduce(total, group=self.group)
        return total

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item() > 0)

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows `[n, ...]` of all ranks in rank order, `[world * n, ...]`; n is equal on all ranks; no gradient."""
        if self.world == 1:
            return rows
        gathered = rows.new_empty(self.world * rows.shape[0], *rows.shape[1:])
        dist.all_gather_single(gathered, rows.contiguous(), group=self.group)
        return gathered

    def gather_objects(self, value: T) -> list[T]:
        """A small picklable value of each rank, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.group)
        return values

    def from_first(self, value: T) -> T:
        """Rank 0's picklable value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device, group=self.group)
        return box[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            dist.barrier(group=self.group)


ALONE = Processes(rank=0, world=1, local_rank=0, device=torch.device("cpu"))
"""A process that has no fellows and joins no group: for what needs neither."""


def rank_from_environment() -> int:
    """This process's rank as its launcher (torchrun or srun) set it; 0 without a launcher."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) if launched() else 0)


def local_rank_from_environment() -> int:
    """This process's rank on its host as its launcher set it; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) if launched() else 0)


def launched() -> bool:
    """Whether torchrun or srun started this process as one of several."""
    return "WORLD_SIZE" in os.environ or started_by_srun()


def world_from_environment() -> int | None:
    """How many processes the launcher, or the SLURM allocation around this process, is for; None outside of both.

    Raises UserError for a WORLD_SIZE that is no number of processes.
    """
    wanted = os.environ.get("WORLD_SIZE")
    if wanted is not None:
        if not (wanted.isdigit() and int(wanted) > 0):
            raise UserError(f"WORLD_SIZE={wanted} in the environment should be the number of processes")
        return int(wanted)
    nodes, each = os.environ.get("SLURM_JOB_NUM_NODES"), os.environ.get("SLURM_NTASKS_PER_NODE")
    if nodes and each:  # before SLURM_NTASKS, which --nodes=MIN-MAX leaves at what MIN nodes have
        return int(nodes) * int(each)
    return int(os.environ.get("SLURM_NTASKS", "0")) or (int(nodes) if nodes else None)


def in_allocation() -> bool:
    """Whether SLURM has given this process its nodes: what is missing here will be missing in the run."""
    return "SLURM_JOB_ID" in os.environ


def array_task_from_environment() -> int | None:
    """Which task of a SLURM job array this process belongs to; None outside of one."""
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return None if task is None else int(task)


def _adopt_launcher_variables() -> None:
    """Set torch.distributed's variables from srun's, or for a single process; torchrun has set them already."""
    if "WORLD_SIZE" in os.environ:
        missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UserError(f"WORLD_SIZE is set, but not {', '.join(missing)}: start with torchrun or srun, or unset WORLD_SIZE")
        return
    if started_by_srun():
        task = read_task()
        os.environ.update(
            RANK=str(task.rank),
            WORLD_SIZE=str(task.world),
            LOCAL_RANK=str(task.local_rank),
            LOCAL_WORLD_SIZE=str(task.local_tasks),
            MASTER_ADDR=task.address,
            MASTER_PORT=str(task.port),
        )
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """The device that `run.device` means for a process. Raises UserError when it is not there."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise UserError(f"run.device={wanted}: choose auto, cpu or cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device=cuda, but torch sees no CUDA device here: use run.device=cpu, or install torch with CUDA")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # With one visible device a task (srun --gpus-per-task=1) the only index is 0, whatever the local rank is.
    return torch.device("cuda", min(local_rank, torch.cuda.device_count() - 1))


def start_processes(device: str = "auto", timeout_minutes: float = 10.0) -> Processes:
    """Join the process group (NCCL on GPUs, gloo on CPUs) that torchrun or srun laid out, or be a single process.

    Raises UserError when the device asked for is not there, the ranks cannot reach each other, or two would share one GPU.
    """
    _adopt_launcher_variables()
    rank, world, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    chosen = choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    else:
        # Measured with torch 2.13: the fused attention's bf16 backward on CPUs takes several times as long as the plain one.
        torch.backends.cuda.enable_flash_sdp(False)
        fellows = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if fellows > 1 and not (started_by_srun() and "OMP_NUM_THREADS" in os.environ):
            # Each takes its share of the cores, whatever OMP_NUM_THREADS torchrun has set. A single process keeps the user's,
            # a task of srun the batch script's.
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // fellows))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dist.init_process_group(
                "nccl" if chosen.type == "cuda" else "gloo",
                timeout=timedelta(minutes=timeout_minutes),
                device_id=chosen if chosen.type == "cuda" else None,
            )
    except (RuntimeError, ValueError) as problem:
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        remedy = "MASTER_ADDR must be the first host, MASTER_PORT a free port there"
        if "Gloo" in reason:  # they have met there, and then told each other addresses that lead nowhere
            remedy = "set GLOO_SOCKET_IFNAME to the network between the hosts (`ip -brief address` lists them)"
        raise UserError(
            f"rank {rank} of {world} could not join the others at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} "
            f"({reason[:200]}): {remedy}"
        ) from problem
    processes = Processes(rank, world, local_rank, chosen)
    _check_devices(processes)
    return processes


def _check_devices(processes: Processes) -> None:
    if processes.device.type != "cuda":
        return
    # The UUID, not the index: tasks that see one device each all call it cuda:0.
    mine = f"{socket.gethostname()} {torch.cuda.get_device_properties(processes.device).uuid}"
    owners = processes.gather_objects(mine)
    for rank, device in enumerate(owners):
        if owners.index(device) != rank:
            raise UserError(
                f"ranks {owners.index(device)} and {rank} share one GPU ({device}): "
                f"start one process a GPU (--nproc-per-node, --ntasks-per-node)"
            )


def stop_processes() -> None:
    """Leave the process group; harmless when there is none."""
    if dist.is_initialized():
        dist.destroy_process_group()
