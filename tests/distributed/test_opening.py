"""Runs whose opening fails, by the real program on one rank and on two: no thread, process, file or log handler is left."""

import logging
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from tests.distributed.spawn import run_distributed
from tests.distributed.test_runs import COMMON
from trainer.config.compose import compose_config
from trainer.distributed.processes import Processes
from trainer.errors import UserError
from trainer.reporting.log_lines import log_to_terminal
from trainer.training import opening
from trainer.training.run import train

pytestmark = pytest.mark.slow

STAGES = ("initial_weights", "find_pairs", "_start_engine", "Checkpointer", "write_config", "Recorder", "Position")


def fail_at(processes: Processes, overrides: list[str], stage: str) -> dict[str, object]:
    """Open a run whose stage raises on every rank; what is left of it, and the error."""
    problem = UserError(f"{stage} fails")

    def fail(*args: object, **kwargs: object) -> None:
        raise problem

    setattr(opening, stage, fail)
    log_to_terminal(processes.rank)
    handlers = list(logging.getLogger().handlers)
    try:
        train(compose_config([*overrides, "parallel.lost_after_seconds=4"]), processes)
    except UserError as met:
        assert met is problem
    until = time.monotonic() + 20
    while (left := left_over()) and time.monotonic() < until:
        time.sleep(0.1)
    return {"left": left, "handlers": logging.getLogger().handlers == handlers}


def left_over() -> list[str]:
    """Threads, worker processes and open files of the run."""
    threads = [thread.name for thread in threading.enumerate() if thread.name == "watchdog"]
    files = [target for target in map(link, Path("/proc/self/fd").iterdir()) if target.endswith((".jsonl", ".log", ".wandb"))]
    return [*threads, *map(str, multiprocessing.active_children()), *files]


def link(descriptor: Path) -> str:
    """What is open there, if it still is."""
    try:
        return str(descriptor.readlink())
    except OSError:
        return ""


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_left_open(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, stage: str, world: int):
    cache = tmp_path_factory.getbasetemp() / "shapes"
    overrides = [*COMMON, f"data.cache={cache}", f"run.dir={tmp_path / 'run'}", "log.wandb=offline", "data.workers=1"]
    ends = run_distributed(fail_at, world, overrides, stage)
    assert ends == [{"left": [], "handlers": True}] * world
    assert f"error: {stage} fails" in (tmp_path / "run" / "train.log").read_text()


def open_records(processes: Processes, overrides: list[str]) -> str:
    """What each rank hears when rank 0 cannot open the records: nobody is logged in."""
    os.environ["WANDB_CONFIG_DIR"] = os.environ["HOME"] = overrides.pop()
    os.environ.pop("WANDB_API_KEY", None)
    try:
        train(compose_config(overrides), processes)
    except UserError as problem:
        return str(problem)
    return ""


def test_records_that_the_first_rank_cannot_open_are_an_error_on_every_rank(tmp_path: Path):
    overrides = [*COMMON, f"data.cache={tmp_path / 'cache'}", f"run.dir={tmp_path / 'run'}", "log.wandb=online"]
    first, second = run_distributed(open_records, 2, [*overrides, str(tmp_path)])
    assert first == second
    assert "log.wandb=online, but you are not logged in here" in first
