"""One batch in pieces, against micro-batches that are each a batch, and against the batch at once: time and memory."""

import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from model.limoe import LIMoE
from trainer.bench.runs import RandomPairs, config_of, measure_each
from trainer.checkpoint.progress import TrainingProgress
from trainer.distributed.processes import Processes
from trainer.engine.build import build_engine, start_deepspeed
from trainer.estimate.memory import readable_bytes
from trainer.training.step import Trainer

MODELS = ["limoe_tiny"]
PAIRS = 16  # of a micro-batch, per process
CUTS = (4, 16)
WARM_UP, STEPS, REPEATS = 2, 3, 5
COLUMNS = (
    *(
        "model",
        "pairs per process and step",
        "step, in pieces",
        "step, each alone",
        "in pieces / each alone",
        "smallest … largest",
    ),
    *("memory, in pieces", "each alone", "at once"),
)
HEADER = f"""# Accumulating

A step's pairs pass the model in micro-batches of {PAIRS} pairs per process. *In pieces* they are one contrastive batch
(`train.negatives=batch`); *each alone* they are a batch each (`train.negatives=micro`), which saves the second forward pass;
*at once* is the same batch with `train.accumulate=1`. {REPEATS} times {STEPS} steps in pieces and alone, in turn, in one run: the
median step of each such block, and of the blocks; the median, smallest and largest ratio of a pair of blocks. *Memory* is the
most that a step takes above what stays between two steps (weights, optimizer): of a GPU, or else what the system has given the
process. Random pairs, bf16, ZeRO stage 2.

| {" | ".join(COLUMNS)} |
|{"---|" * len(COLUMNS)}
"""


@dataclass(frozen=True)
class Row:
    """Seconds of the median step of each block, and bytes of a step: in pieces, each alone, at once."""

    model: str
    pairs: int
    pieces: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def bench(processes: Processes, models: list[str]) -> str:
    """The table in Markdown. A collective."""
    rows = [row for of_model in measure_each(models or MODELS, _measure, processes) for row in of_model]
    return HEADER + "".join(map(_line, rows))


def _measure(name: str, _: Path, processes: Processes) -> list[Row]:
    return [_measure_cut(name, cut, processes) for cut in CUTS]


def _measure_cut(name: str, cut: int, processes: Processes) -> Row:
    row = Row(name, cut * PAIRS)
    step = partial(_steps, name, row.pairs, processes)
    pieces, alone, at_once = step(cut, "batch"), step(cut, "micro"), step(1, "batch")
    for take in (pieces, alone, at_once):
        take(WARM_UP)
        row.memory.append(_peak(partial(take, 1), processes.device))
    for number in range(REPEATS):
        blocks = [(pieces, row.pieces), (alone, row.alone)]
        for take, seconds in blocks if number % 2 else reversed(blocks):
            processes.barrier()
            seconds.append(median(take(STEPS)))
    return row


def _steps(name: str, pairs: int, processes: Processes, cut: int, negatives: str) -> Callable[[int], list[float]]:
    """What takes a number of steps, and tells the seconds of each."""
    config = config_of(name, pairs, processes, f"train.accumulate={cut}", f"train.negatives={negatives}")
    peers = start_deepspeed(processes, config.parallel.expert_parallel)
    engine: Any = build_engine(config, LIMoE(config.model, config.router, peers).initialise(0), processes, peers)
    loader = RandomPairs(config, pairs // cut).as_loader()
    trainer = Trainer(config, engine, loader, TrainingProgress(), processes, peers)
    return lambda count: [trainer.conclude(trainer.step()).seconds for _ in range(count)]


def _peak(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes that this process has more while it works than before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed would be taken again without being counted
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark is the present one (Linux)
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(what: str) -> int:
    """A line of /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return 1024 * int(line.split()[1])


def _line(row: Row) -> str:
    ratios = [pieces / alone for pieces, alone in zip(row.pieces, row.alone, strict=True)]
    cells = [
        row.model,
        f"{row.pairs}",
        f"{1000 * median(row.pieces):.0f} ms",
        f"{1000 * median(row.alone):.0f} ms",
        f"{median(ratios):.2f}",
        f"{min(ratios):.2f} … {max(ratios):.2f}",
        *map(readable_bytes, row.memory),
    ]
    return f"| {' | '.join(cells)} |\n"
