"""The whole program on a GPU: what a run measures and leaves, how it goes on, and how it ends when something is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.device import BACKEND
from tests.distributed.program import ROOT, TINY
from tests.gpu.conftest import REHEARSED

SMALL = [*TINY, "train.steps=8", "train.precision=fp32", "checkpoint.every_steps=4", "parallel.zero_stage=2"]
SECONDS = 240.0

on_gpu = pytest.mark.skipif(REHEARSED, reason="asks the GPU itself")
over_nccl = pytest.mark.skipif(BACKEND != "nccl", reason="LIMOE_TEST_BACKEND=nccl asks for it")


def start(arguments: list[str], folder: Path, ranks: int = 1) -> subprocess.Popen[str]:
    """The training program, its ranks on one GPU."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    told = ["trainer.train", *arguments, f"data.cache={folder / 'cache'}", f"run.dir={folder / 'run'}"]
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "tests" / "gpu" / "start.py"), *told],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> str:
    """What it prints until it ends; a hang fails."""
    try:
        return process.communicate(timeout=SECONDS)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"hangs: {process.communicate()[0]}") from None


def trained(arguments: list[str], folder: Path, ranks: int = 1) -> list[dict[str, float]]:
    """The metrics of a run that must succeed."""
    process = start(arguments, folder, ranks)
    printed = end(process)
    assert process.returncode == 0, printed
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def losses(rows: list[dict[str, float]]) -> dict[int, float]:
    """By step; of a step that was done twice, the last."""
    return {int(row["step"]): row["train/loss"] for row in rows if "train/loss" in row}


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a file is there."""
    until = time.monotonic() + SECONDS
    while not path.exists():
        assert process.poll() is None, end(process)
        assert time.monotonic() < until, f"no {path}"
        time.sleep(0.02)


def ranks_of(launcher: subprocess.Popen[str]) -> list[int]:
    """Process ids of torchrun's ranks."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(child) for child in children if b"start.py" in Path(f"/proc/{child}/cmdline").read_bytes()]


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = losses(trained(SMALL, whole))
    process = start(SMALL, broken)
    wait_for(broken / "run" / "checkpoints" / "step-00000004", process)
    process.kill()
    process.wait()
    assert losses(trained(SMALL, broken)) == pytest.approx(expected, rel=1e-3)


@on_gpu
def test_a_profile_has_the_gpu_and_its_memory(tmp_path: Path) -> None:
    rows = trained([*SMALL, "train.profile=4:5"], tmp_path)
    assert 0 < rows[-2]["perf/memory_gib"] < 20
    folder = tmp_path / "run" / "profile" / "steps-4-5"
    assert {path.name for path in folder.iterdir()} == {"rank-0.pt.trace.json.gz", "rank-0.memory.pickle"}


@on_gpu
def test_too_little_memory_is_one_line(tmp_path: Path) -> None:
    wide = ["model.width=2048", "model.mlp=8192", "model.image_size=224", "train.batch_size=1024", "run.gpu_memory_gib=100000"]
    process = start([*SMALL, *wide], tmp_path)
    printed = end(process)
    assert process.returncode == 1, printed
    (line,) = [line for line in printed.splitlines() if line.startswith("error:")]
    assert "too little GPU memory" in line and "Traceback" not in printed


def test_two_ranks_learn_what_one_learns(tmp_path: Path) -> None:
    alone = losses(trained([*SMALL, "router.noise=0"], tmp_path / "alone"))
    settings = [*SMALL, "router.noise=0", "parallel.expert_parallel=2"]
    together = losses(trained(settings, tmp_path / "together", ranks=2))
    # Each rank is a routing group, so a few tokens get other slots; the first step is before anything was learned from them.
    assert together[1] == pytest.approx(alone[1], rel=1e-2)
    assert together.keys() == alone.keys()


def struck(signal_number: int, folder: Path) -> subprocess.Popen[str]:
    """A long run on two ranks, the second of which has been sent a signal while they train."""
    settings = [*SMALL, "train.steps=100000", "parallel.expert_parallel=2", "parallel.lost_after_seconds=15"]
    process = start([*settings, "checkpoint.every_steps=5"], folder, ranks=2)
    wait_for(folder / "run" / "checkpoints" / "step-00000005", process)
    os.kill(ranks_of(process)[1], signal_number)
    return process


@on_gpu
@over_nccl
def test_a_rank_that_dies_is_named_and_nobody_waits_for_it(tmp_path: Path) -> None:
    process = struck(signal.SIGKILL, tmp_path)
    printed = end(process)
    assert process.returncode != 0
    assert "rank 1" in printed or "exitcode: -9" in printed.lower() or "Signal 9" in printed, printed


@on_gpu
@over_nccl
def test_a_rank_that_hangs_is_named_and_nobody_waits_for_it(tmp_path: Path) -> None:
    """NCCL itself waits for ever; the watchdog does not."""
    process = struck(signal.SIGSTOP, tmp_path)
    printed = end(process)
    assert process.returncode != 0
    assert "rank 1" in printed, printed
