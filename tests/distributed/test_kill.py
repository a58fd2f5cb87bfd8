"""kill -9 at random moments, many times in one run, also in the middle of a checkpoint: the curve is the undisturbed one."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.distributed.checkpoints import tensors_in
from tests.distributed.spawn import RanksFailed, run_distributed
from tests.distributed.test_runs import COMMON, TWO, in_forks, losses_in, run_program
from trainer.checkpoint.files import checkpoint_path, complete_checkpoints
from trainer.distributed.processes import Processes

pytestmark = pytest.mark.slow

STEPS = 240
OFTEN = ["checkpoint.every_steps=3", "checkpoint.keep=2", f"train.steps={STEPS}", *TWO]
KILLS = ["any time", "one rank", "all ranks", "while writing"] * 6


def lines_of(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def is_writing(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob(".step-*.partial/state"))


def die(kind: str, seed: int, run_dir: Path, lines: int) -> None:
    """Kill this process, when the moment that was drawn has come."""
    draw = random.Random(seed)
    if kind == "any time":
        time.sleep(draw.uniform(0, 4))
    else:
        while lines_of(run_dir / "metrics.jsonl") < lines + draw.randint(1, 12):
            time.sleep(0.001)
        if kind == "while writing":
            while not is_writing(run_dir):
                time.sleep(0.0005)
        time.sleep(draw.uniform(0, 0.02))
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(processes: Processes, overrides: list[str], run_dir: Path, kind: str, seed: int) -> int:
    """The program, with a death on the way."""
    victims = range(processes.world) if kind == "all ranks" else [seed % processes.world]
    if processes.rank in victims:
        lines = lines_of(run_dir / "metrics.jsonl")
        threading.Thread(target=die, args=(kind, seed, run_dir, lines), daemon=True).start()
    return run_program(processes, overrides)


@pytest.mark.timeout(600)
def test_a_run_that_is_killed_again_and_again_ends_like_the_undisturbed_one(tmp_path, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    whole = in_forks(2, tmp_path / "whole", cache, *OFTEN)
    run_dir = tmp_path / "killed"
    overrides = [*COMMON, f"data.cache={cache}", f"run.dir={run_dir}", *OFTEN]
    cut_off, reached = 0, []
    for number, kind in enumerate(KILLS):
        with pytest.raises(RanksFailed, match="died without a message"):
            run_distributed(run_and_die, 2, overrides, run_dir, kind, number)
        cut_off += is_writing(run_dir)
        reached.append(max((int(path.name[5:]) for path in complete_checkpoints(run_dir)), default=0))
    assert reached == sorted(reached), "nothing that was complete is ever lost"
    assert reached[-1] > 3, "there was something to resume from"
    assert cut_off >= 3, "some must have been cut off in the middle of a checkpoint"
    assert losses_in(run_dir) == pytest.approx(whole[: len(losses_in(run_dir))], rel=1e-6)
    assert in_forks(2, run_dir, cache, *OFTEN) == pytest.approx(whole, rel=1e-6)
    ends = [tensors_in(checkpoint_path(place, STEPS)) for place in (tmp_path / "whole", run_dir)]
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-7)
