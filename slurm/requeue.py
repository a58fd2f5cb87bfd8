"""Whether a job goes back into the queue: the last thing that slurm/train.sbatch runs, `requeue.py CODE SAVED_BEFORE [ASKED]`.

It exits with the job's exit code. It runs on the compute node itself, outside any container, with whatever python3 is
there: only the standard library, Python 3.6 or newer.
"""

import os
import signal
import subprocess
import sys
import time
from enum import Enum
from pathlib import Path
from typing import List, NamedTuple, NoReturn, Sequence, Tuple

MISTAKE, STOPPED, INTERRUPTED = 2, 85, 130
"""Exit codes of trainer.train: a mistake that must be fixed first; saved because of a signal; the same after Ctrl-C."""
BY_HAND = "to continue from the last checkpoint, give the same overrides and run.name or run.dir of this run"
HELLO_SECONDS = 60
"""How long the nodes of the job may take to answer."""
SLURM_SECONDS = 600
"""How long SLURM may take to end a job that it requeues, or whose node it has lost."""


class Action(Enum):
    """What happens to the job."""

    LEAVE = "ends with its exit code"
    REQUEUE = "goes back into the queue"


class Position(NamedTuple):
    """What trainer/training/position.py wrote: the current step, the last one saved, and the exit code of a clean stop."""

    step: int
    saved: int
    stopped: int  # 0: there was none


def decide(code: int, asked: str, saved: int, before: int, crashes: Sequence[int], most: int) -> Tuple[Action, str]:
    """What happens to a job whose program ended with `code`, and why.

    asked: "USR1" or "TERM" if the batch shell got it, "" if the job was not asked to stop. saved, before: the step of the newest
    checkpoint, now and when this start began. crashes: the step reached by each start since that checkpoint, including this one
    if it `counts_as_crash`. most: the number of them that ends the job.
    """
    if code == MISTAKE:
        return Action.LEAVE, "not requeued: fix the error above first"
    if code == INTERRUPTED:
        return Action.LEAVE, f"interrupted and saved at step {saved}: not requeued"
    if code == STOPPED and saved != before:
        return Action.REQUEUE, f"stopped and saved at step {saved}"
    was_asked = bool(asked) or code == STOPPED
    why = "asked to stop before it could save" if was_asked else "crashed"
    if asked == "TERM":
        return Action.REQUEUE, why  # at SLURM's request, which says nothing about the program
    if len(crashes) >= most:
        steps = " ".join(map(str, crashes))
        # A job whose time limit is shorter than its warning is asked to stop at every start.
        hint = "; is the time limit longer than the warning before it (--signal)?" if was_asked else ""
        return Action.LEAVE, (
            f"error: {why}, {len(crashes)} times without a new checkpoint (the last is of step {saved}; at step {steps}), "
            f"exit code {code}: not requeued{hint}"
        )
    return Action.REQUEUE, (
        f"{why} at step {crashes[-1]}, exit code {code}, {len(crashes)} of at most {most} times without a new checkpoint"
    )


def counts_as_crash(code: int, asked: str, saved: int, before: int) -> bool:
    """Whether a start got no further than the one before, and SLURM was not the reason."""
    return code not in (MISTAKE, INTERRUPTED) and asked != "TERM" and not (code == STOPPED and saved != before)


def main() -> None:
    """Decide, and act on it."""
    code, before, asked = int(sys.argv[1]), int(sys.argv[2]), "".join(sys.argv[3:])
    logs, most = Path(os.environ["LIMOE_LOGS"]), int(os.environ["LIMOE_MAX_CRASHES"])
    signals = note_signals()
    position = read_position(Path(os.environ["LIMOE_POSITION"]), before)
    code = position.stopped or code  # saved and stopped, whatever happened to the tasks afterwards
    for line in errors_of_ranks(logs):
        print(line, flush=True)
    crashes = []  # type: List[int]
    if counts_as_crash(code, asked, position.saved, before):
        if not asked and code != STOPPED:
            wait_for_lost_nodes(code, signals)
        try:
            crashes = note_crash(logs / "crashes", position)
        except OSError as problem:
            leave(code, f"error: {problem}, so crashes cannot be counted: not requeued")
    action, why = decide(code, asked, position.saved, before, crashes, most)
    if action is Action.REQUEUE:
        requeue(code, why, signals)
    leave(code, why)


