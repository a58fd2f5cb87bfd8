"""Whether a job goes back into the queue: the last thing that slurm/train.sbatch runs, `requeue.py CODE SAVED_BEFORE [ASKED]`.

It exits with the exit code of the job. It runs on the compute node itself, outside of any container, with whatever python3 is
there: the standard library alone, Python 3.6 or newer.
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
"""Exit codes of trainer.train: nothing to go on with before it is mended; saved because of a signal; the same after Ctrl-C."""
BY_HAND = "the same overrides with run.name or run.dir of this run go on from its last checkpoint"
HELLO_SECONDS = 60
"""How long the nodes of the job may take to answer."""
SLURM_SECONDS = 600
"""How long SLURM may take to end a job that it requeues, or whose node it has lost."""


class Action(Enum):
    """What becomes of the job."""

    LEAVE = "ends with its exit code"
    REQUEUE = "goes back into the queue"


class Position(NamedTuple):
    """What trainer/training/position.py wrote: the step at work, the last one saved, and the exit code of a clean stop."""

    step: int
    saved: int
    stopped: int  # 0: it did not come to one


def decide(code: int, asked: str, saved: int, before: int, crashes: Sequence[int], most: int) -> Tuple[Action, str]:
    """What becomes of a job whose program ended with `code`, and why.

    asked: "USR1" or "TERM" if the batch shell got it, "" if nobody asked the job to stop. saved, before: the step of the newest
    checkpoint, now and when this start began. crashes: the step that each start since that checkpoint had come to, this one
    included where it `counts_as_crash`. most: so many of them end the job.
    """
    if code == MISTAKE:
        return Action.LEAVE, "not requeued: there is something to mend first"
    if code == INTERRUPTED:
        return Action.LEAVE, f"interrupted and saved at step {saved}: not requeued"
    if code == STOPPED and saved != before:
        return Action.REQUEUE, f"stopped and saved at step {saved}"
    was_asked = bool(asked) or code == STOPPED
    why = "asked to stop before it could save" if was_asked else "crashed"
    if asked == "TERM":
        return Action.REQUEUE, why  # SLURM's wish, which says nothing about the program
    if len(crashes) >= most:
        steps = " ".join(map(str, crashes))
        # One whose time limit is shorter than its warning is told to stop at every start.
        hint = "; is the time limit longer than its warning (--signal)?" if was_asked else ""
        return Action.LEAVE, (
            f"error: {why}, {len(crashes)} times without a new checkpoint (the last is of step {saved}; at step {steps}), "
            f"exit code {code}: not requeued{hint}"
        )
    return Action.REQUEUE, (
        f"{why} at step {crashes[-1]}, exit code {code}, {len(crashes)} of at most {most} times without a new checkpoint"
    )


def counts_as_crash(code: int, asked: str, saved: int, before: int) -> bool:
    """Whether a start came no further than the one before, and SLURM was not the reason."""
    return code not in (MISTAKE, INTERRUPTED) and asked != "TERM" and not (code == STOPPED and saved != before)


def main() -> None:
    """Decide, and do it."""
    code, before, asked = int(sys.argv[1]), int(sys.argv[2]), "".join(sys.argv[3:])
    logs, most = Path(os.environ["LIMOE_LOGS"]), int(os.environ["LIMOE_MAX_CRASHES"])
    signals = note_signals()
    position = read_position(Path(os.environ["LIMOE_POSITION"]), before)
    code = position.stopped or code  # saved and stopped, whatever became of the tasks afterwards
    for line in errors_of_ranks(logs):
        print(line, flush=True)
    crashes = []  # type: List[int]
    if counts_as_crash(code, asked, position.saved, before):
        if not asked and code != STOPPED:
            wait_for_lost_nodes(code, signals)
        try:
            crashes = note_crash(logs / "crashes", position)
        except OSError as problem:
            leave(code, f"error: {problem}, so that crashes cannot be counted: not requeued")
    action, why = decide(code, asked, position.saved, before, crashes, most)
    if action is Action.REQUEUE:
        requeue(code, why, signals)
    leave(code, why)


def say(line: str) -> None:
    """A line into the job's log."""
    print(f"train.sbatch: {line}", flush=True)


