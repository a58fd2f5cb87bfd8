"""The only seam to the other processes: what a model asks of its peers, and the answer for a single process."""

from typing import Protocol

from torch import Tensor


class Peers(Protocol):
    """What crosses processes inside a forward pass. Shapes: E experts, e = E / EP local experts, C slots per process, D width."""

    expert_parallel: int
    """EP: how many processes share one set of experts."""
    expert_rank: int
    """This process's place among them; it owns the experts `[expert_rank * e, (expert_rank + 1) * e)`."""
    world: int
    """How many processes train together."""
    rank: int
    """This process's place among all of them."""

    def to_experts(self, buffers: Tensor) -> Tensor:
        """Send each expert's slots to its owner: `[E, C, D]` of this process -> `[e, EP * C, D]` of all. Differentiable."""
        ...

    def from_experts(self, buffers: Tensor) -> Tensor:
        """The way back: `[e, EP * C, D]` -> `[E, C, D]`. Differentiable."""
        ...

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows of all processes in rank order: `[n, D]` -> `[world * n, D]`. Its gradient sums over processes."""
        ...

    def pass_on(self, values: Tensor) -> Tensor:
        """Send values to the next process in the ring of all, and receive as many from the one before; no gradient."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on each of them. Its gradient sums over processes."""
        ...

    def max_over_experts(self, value: Tensor) -> Tensor:
        """The largest value among the processes that share one set of experts; no gradient."""
        ...


class SingleProcess:
    """Peers of a single process: nothing to send, nothing to wait for."""

    expert_parallel = 1
    expert_rank = 0
    world = 1
    rank = 0

    def to_experts(self, buffers: Tensor) -> Tensor:
        return buffers

    def from_experts(self, buffers: Tensor) -> Tensor:
        return buffers

    def gather_rows(self, rows: Tensor) -> Tensor:
        return rows

    def pass_on(self, values: Tensor) -> Tensor:
        return values

    def sum(self, values: Tensor) -> Tensor:
        return values

    def max_over_experts(self, value: Tensor) -> Tensor:
        return value
