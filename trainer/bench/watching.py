"""The cost of watching a run: steps with everything that is on by default, against steps that nobody watches, in turn."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch

from model.limoe import LIMoE
from trainer.bench.runs import config_of, measure_each
from trainer.checkpoint.progress import TrainingProgress
from trainer.config.schema import Config
from trainer.data.batch import Batch
from trainer.data.loader import TrainingLoader
from trainer.distributed.processes import Processes
from trainer.engine.build import build_engine, start_deepspeed
from trainer.reporting.bar import Progress
from trainer.training.recorder import Recorder
from trainer.training.step import Trainer

MODELS = ["limoe_tiny"]
PAIRS = 16  # per process and step
WARM_UP, STEPS, REPEATS = 5, 100, 5
SETTLE_SECONDS = 3.0  # W&B looks at the machine and the installed packages when it starts, once a run
COLUMNS = (
    *("model", "step, unwatched", "step, watched", "watched / unwatched", "smallest … largest"),
    *("a record", "its share of the time"),
)
HEADER = f"""# Watching

*Watched*: the defaults of `log`: every tenth step is read from the device and recorded in `metrics.jsonl` and in W&B (offline, so
that nothing depends on a network), a line is written, and W&B measures the system every 15 s. *Unwatched*: the same steps without
any of it. {REPEATS} times {STEPS} steps of each, in turn, in one run: the median step of each such block, and of the blocks; the
median, smallest and largest ratio of a pair of blocks: what W&B's processes take from the step. A *record* is what the training
thread itself does for a recorded step, beside the step: the median, as a share of ten steps. {PAIRS} random pairs per process and
step, bf16, ZeRO stage 2.

| {" | ".join(COLUMNS)} |
|{"---|" * len(COLUMNS)}
"""


@dataclass(frozen=True)
class Row:
    """Seconds of the median step of each block, and of every record."""

    model: str
    unwatched: list[float]
    watched: list[float]
    records: list[float]
    every: int


class _RandomPairs:
    """A TrainingLoader that has one batch."""

    read = shards_read = truncated = 0
    shards = 1

    def __init__(self, config: Config) -> None:
        self.bad: dict[str, int] = {}
        self.bad_shards: dict[str, int] = {}
        model = config.model
        images = torch.randint(0, 256, (PAIRS, 3, model.image_size, model.image_size), dtype=torch.uint8)
        self._batch = Batch(images, torch.randint(1, model.vocabulary, (PAIRS, model.text_length)), [""] * PAIRS)

    def __next__(self) -> Batch:
        return self._batch


def bench(processes: Processes, models: list[str]) -> str:
    """The table in Markdown. A collective."""
    logging.getLogger("trainer").setLevel(logging.INFO)
    return HEADER + "".join(map(_line, measure_each(models or MODELS, _measure, processes)))


def _measure(name: str, folder: Path, processes: Processes) -> Row:
    config = config_of(name, PAIRS, processes, "log.wandb=offline")
    peers = start_deepspeed(processes, config.parallel.expert_parallel)
    engine: Any = build_engine(config, LIMoE(config.model, config.router, peers).initialise(0), processes, peers)
    trainer = Trainer(config, engine, cast(TrainingLoader, _RandomPairs(config)), TrainingProgress(), processes, peers)
    for _ in range(WARM_UP):
        trainer.conclude(trainer.step())
    row = Row(name, [], [], [], config.log.every)
    for number in range(REPEATS):
        blocks: list[Callable[[], None]] = [
            partial(_unwatched, trainer, row),
            partial(_watched, trainer, _in(config, folder / str(number)), folder / str(number), row),
        ]
        for block in blocks if number % 2 else reversed(blocks):
            block()
    return row


def _in(config: Config, folder: Path) -> Config:
    """The same configuration for a run of its own, which has a directory."""
    return replace(config, run=replace(config.run, dir=str(folder)))


def _unwatched(trainer: Trainer, row: Row) -> None:
    trainer.processes.barrier()
    row.unwatched.append(median(trainer.conclude(trainer.step()).seconds for _ in range(STEPS)))


def _watched(trainer: Trainer, config: Config, folder: Path, row: Row) -> None:
    processes = trainer.processes
    if processes.is_first:
        folder.mkdir(parents=True)
    processes.barrier()
    recorder = Recorder(config, folder, None, processes)
    if processes.is_first:
        assert recorder.has_curves  # waits until W&B runs: a start is no part of a step
        time.sleep(SETTLE_SECONDS)
    with Progress.start(STEPS, 0, "none") as bar:
        processes.barrier()
        seconds = [_watched_step(trainer, recorder, bar, step, row) for step in range(1, STEPS + 1)]
        row.watched.append(median(seconds))
    recorder.exit_code = 0
    recorder.close()


def _watched_step(trainer: Trainer, recorder: Recorder, bar: Progress, step: int, row: Row) -> float:
    """Take a step as `Run` does; its seconds. A function, as there, so that nothing of a step outlives it."""
    outcome = trainer.step()
    report = trainer.conclude(outcome)
    before, told = time.perf_counter(), step % row.every == 0
    if told:
        recorder.write(step, trainer.measure(outcome, report), trainer.loads(outcome))
    bar.update(step, loss=report.loss, pairs_per_second=report.pairs_per_second, report=told)
    if told:
        row.records.append(time.perf_counter() - before)
    return report.seconds


def _line(row: Row) -> str:
    ratios = [watched / unwatched for watched, unwatched in zip(row.watched, row.unwatched, strict=True)]
    unwatched, record = median(row.unwatched), median(row.records)
    cells = [
        row.model,
        f"{1000 * unwatched:.1f} ms",
        f"{1000 * median(row.watched):.1f} ms",
        f"{median(ratios):.3f}",
        f"{min(ratios):.3f} … {max(ratios):.3f}",
        f"{1000 * record:.2f} ms",
        f"{record / (row.every * unwatched):.2%}",
    ]
    return f"| {' | '.join(cells)} |\n"
