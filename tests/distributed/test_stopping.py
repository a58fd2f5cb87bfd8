"""Signals to the whole program, and the death of one of its processes."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.distributed.program import SECONDS, TINY, end_group, ended, ranks_of, started, wait_until
from trainer.checkpoint.files import complete_checkpoints
from trainer.checkpoint.load import read_progress

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run that trains until it is stopped."""
    return [*TINY, f"data.cache={tmp_path_factory.mktemp('cache')}", "train.steps=1000000"]


def has_stepped(run_dir: Path) -> bool:
    metrics = run_dir / "metrics.jsonl"
    return metrics.exists() and metrics.read_text().count("train/loss_contrastive") >= 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 85)])
def test_a_signal_saves_and_stops(tmp_path: Path, endless: list[str], number: int, code: int):
    run_dir, log = tmp_path / "run", tmp_path / "log"
    with started([*endless, f"run.dir={run_dir}"], log) as process:
        wait_until(lambda: has_stepped(run_dir), process, log)
        os.kill(process.pid, number)
        done = ended(process, log)
    assert done.code == code, done.output
    assert f"stopped by signal {int(number)} after step" in done.output
    (checkpoint,) = complete_checkpoints(run_dir)
    assert checkpoint.name == f"step-{read_progress(checkpoint).step:08d}"
    assert not done.errors


def test_ctrl_c_under_torchrun_saves(tmp_path: Path, endless: list[str]):
    run_dir, log = tmp_path / "run", tmp_path / "log"
    with started([*endless, f"run.dir={run_dir}", "parallel.expert_parallel=2"], log, ranks=2) as process:
        wait_until(lambda: has_stepped(run_dir), process, log)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does; torchrun passes it on
        done = ended(process, log)
    assert done.code != 0
    assert done.output.count("stopped by signal 2 after step") == 1, done.output
    assert len(complete_checkpoints(run_dir)) == 1
    assert not done.errors


def test_a_signal_to_one_rank_stops_them_all(tmp_path: Path, endless: list[str]):
    run_dir, log = tmp_path / "run", tmp_path / "log"
    with started([*endless, f"run.dir={run_dir}", "parallel.expert_parallel=2"], log, ranks=2) as process:
        wait_until(lambda: has_stepped(run_dir), process, log)
        os.kill(ranks_of(process)[1], signal.SIGINT)
        done = ended(process, log)
    assert done.code != 0
    assert done.output.count("stopped by signal 2 after step") == 1, done.output
    assert len(complete_checkpoints(run_dir)) == 1
    assert not done.errors


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, endless: list[str]):
    run_dir, log = tmp_path / "run", tmp_path / "log"
    # The first is noticed at the end of a step; a step of many micro-batches does not end soon.
    with started([*endless, f"run.dir={run_dir}", "train.batch_size=40000", "train.accumulate=5000"], log) as process:
        wait_until(lambda: (run_dir / "config.yaml").exists() and "cpu" in log.read_text(), process, log)
        os.kill(process.pid, signal.SIGINT)
        time.sleep(1.5)
        os.kill(process.pid, signal.SIGINT)
        done = ended(process, log)
    assert done.code == 130, done.output
    assert done.errors == ["interrupted: stopped at once, without saving"]
    assert not complete_checkpoints(run_dir)


def test_the_death_of_the_launcher_ends_its_ranks(tmp_path: Path, endless: list[str]):
    run_dir, log = tmp_path / "run", tmp_path / "log"
    arguments = [*endless, f"run.dir={run_dir}", "parallel.expert_parallel=2", "parallel.lost_after_seconds=3"]
    with started(arguments, log, ranks=2) as process:
        wait_until(lambda: has_stepped(run_dir), process, log)
        ranks = ranks_of(process)
        process.kill()
        process.wait()
        try:
            until = time.monotonic() + SECONDS
            while any(is_running(rank) for rank in ranks):
                assert time.monotonic() < until, f"hangs:\n{log.read_text()}"
                time.sleep(0.1)
        finally:
            for rank in ranks:
                end_group(rank)
    # Whether a rank first misses the store or, if a peer was faster, the peer: it is the launcher that died.
    errors = [line for line in log.read_text().splitlines() if line.startswith("error:")]
    assert errors
    for line in errors:
        assert re.match(r"error: the launcher on \S+, which connects the ranks, (has not|does not) answer", line)


def is_running(process: int) -> bool:
    """Whether a process is there and no mere entry that nobody has asked about."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_a_rank_ends_the_others_with_its_name(tmp_path: Path, endless: list[str], victim: int):
    run_dir, log = tmp_path / "run", tmp_path / "log"
    arguments = [*endless, f"run.dir={run_dir}", "parallel.expert_parallel=2", "checkpoint.every_steps=2"]
    with started(arguments, log, ranks=2) as process:
        wait_until(lambda: bool(complete_checkpoints(run_dir)), process, log)
        os.kill(ranks_of(process)[victim], signal.SIGKILL)
        done = ended(process, log)
    assert done.code != 0
    assert len(done.errors) == 1, done.output
    assert done.errors[0].startswith(f"error: rank {victim} died without a message")
    assert complete_checkpoints(run_dir)