def leave(code: int, why: str) -> NoReturn:
    """End the job."""
    say(why)
    sys.exit(code)


def note_signals() -> List[int]:
    """From here on signals end nothing, but come into this list: SLURM's way to say that it ends the job itself."""
    got = []  # type: List[int]
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: got.append(number))
    return got


def read_position(file: Path, before: int) -> Position:
    """Where the run came to; where it began, if nothing can be read."""
    try:
        step, saved, state = file.read_text().split()
        return Position(int(step), int(saved), int(state) if state.isdigit() else 0)
    except (OSError, ValueError):
        return Position(before, before, 0)


def errors_of_ranks(logs: Path) -> List[str]:
    """What other ranks than the first ended with in this start, where that is an error; a few different lines."""
    started = (logs / "started").stat().st_mtime
    found = set()
    for log in logs.glob("rank-*.log"):
        if log.stat().st_mtime >= started:
            with log.open("rb") as file:
                file.seek(max(0, log.stat().st_size - 4096))
                found.update(file.read().decode(errors="replace").splitlines()[-1:])
    return sorted(line for line in found if line.startswith("error:"))[:5]


def note_crash(file: Path, position: Position) -> List[int]:
    """Add this start to the file of crashes, a line "SAVED STEP" each; the steps of those since the newest checkpoint."""
    with file.open("a") as lines:
        lines.write(f"{position.saved} {position.step}\n")
    rows = [line.split() for line in file.read_text().splitlines()]
    return [int(step) for saved, step in rows if int(saved) == position.saved]


def wait_for_lost_nodes(code: int, signals: List[int]) -> None:
    """Ask every node for an answer; where one gives none, wait for SLURM to end the job.

    The tasks notice a lost node in a second, SLURM later: a job requeued in between could get the same node again.
    """
    nodes = os.environ["SLURM_JOB_NUM_NODES"]
    hello = ["srun", "--overlap", "--ntasks", nodes, "--ntasks-per-node=1", "--cpus-per-task=1", "true"]
    bounded = ["timeout", "--kill-after=5", str(HELLO_SECONDS)] + hello
    if subprocess.run(bounded, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0:
        return
    say("a node does not answer: SLURM ends the job, and requeues it, as soon as it has noticed")
    wait_for_slurm(signals)
    if signals:
        sys.exit(code)


def requeue(code: int, why: str, signals: List[int]) -> NoReturn:
    """Put the job back into the queue, once; not when SLURM has done so already, nor when a person cancelled it."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # this task alone: the number of one of the jobs is that of the whole array too
        job = "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}".format_map(os.environ)
    try:
        shown = subprocess.run(["scontrol", "show", "job", job], stdout=subprocess.PIPE, check=False).stdout.decode().strip()
    except OSError:
        leave(code, f"{why}, but scontrol is not here to requeue the job: {BY_HAND}")
    if "Requeue=0" in shown:
        leave(code, f"{why}; not requeued, as this job asks: {BY_HAND}")
    # No answer says nothing against it.
    if shown and "JobState=RUNNING" not in shown and "Reason=TimeLimit" not in shown:
        leave(code, f"{why}; SLURM is ending this job itself")
    say(f"{why}: requeued")
    if subprocess.run(["scontrol", "requeue", job], check=False).returncode != 0:
        leave(code, f"SLURM refuses to: {BY_HAND}")
    wait_for_slurm(signals)
    sys.exit(code)


def wait_for_slurm(signals: List[int]) -> None:
    """Wait until SLURM ends this job, which begins with a signal."""
    until = time.monotonic() + SLURM_SECONDS
    while not signals and time.monotonic() < until:
        time.sleep(0.2)


if __name__ == "__main__":
    main()
