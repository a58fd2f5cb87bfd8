"""What becomes of a job: every way that it can end, without SLURM. Real jobs are in tests/cluster/."""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm import requeue
from slurm.requeue import Action, Position, counts_as_crash, decide

LEAVE, REQUEUE = Action.LEAVE, Action.REQUEUE
SAVED = "stopped and saved at step 7"
TOO_EARLY = "asked to stop before it could save"
SCRIPT = Path(requeue.__file__)


@pytest.mark.parametrize(
    ("code", "asked", "saved", "before", "crashes", "action", "message"),
    [
        (2, "", 0, 0, [], LEAVE, "not requeued: fix the error above first"),
        (2, "TERM", 5, 0, [], LEAVE, "not requeued: fix the error above first"),
        (130, "", 5, 0, [], LEAVE, "interrupted and saved at step 5: not requeued"),
        (130, "USR1", 5, 5, [], LEAVE, "interrupted and saved at step 5: not requeued"),
        (85, "", 7, 0, [], REQUEUE, SAVED),
        (85, "USR1", 7, 5, [], REQUEUE, SAVED),
        (85, "TERM", 7, 5, [], REQUEUE, SAVED),
        # Stopped with nothing new to save: as good as asked, whoever asked.
        (85, "", 5, 5, [5], REQUEUE, f"{TOO_EARLY} at step 5, exit code 85, 1 of at most 3 times without a new checkpoint"),
        (85, "TERM", 5, 5, [], REQUEUE, TOO_EARLY),
        (143, "TERM", 0, 0, [], REQUEUE, TOO_EARLY),
        (0, "USR1", 0, 0, [0], REQUEUE, f"{TOO_EARLY} at step 0, exit code 0, 1 of at most 3 times without a new checkpoint"),
        (
            138,
            "USR1",
            0,
            0,
            [0, 0],
            REQUEUE,
            f"{TOO_EARLY} at step 0, exit code 138, 2 of at most 3 times without a new checkpoint",
        ),
        (
            138,
            "USR1",
            5,
            5,
            [5, 6, 5],
            LEAVE,
            f"error: {TOO_EARLY}, 3 times without a new checkpoint (the last is of step 5; at step 5 6 5), exit code 138: "
            "not requeued; is the time limit longer than the warning before it (--signal)?",
        ),
        (1, "", 5, 0, [7], REQUEUE, "crashed at step 7, exit code 1, 1 of at most 3 times without a new checkpoint"),
        (137, "", 5, 5, [7, 8], REQUEUE, "crashed at step 8, exit code 137, 2 of at most 3 times without a new checkpoint"),
        (
            1,
            "",
            5,
            5,
            [7, 8, 7],
            LEAVE,
            "error: crashed, 3 times without a new checkpoint (the last is of step 5; at step 7 8 7), exit code 1: not requeued",
        ),
    ],
)
def test_every_end(code: int, asked: str, saved: int, before: int, crashes: list[int], action: Action, message: str):
    assert decide(code, asked, saved, before, crashes, most=3) == (action, message)
    assert counts_as_crash(code, asked, saved, before) == bool(crashes)


def test_what_the_run_left_is_read(tmp_path: Path):
    file = tmp_path / "position"
    assert requeue.read_position(file, before=4) == Position(4, 4, 0)
    for text, position in {
        "           7            5 running \n": Position(7, 5, 0),
        "           7            7 85      \n": Position(7, 7, 85),
        "4 4 running\n": Position(4, 4, 0),
        "7": Position(4, 4, 0),
    }.items():
        file.write_text(text)
        assert requeue.read_position(file, before=4) == position


def test_crashes_are_counted_from_the_newest_checkpoint(tmp_path: Path):
    file = tmp_path / "crashes"
    noted = [requeue.note_crash(file, Position(step, saved, 0)) for step, saved in [(3, 0), (4, 0), (15, 10), (12, 10)]]
    assert noted == [[3], [3, 4], [15], [15, 12]]


def test_only_the_errors_of_this_start_are_told(tmp_path: Path):
    (tmp_path / "rank-1.log").write_text("error: of the start before\n")
    os.utime(tmp_path / "rank-1.log", (time.time() - 60, time.time() - 60))
    (tmp_path / "started").touch()
    for rank, text in {
        2: "error: a\n",
        3: "error: a\n",
        4: "error: early\nlast words\n",
        5: "",
        6: "x" * 9000 + "\nerror: b\n",
    }.items():
        (tmp_path / f"rank-{rank}.log").write_text(text)
    assert requeue.errors_of_ranks(tmp_path) == ["error: a", "error: b"]


