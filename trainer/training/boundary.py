"""The end of a step, where the ranks exchange their states: one reduction, however much there is to report."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.distributed.processes import Processes
from trainer.distributed.signals import SIGNALS


@dataclass(frozen=True)
class Standing:
    """The state of one rank at the end of a step."""

    contrastive: Tensor
    """Its contrastive loss, whose mean over ranks is that of the global batch; a scalar on the rank's device."""
    auxiliary: Tensor | None = None
    """The scaled auxiliary loss, which is equal on all ranks; a scalar there too. None: 0."""
    read: int = 0
    """Samples read since the run began."""
    bad: int = 0
    """Those of them that could not be used."""
    shards_read: int = 0
    """Shards opened since the run began."""
    bad_shards: int = 0
    """Those of them that ended early."""
    truncated: int = 0
    """Captions that are too long for the model."""
    left_out: int = 0
    """Samples that are smaller than their source asks for."""
    stop_signal: int = 0
    """The signal that asked this rank to stop; 0 for none."""
    written: bool = False
    """Whether it is done with the checkpoint that was being written."""
    minutes_over: bool = False
    """Whether `checkpoint.every_minutes` have passed. Clocks differ between ranks: rank 0's counts."""
    own_seconds: Mapping[str, float] = field(default_factory=dict)
    """What it spent its own time on (trainer.training.own_time); the same names on every rank."""
    by_source: Tensor | None = None
    """The sums of its pairs' losses, by source: on its device, as long on every rank. None: no sources."""


@dataclass(frozen=True)
class Boundary:
    """The states of all ranks combined, the same on every rank."""

    contrastive: float
    auxiliary: float
    read: int
    bad: int
    shards_read: int
    bad_shards: int
    truncated: int
    stop_signal: int
    """The greatest of the signals that asked ranks to stop; 0 for none."""
    all_written: bool
    minutes_over: bool
    own_seconds: dict[str, list[float]]
    """By rank."""
    left_out: int = 0
    by_source: list[float] = field(default_factory=list)
    """Sums over the pairs of all ranks."""


def agree(mine: Standing, processes: Processes) -> Boundary:
    """Combine the states of all ranks. A collective: one sum of a small float64 tensor, in which counts are exact."""
    rank, world = processes.rank, processes.world
    # Of several signals the greatest counts, which a sum cannot show: each has its own element.
    asked = [mine.stop_signal == number for number in SIGNALS]
    of_data = [mine.read, mine.bad, mine.shards_read, mine.bad_shards, mine.truncated, mine.left_out]
    # Each rank fills its place in a table and leaves the others' at zero, so that the sum has everybody's.
    table = [seconds if owner == rank else 0.0 for seconds in mine.own_seconds.values() for owner in range(world)]
    counts = [*of_data, mine.written, mine.minutes_over and processes.is_first, *asked, *table]
    contrastive = mine.contrastive.double().view(1)
    auxiliary = torch.zeros_like(contrastive) if mine.auxiliary is None else mine.auxiliary.double().view(1)
    by_source = contrastive.new_empty(0) if mine.by_source is None else mine.by_source.double()
    told = torch.cat([contrastive, auxiliary, contrastive.new_tensor(list(map(float, counts))), by_source])
    loss, extra, read, bad, shards_read, bad_shards, truncated, left_out, written, minutes_over, *rest = processes.sum(
        told
    ).tolist()
    by_signal, seconds, sums = rest[: len(asked)], rest[len(asked) :][: len(table)], rest[len(asked) + len(table) :]
    return Boundary(
        contrastive=loss / world,
        auxiliary=extra / world,
        read=int(read),
        bad=int(bad),
        shards_read=int(shards_read),
        bad_shards=int(bad_shards),
        truncated=int(truncated),
        left_out=int(left_out),
        by_source=sums,
        stop_signal=max((int(number) for number, ranks in zip(SIGNALS, by_signal, strict=True) if ranks), default=0),
        all_written=written == world,
        minutes_over=minutes_over > 0,
        own_seconds={name: seconds[n * world : (n + 1) * world] for n, name in enumerate(mine.own_seconds)},
    )