def say(line: str) -> None:
    """Print a line into the job's log."""
    print(f"train.sbatch: {line}", flush=True)


def leave(code: int, why: str) -> NoReturn:
    """End the job."""
    say(why)
    sys.exit(code)


def note_signals() -> List[int]:
    """From here on, signals only go into this list: they mean that SLURM is ending the job itself."""
    got = []  # type: List[int]
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: got.append(number))
    return got


def read_position(file: Path, before: int) -> Position:
    """How far the run got; where it began, if nothing can be read."""
    try:
        step, saved, state = file.read_text().split()
        return Position(int(step), int(saved), int(state) if state.isdigit() else 0)
    except (OSError, ValueError):
        return Position(before, before, 0)


def errors_of_ranks(logs: Path) -> List[str]:
    """Errors with which ranks other than the first ended in this start; a few different lines."""
    started = (logs / "started").stat().st_mtime
    found = set()
    for log in logs.glob("rank-*.log"):
        if log.stat().st_mtime >= started:
            with log.open("rb") as file:
                file.seek(max(0, log.stat().st_size - 4096))
                found.update(file.read().decode(errors="replace").splitlines()[-1:])
    return sorted(line for line in found if line.startswith("error:"))[:5]


def note_crash(file: Path, position: Position) -> List[int]:
    """Add this start to the file of crashes, one line "SAVED STEP" each; the steps of those since the newest checkpoint."""
    with file.open("a") as lines:
        lines.write(f"{position.saved} {position.step}\n")
    rows = [line.split() for line in file.read_text().splitlines()]
    return [int(step) for saved, step in rows if int(saved) == position.saved]


def wait_for_lost_nodes(code: int, signals: List[int]) -> None:
    """Ask every node for an answer; if one does not answer, wait for SLURM to end the job.

    The tasks notice a lost node in a second, SLURM later: a job requeued in between could get the same node again.
    """
    nodes = os.environ["SLURM_JOB_NUM_NODES"]
    hello = ["srun", "--overlap", "--ntasks", nodes, "--ntasks-per-node=1", "--cpus-per-task=1", "true"]
    bounded = ["timeout", "--kill-after=5", str(HELLO_SECONDS)] + hello
    if subprocess.run(bounded, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0:
        return
    say("a node does not answer: waiting for SLURM to notice, end the job and requeue it")
    wait_for_slurm(signals)
    if signals:
        sys.exit(code)


def requeue(code: int, why: str, signals: List[int]) -> NoReturn:
    """Put the job back into the queue, once; not if SLURM has already done so or a person has cancelled it."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # only this task: the id of one of the jobs is that of the whole array too
        job = "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}".format_map(os.environ)
    try:
        shown = subprocess.run(["scontrol", "show", "job", job], stdout=subprocess.PIPE, check=False).stdout.decode().strip()
    except OSError:
        leave(code, f"{why}, but scontrol is not here to requeue the job: {BY_HAND}")
    if "Requeue=0" in shown:
        leave(code, f"{why}; not requeued, as this job asks: {BY_HAND}")
    # An empty answer is no reason not to requeue.
    if shown and "JobState=RUNNING" not in shown and "Reason=TimeLimit" not in shown:
        leave(code, f"{why}; SLURM is already ending this job")
    say(f"{why}: requeued")
    if subprocess.run(["scontrol", "requeue", job], check=False).returncode != 0:
        leave(code, f"SLURM refuses to requeue it: {BY_HAND}")
    wait_for_slurm(signals)
    sys.exit(code)


def wait_for_slurm(signals: List[int]) -> None:
    """Wait until SLURM ends this job, which starts with a signal."""
    until = time.monotonic() + SLURM_SECONDS
    while not signals and time.monotonic() < until:
        time.sleep(0.2)


if __name__ == "__main__":
    main()
