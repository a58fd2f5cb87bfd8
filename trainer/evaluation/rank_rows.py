"""Rows that the ranks share: each embeds a part of them, in calls of equal shape on all ranks, as experts elsewhere need it."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from trainer.distributed.processes import ALONE, Processes


@dataclass(frozen=True)
class RankRows:
    """`total` rows in equal runs, one a rank; the last ranks may have fewer, and fill up with rows that count for nobody."""

    total: int
    processes: Processes = ALONE

    @property
    def share(self) -> int:
        """Rows of a rank, those that fill up included."""
        return -(-self.total // self.processes.world)

    def of(self, rank: int) -> range:
        """The rows of a rank, without those that fill up."""
        return range(min(self.total, rank * self.share), min(self.total, (rank + 1) * self.share))

    @property
    def mine(self) -> range:
        """Those of this rank."""
        return self.of(self.processes.rank)

    def batches(self, batch_size: int) -> Iterator[tuple[list[int], int]]:
        """Rows to embed at once, as many on each rank, and how many of them count; there may be none of these."""
        return filled(list(self.mine), self.share, batch_size)

    def gather(self, mine: Tensor) -> Tensor:
        """From `share` rows of each rank to all rows in their order, on every rank. A collective."""
        return self.processes.gather_rows(mine)[: self.total]


def filled(rows: list[int], count: int, batch_size: int) -> Iterator[tuple[list[int], int]]:
    """The rows in batches, filled up to `count` by the first of all rows, and how many of each batch are not filling."""
    padded = rows + [0] * (count - len(rows))
    for start in range(0, count, batch_size):
        batch = padded[start : start + batch_size]
        yield batch, max(0, min(len(batch), len(rows) - start))