class Job:
    """The end of a job whose SLURM is a few scripts; `calls`: what they were asked to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tools = folder / "tools"
        self.tools.mkdir()
        (folder / "started").touch()
        self.tool("srun", "exit 0")
        self.tool("timeout", 'shift 2; exec "$@"')

    def tool(self, name: str, does: str) -> None:
        """A command that the node has."""
        (self.tools / name).write_text(f'#!/bin/bash\necho "{name} $*" >> "{self.folder}/calls"\n{does}\n')
        (self.tools / name).chmod(0o755)

    def scontrol(self, shown: str, requeue: str = 'kill -TERM "$PPID"') -> None:
        """`scontrol show` tells of the job; its requeue sends TERM, as SLURM does."""
        self.tool("scontrol", f"case $1 in show) echo '{shown}' ;; requeue) {requeue} ;; esac")

    def ends(
        self, code: int, before: int = 0, asked: str = "", position: str = "7 5 running", **variables: str
    ) -> tuple[int, str]:
        """The exit code of the job, and what is said."""
        (self.folder / "position").write_text(position)
        environment = {
            "PATH": str(self.tools),
            "LIMOE_LOGS": str(self.folder),
            "LIMOE_POSITION": str(self.folder / "position"),
            "LIMOE_MAX_CRASHES": "3",
            "SLURM_JOB_ID": "42",
            "SLURM_JOB_NUM_NODES": "2",
        }
        command = [sys.executable, "-I", str(SCRIPT), str(code), str(before), *asked.split()]
        done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=60, check=False)
        assert not done.stderr
        return done.returncode, done.stdout

    @property
    def calls(self) -> list[str]:
        calls = self.folder / "calls"
        return calls.read_text().splitlines() if calls.exists() else []


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_stop_that_was_saved_is_requeued_whatever_srun_made_of_its_exit_code(job: Job):
    job.scontrol("JobState=RUNNING Requeue=1")
    code, said = job.ends(143, position="7 7 85")
    assert (code, said) == (85, "train.sbatch: stopped and saved at step 7: requeued\n")
    assert job.calls == ["scontrol show job 42", "scontrol requeue 42"]
    assert not (job.folder / "crashes").exists()


def test_of_an_array_one_job_is_requeued(job: Job):
    job.scontrol("JobState=RUNNING")
    job.ends(85, position="7 7 85", SLURM_ARRAY_JOB_ID="40", SLURM_ARRAY_TASK_ID="2")
    assert job.calls[-1] == "scontrol requeue 40_2"


def test_after_a_crash_the_nodes_are_asked_first(job: Job):
    job.scontrol("JobState=RUNNING")
    code, said = job.ends(1)
    assert (code, "crashed at step 7, exit code 1, 1 of at most 3 times" in said) == (1, True)
    assert job.calls[0].startswith("timeout --kill-after=5 60 srun --overlap --ntasks 2 ")
    assert (job.folder / "crashes").read_text() == "5 7\n"


def test_a_job_with_a_lost_node_is_left_to_slurm(job: Job):
    job.tool("srun", 'kill -TERM "$PPID"; exit 1')  # the one that asks: timeout's stand-in became srun
    job.scontrol("JobState=RUNNING")
    code, said = job.ends(1)
    assert (code, said) == (
        1,
        "train.sbatch: a node does not answer: waiting for SLURM to notice, end the job and requeue it\n",
    )
    assert not (job.folder / "crashes").exists()


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        ("JobState=RUNNING Requeue=0", "not requeued, as this job asks: to continue from the last checkpoint"),
        ("JobState=COMPLETING Requeue=1", "SLURM is already ending this job"),
    ],
)
def test_what_slurm_says_of_the_job_comes_first(job: Job, shown: str, told: str):
    job.scontrol(shown)
    code, said = job.ends(85, position="7 7 85")
    assert code == 85
    assert said.startswith(f"train.sbatch: stopped and saved at step 7; {told}")
    assert job.calls == ["scontrol show job 42"]


@pytest.mark.parametrize("shown", ["", "JobState=COMPLETING Reason=TimeLimit"])
def test_no_answer_and_a_reached_limit_say_nothing_against_it(job: Job, shown: str):
    job.scontrol(shown)
    assert job.ends(85, position="7 7 85")[1].endswith(": requeued\n")


def test_a_refusal_is_told(job: Job):
    job.scontrol("JobState=RUNNING", requeue="exit 1")
    code, said = job.ends(85, position="7 7 85")
    assert code == 85
    assert "SLURM refuses to requeue it: to continue" in said


def test_without_scontrol_the_exit_code_and_a_line_remain(job: Job):
    code, said = job.ends(85, position="7 7 85")
    assert code == 85
    assert (
        "stopped and saved at step 7, but scontrol is not here to requeue the job: to continue from the last checkpoint" in said
    )


def test_crashes_that_cannot_be_counted_end_the_job(job: Job):
    job.scontrol("JobState=RUNNING")
    (job.folder / "crashes").mkdir()
    code, said = job.ends(1)
    assert (code, "crashes cannot be counted: not requeued" in said) == (1, True)
    assert "scontrol requeue 42" not in job.calls


def test_any_python_of_a_compute_node_can_run_it():
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 6))
    imports = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imports |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name.partition(".")[0] for name in imports} <= set(sys.stdlib_module_names) - {"__future__", "dataclasses"}
