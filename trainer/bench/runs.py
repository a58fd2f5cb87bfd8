"""What the benchmarks have in common: the configuration of what they measure, and a folder for what it writes."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from trainer.config.compose import compose_config
from trainer.config.schema import Config
from trainer.distributed.agree import first_reads
from trainer.distributed.processes import Processes

Row = TypeVar("Row")


def config_of(name: str, pairs: int, processes: Processes, *more: str) -> Config:
    """A model that is trained on `pairs` per process and step, ZeRO stage 2, its experts spread over all; more: overrides."""
    ep = processes.world if name.startswith("limoe") else 1
    overrides = [f"model={name}", f"train.batch_size={pairs * processes.world}", "parallel.zero_stage=2", *more]
    return compose_config([*overrides, f"parallel.expert_parallel={ep}", f"eval.batch_size={processes.world}"])


def measure_each(models: Sequence[str], measure: Callable[[str, Path, Processes], Row], processes: Processes) -> list[Row]:
    """Measure each model with a path of its own that is free and removed at the end. A collective."""
    folder = Path(first_reads(lambda: tempfile.mkdtemp(prefix="limoe-bench-"), processes))
    try:
        return [measure(name, folder / name, processes) for name in models]
    finally:
        if processes.is_first:
            shutil.rmtree(folder, ignore_errors=True)
