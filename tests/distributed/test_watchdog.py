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
from trainer.distributed.processes import start_processes
from trainer.distributed.watchdog import Watchdog
processes = start_processes("cpu")
watchdog = Watchdog(processes, 3.0)
watchdog.note(f"training step {7 + processes.rank}")
time.sleep(1.5)  # a beat
print("waits", flush=True)
if sys.argv[1] == "leave":
    watchdog.stop()
    time.sleep(5.0 * processes.rank)
    print("done", flush=True)
    sys.exit(0)
processes.barrier() if processes.rank == 0 else time.sleep(60)
"""


def start(port: int, mode: str, world: int = 2) -> list[subprocess.Popen[str]]:
    ranks = []
    for rank in range(world):
        names = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-c", RANK, mode],
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
    assert f"(its last word: training step {7 + silent})" in lines[0]


def test_a_rank_that_has_finished_is_not_missed(free_port: int):
    ranks = start(free_port, "leave")
    assert [outcome(process)[0] for process in ranks] == [0, 0]
