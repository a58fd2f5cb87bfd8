"""A rank that falls silent without closing its connections ends the others, with its name."""

import os
import signal
import subprocess
import sys

import pytest

from tests.distributed.program import ROOT

pytestmark = pytest.mark.slow

RANK = """
import sys, time
from trainer.distributed import joining, processes, program, watchdog
watchdog.LEAVE_SECONDS = processes.JOINING_GRACE_SECONDS = 1.0
def connect(*given, **named):  # as NCCL may
    time.sleep(1.5)  # a beat
    print("connects", flush=True)
    time.sleep(60)
if sys.argv[1] in ("hang", "connect"):
    processes.dist.init_process_group = connect
if sys.argv[1] == "hang" and sys.argv[2] == "1":
    sys.exit(0)
together = processes.start_processes("cpu", 0.05 if sys.argv[1] == "hang" else 1.0, 3.0)
together.watchdog.note(f"training step {7 + together.rank}")
time.sleep(1.5)  # a beat
print("waits", flush=True)
if sys.argv[1] == "leave":
    together.watchdog.stop()
    time.sleep(5.0 * together.rank)
    print("done", flush=True)
    sys.exit(0)
if sys.argv[1] == "fail" and together.rank == 1:
    try:
        raise IndexError("a bug")
    except IndexError as problem:
        program._leave_failed(problem, together)
together.barrier() if together.rank == 0 and sys.argv[1] == "wait" else time.sleep(60)  # as NCCL waits, which notices nothing
"""


def start(port: int, mode: str, world: int = 2) -> list[subprocess.Popen[str]]:
    ranks = []
    for rank in range(world):
        names = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-c", RANK, mode, str(rank)],
                cwd=ROOT,
                env=os.environ | {name: str(value) for name, value in names.items()} | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return ranks


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.parametrize("silent", [0, 1])
def test_a_stopped_rank_ends_the_other_with_its_name(free_port: int, silent: int):
    ranks = start(free_port, "wait")
    try:
        for process in ranks:
            assert process.stdout is not None
            assert process.stdout.readline() == "waits\n"
        ranks[silent].send_signal(signal.SIGSTOP)
        code, errors = outcome(ranks[1 - silent])
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    assert code == 1
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, errors
    assert lines[0].startswith(f"error: rank {silent} on ")
    assert f"(last message: training step {7 + silent})" in lines[0]


def test_a_rank_that_has_finished_is_not_missed(free_port: int):
    ranks = start(free_port, "leave")
    assert [outcome(process)[0] for process in ranks] == [0, 0]


def test_a_rank_that_fails_ends_those_that_would_wait_for_it(free_port: int):
    ranks = start(free_port, "fail", world=3)
    told = [outcome(process) for process in ranks]
    assert [code for code, _ in told] == [1, 1, 1]
    assert told[1][1].splitlines()[-1] == "error: rank 1 failed: IndexError: a bug"
    assert "error:" not in told[0][1] + told[2][1]


def test_a_join_that_hangs_is_ended_with_a_line(free_port: int):
    process, other = start(free_port, "hang")
    code, errors = outcome(process)
    assert outcome(other)[0] == 0
    assert code == 1
    assert errors.splitlines()[-1].startswith("error: rank 0 of 2 on "), errors
    assert "but gloo has not connected them in 0.05 minutes: set GLOO_SOCKET_IFNAME" in errors


def test_a_rank_that_dies_while_the_others_connect_is_named(free_port: int):
    """The watchdog starts before NCCL connects, which would wait forever."""
    ranks = start(free_port, "connect")
    try:
        for process in ranks:
            assert process.stdout is not None
            assert process.stdout.readline() == "connects\n"
        ranks[1].kill()
        code, errors = outcome(ranks[0])
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    assert code == 1
    assert errors.splitlines()[-1].startswith("error: rank 1 on "), errors
    assert "(last message: joining the others)" in errors
