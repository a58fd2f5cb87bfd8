"""A training step of a LIMoE against that of the dense tower that applies as many FLOPs to a pair, plain and compiled."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from model.count import step_flops
from model.limoe import LIMoE
from trainer.bench.runs import RandomPairs, config_of, measure_each
from trainer.checkpoint.progress import TrainingProgress
from trainer.config.schema import Config
from trainer.distributed.device import utilisation
from trainer.distributed.processes import Processes
from trainer.engine.build import build_engine, start_deepspeed
from trainer.training.step import Trainer

WARM_UP, STEPS, REPEATS = 3, 5, 7
WAYS = {"plain": (), "compiled": ("train.compile=true",)}
COLUMNS = (
    *("model", "pairs per process", "way", "step", "over the plain dense step", "smallest … largest"),
    *("GFLOP/s per process", "share of the peak", "waits of the host"),
)
HEADER = f"""# Steps

A whole training step (forward, backward, ZeRO stage 1, AdamW; bf16, random pairs that are in memory already) of a LIMoE, and of
the dense tower with as many FLOPs a pair, which is the baseline. *Compiled*: `train.compile=true`. {REPEATS} times {STEPS} steps
of each, in turn, in one run: the median step of all; the median, smallest and largest ratio to the plain dense steps of the same
turn. FLOPs are those of the model, 6 per applied weight and token, and attention's. *Waits of the host*: how often a step makes
the program wait for the GPU.

| {" | ".join(COLUMNS)} |
|{"---|" * len(COLUMNS)}
"""


@dataclass
class Way:
    """One model, run one way. seconds: of the median step of each turn."""

    model: str
    name: str
    config: Config
    trainer: Trainer
    seconds: list[float] = field(default_factory=list)
    waits: int | None = None

    def take(self, count: int) -> float:
        """The seconds of the median of so many steps."""
        return median(self.trainer.conclude(self.trainer.step()).seconds for _ in range(count))


def bench(processes: Processes, models: list[str]) -> str:
    """The table in Markdown; models are LIMoEs, each measured beside its dense twin. A collective."""
    on_gpu = processes.device.type == "cuda"
    tables = measure_each(models or (["limoe_b16"] if on_gpu else ["limoe_tiny"]), _measure, processes)
    return HEADER + "".join(_line(way, ways[0], processes) for ways in tables for way in ways)


def _measure(name: str, _: Path, processes: Processes) -> list[Way]:
    """All ways of a model and its twin, the baseline first."""
    pairs = 128 if processes.device.type == "cuda" else 32
    twins = [name.replace("limoe", "dense"), name]
    ways = [_way(model, way, pairs, processes) for model in twins for way in WAYS]
    for way in ways:
        way.take(WARM_UP)
        way.waits = _host_waits(way) if processes.device.type == "cuda" else None
    for number in range(REPEATS):
        for way in ways if number % 2 else reversed(ways):
            processes.barrier()
            way.seconds.append(way.take(STEPS))
    return ways


def _way(model: str, name: str, pairs: int, processes: Processes) -> Way:
    config = config_of(model, pairs, processes, "parallel.zero_stage=1", *WAYS[name])
    peers = start_deepspeed(processes, config.parallel.expert_parallel)
    engine: Any = build_engine(config, LIMoE(config.model, config.router, peers).initialise(0), processes, peers)
    loader = RandomPairs(config, pairs).as_loader()
    return Way(model, name, config, Trainer(config, engine, loader, TrainingProgress(), processes, peers))


def _host_waits(way: Way) -> int:
    """How often one step waits for the GPU, by torch's own count."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as met:
            warnings.simplefilter("always")
            way.take(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in met)


def _line(way: Way, baseline: Way, processes: Processes) -> str:
    ratios = [mine / dense for mine, dense in zip(way.seconds, baseline.seconds, strict=True)]
    seconds, config = median(way.seconds), way.config
    flops = step_flops(config.model, config.router, config.train.batch_size)
    share = utilisation(flops, seconds, processes.world, processes.device)
    cells = [
        way.model,
        str(config.train.batch_size // processes.world),
        way.name,
        f"{1000 * seconds:.1f} ms",
        f"{median(ratios):.3f}",
        f"{min(ratios):.3f} … {max(ratios):.3f}",
        f"{flops / seconds / processes.world / 1e9:.1f}",
        "–" if share is None else f"{share:.1%}",
        "–" if way.waits is None else str(way.waits),
    ]
    return f"| {' | '.join(cells)} |\n"
