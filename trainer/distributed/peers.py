"""What the model asks of the other processes, answered by torch.distributed (NCCL or gloo)."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.distributed.processes import Processes


class _AllToAll(torch.autograd.Function):
    """Equal pieces of dimension 0 exchanged; the gradient is exchanged back the same way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        received = torch.empty_like(x)
        dist.all_to_all_single(received, x.contiguous(), group=group)
        return received

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        received = torch.empty_like(grad, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, grad.contiguous(), group=ctx.group)
        return received, None


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks; each row's gradient is the sum over the ranks that used it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes) -> Tensor:
        return processes.gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        mine = grad.new_empty(grad.shape[0] // dist.get_world_size(), *grad.shape[1:])
        dist.reduce_scatter_single(mine, grad.contiguous())
        return mine, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


class DistributedPeers:
    """model.peers.Peers over the process groups of a run. With one process or EP=1, nothing is sent unnecessarily."""

    def __init__(self, processes: Processes, expert_parallel: int, expert_group: dist.ProcessGroup | None) -> None:
        self.processes = processes
        self.expert_parallel = expert_parallel
        self.expert_rank = processes.rank % expert_parallel  # EP groups are consecutive ranks
        self.world = processes.world
        self.rank = processes.rank
        self._expert_group = expert_group

    def to_experts(self, buffers: Tensor) -> Tensor:
        """`[E, C, D]` -> `[e, EP * C, D]`."""
        if self.expert_parallel == 1:
            return buffers
        # Dimension 0 is (owner, its expert); after the exchange it is (sender, my expert).
        received = _AllToAll.apply(buffers, self._expert_group).unflatten(0, (self.expert_parallel, -1))
        return received.transpose(0, 1).flatten(1, 2)

    def from_experts(self, buffers: Tensor) -> Tensor:
        """`[e, EP * C, D]` -> `[E, C, D]`."""
        if self.expert_parallel == 1:
            return buffers
        by_sender = buffers.unflatten(1, (self.expert_parallel, -1)).transpose(0, 1).flatten(0, 1)
        return _AllToAll.apply(by_sender, self._expert_group)

    def gather_rows(self, rows: Tensor) -> Tensor:
        """`[n, D]` -> `[world * n, D]`, with gradient."""
        return rows if self.world == 1 else _GatherRows.apply(rows, self.processes)

    def pass_on(self, values: Tensor) -> Tensor:
        """To the next rank, from the one before; the last rank's are the first one's."""
        return values if self.world == 1 else self.processes.pass_on(values)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, with gradient."""
        return values if self.world == 1 else _Sum.apply(values)

    def max_over_experts(self, value: Tensor) -> Tensor:
        """The largest value in this rank's EP group."""
        if self.expert_parallel > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self._expert_group)
        return value
