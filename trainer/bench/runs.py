"""What the benchmarks have in common: configuration and data of what they measure, and a folder for what it writes."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from trainer.config.compose import compose_config
from trainer.config.schema import Config
from trainer.data.batch import Batch
from trainer.data.loader import TrainingLoader
from trainer.data.order.mixture import Mixture
from trainer.data.shards.captions import CaptionRule
from trainer.distributed.agree import first_reads
from trainer.distributed.processes import Processes

Row = TypeVar("Row")


@dataclass(frozen=True)
class Report:
    """What a benchmark found: a table in Markdown, and its rows as values, for JSON."""

    markdown: str
    rows: list[dict[str, Any]]


def config_of(name: str, pairs: int, processes: Processes, *more: str) -> Config:
    """A model that is trained on `pairs` per process and step, ZeRO stage 2, its experts spread over all; more: overrides."""
    ep = processes.world if name.startswith("limoe") else 1
    overrides = [f"model={name}", f"train.batch_size={pairs * processes.world}", "parallel.zero_stage=2", *more]
    return compose_config([*overrides, f"parallel.expert_parallel={ep}", f"eval.batch_size={processes.world}"])


class RandomPairs:
    """A TrainingLoader that gives one micro-batch of random pairs again and again."""

    read = shards_read = truncated = left_out = 0
    shards = streams = 1
    mixture = Mixture.of_one([], CaptionRule())

    def __init__(self, config: Config, pairs: int) -> None:
        self.bad: dict[str, int] = {}
        self.bad_shards: dict[str, int] = {}
        model = config.model
        images = torch.randint(0, 256, (pairs, 3, model.image_size, model.image_size), dtype=torch.uint8)
        self._batch = Batch(images, torch.randint(1, model.vocabulary, (pairs, model.text_length)), [""] * pairs)

    def __next__(self) -> Batch:
        return self._batch

    def as_loader(self) -> TrainingLoader:
        """Itself, for who asks for the whole class."""
        return cast(TrainingLoader, self)


def measure_each(models: Sequence[str], measure: Callable[[str, Path, Processes], Row], processes: Processes) -> list[Row]:
    """Measure each model with a path of its own that is free and removed at the end. A collective."""
    folder = Path(first_reads(lambda: tempfile.mkdtemp(prefix="limoe-bench-"), processes))
    try:
        return [measure(name, folder / name, processes) for name in models]
    finally:
        if processes.is_first:
            shutil.rmtree(folder, ignore_errors=True)
