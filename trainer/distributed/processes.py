"""This process among its peers: start, small collectives, end."""

import os
import socket
import warnings
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.distributed.device import choose_device
from trainer.distributed.environment import adopt_launcher_variables, started_by_srun
from trainer.distributed.joining import deadline, meet, raise_open_files
from trainer.distributed.watchdog import Watchdog
from trainer.errors import UserError, reason

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a run as seen from one of them. Every method is a collective: all ranks call it, in the same order."""

    rank: int
    world: int
    local_rank: int
    device: torch.device
    group: dist.ProcessGroup | None = field(default=None, kw_only=True)
    """The group for the collectives; None: the one that all ranks joined at the start."""
    store: dist.Store | None = field(default=None, kw_only=True)
    """The key-value store where the ranks met."""
    watchdog: Watchdog = field(default_factory=Watchdog, kw_only=True, compare=False)
    """Notices when a rank falls silent."""

    def aside(self, timeout_minutes: float) -> "Processes":
        """The same processes with a separate group (gloo, on CPUs), for a background thread."""
        alone = replace(self, device=torch.device("cpu"))
        if self.world == 1:
            return alone
        return replace(alone, group=dist.new_group(backend="gloo", timeout=timedelta(minutes=timeout_minutes)))

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints, logs and names directories."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks of a tensor that has the same shape on each; the argument is not changed."""
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

    def pass_on(self, values: Tensor) -> Tensor:
        """Send values to the next rank, and receive those of the one before, of the same shape; the ranks are a ring."""
        if self.world == 1:
            return values
        received = torch.empty_like(values, memory_format=torch.contiguous_format)
        # As one group, so that with NCCL no rank waits to send until another, which does the same, receives.
        exchange = [
            dist.P2POp(dist.isend, values.contiguous(), (self.rank + 1) % self.world, self.group),
            dist.P2POp(dist.irecv, received, (self.rank - 1) % self.world, self.group),
        ]
        for request in dist.batch_isend_irecv(exchange):
            request.wait()  # NCCL: lets the device's stream wait, not the host
        return received

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
"""A single process that joins no group, for work that needs none."""


JOINING_GRACE_SECONDS = 30.0
"""How much longer than its time-out joining may take before it is ended from outside; torch's own error would say more."""


def start_processes(device: str = "auto", timeout_minutes: float = 10.0, lost_after_seconds: float | None = None) -> Processes:
    """Join the process group (NCCL on GPUs, gloo on CPUs) that torchrun or srun laid out, or be a single process.

    lost_after_seconds: from here on, a rank that is not heard from for this long ends this process; None: no watching.
    Raises UserError when the requested device is missing, the ranks cannot reach each other, or two would share one GPU.
    """
    adopt_launcher_variables()
    rank, world, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    chosen = choose_device(device, local_rank)
    raise_open_files(world)
    _prepare_device(chosen)
    watchdog = Watchdog(rank, world, local_rank)
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    timeout = timedelta(minutes=timeout_minutes)

    def tell() -> str | None:
        return _not_connected(rank, world, place, chosen, timeout_minutes) if local_rank == 0 else None

    try:
        with warnings.catch_warnings(), deadline(timeout.total_seconds() + JOINING_GRACE_SECONDS, tell):
            warnings.simplefilter("ignore")
            store = meet(timeout)
            if lost_after_seconds is not None:
                watchdog.start(store, lost_after_seconds)
            dist.init_process_group(
                "nccl" if chosen.type == "cuda" else "gloo",
                store=store,
                rank=rank,
                world_size=world,
                timeout=timeout,
                device_id=chosen if chosen.type == "cuda" else None,
            )
            processes = Processes(rank, world, local_rank, chosen, store=store, watchdog=watchdog)
            _check_devices(processes)
    except (RuntimeError, ValueError) as problem:
        watchdog.stop()
        said, remedy = _what_kept_it(problem)
        raise UserError(f"rank {rank} of {world} could not join the others at {place} ({said}): {remedy}") from problem
    return processes


def _prepare_device(device: torch.device) -> None:
    """Make a GPU the current one, or give this process its share of the cores."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        return
    # Measured with torch 2.13: the fused attention's bf16 backward on CPUs takes several times as long as the plain one.
    torch.backends.cuda.enable_flash_sdp(False)
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if local_world > 1 and not (started_by_srun() and "OMP_NUM_THREADS" in os.environ):
        # Each uses its share of the cores, whatever OMP_NUM_THREADS torchrun has set. A single process keeps the user's setting,
        # a task of srun the batch script's.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_world))


def _what_kept_it(problem: RuntimeError | ValueError) -> tuple[str, str]:
    """Why a rank could not join, and what to do about it."""
    said, remedy = reason(problem), "MASTER_ADDR must be the first host, MASTER_PORT a free port there"
    if isinstance(problem, dist.DistBackendError):  # NCCL's, whose last line says what went wrong
        last = reason(str(problem).strip().rpartition("\n")[2])
        said += f" … {last}" if last != said else ""
        remedy = "if it is the network, set NCCL_SOCKET_IFNAME (`ip -brief address` lists them); NCCL_DEBUG=INFO says more"
    elif "Gloo" in said:  # they have met there, but then exchanged addresses that cannot be reached
        remedy = "set GLOO_SOCKET_IFNAME to the network between the hosts (`ip -brief address` lists them)"
    return said, remedy


def _not_connected(rank: int, world: int, place: str, device: torch.device, minutes: float) -> str:
    """The message about a join that never ended."""
    backend, variable = ("NCCL", "NCCL_SOCKET_IFNAME") if device.type == "cuda" else ("gloo", "GLOO_SOCKET_IFNAME")
    return (
        f"rank {rank} of {world} on {socket.gethostname()} has met the others at {place}, but {backend} has not connected them "
        f"in {minutes:g} minutes: set {variable} to the network between the hosts (`ip -brief address` lists them)"
        + ("; NCCL_DEBUG=INFO shows what it tries" if backend == "NCCL" else "")
    )


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
                f"start one process per GPU (--nproc-per-node, --ntasks-per-node)"
            )


def stop_processes() -> None:
    """Leave the process group; harmless if there is none."""
    if dist.is_initialized():
        dist.destroy_process_group()
