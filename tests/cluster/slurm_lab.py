"""A real SLURM on this machine, as the tests use it: `lab/cluster.sh`, which knows how, and jobs."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLUSTER = Path(__file__).parent / "lab" / "cluster.sh"
STAND_IN = Path(__file__).parent / "lab" / "stand_in.sh"
SECONDS = 150.0
"""How long a job may take to come as far as a test waits for, on a busy machine."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "PREEMPTED", "OUT_OF_MEMORY")


class Unavailable(Exception):
    """SLURM cannot run here; the message says why."""


def wait_for(holds: Callable[[], bool], tell: Callable[[], str]) -> None:
    """Wait until something holds; fails, with what `tell` says, when that takes too long."""
    until = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < until, f"nothing after {SECONDS} s: {tell()}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Job:
    """A submitted job. log: what the batch script and rank 0 write."""

    number: str
    folder: Path
    name: str

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}-{self.number}.log"

    @property
    def logs(self) -> Path:
        """Where the other ranks write."""
        return self.folder / "logs" / f"{self.name}-{self.number}"

    def text(self) -> str:
        """All of the log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def last_lines(self) -> str:
        """The end of it, to show in the message of a failure."""
        return self.text()[-3000:]


class SlurmLab:
    """A head and four nodes, `node1` to `node4`, of eight pretended CPUs each."""

    def __init__(self, folder: Path) -> None:
        self._environment = {**os.environ, "SLURMLAB_DIR": str(folder), "SLURMLAB_NODES": "4"}

    def up(self) -> None:
        """Start it, with an installation of Debian's packages if need be. Raises Unavailable."""
        if os.geteuid() != 0:
            raise Unavailable("not root, and the nodes need namespaces of their own")
        started = self.call("up", check=False)
        if started.returncode != 0:
            raise Unavailable((started.stderr.strip().splitlines() or ["cluster.sh up failed"])[-1])

    def down(self) -> None:
        self.call("down", check=False)

    def call(self, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """`cluster.sh COMMAND…`."""
        done = subprocess.run(
            [str(CLUSTER), *command],
            env=self._environment | variables,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def on(self, node: str, *command: str) -> str:
        """What a command prints inside a node."""
        return self.call("on", node, *command).stdout

    def start_on(self, node: str, *command: str) -> subprocess.Popen[str]:
        """A command that keeps running inside a node; whoever starts it ends it."""
        return subprocess.Popen([str(CLUSTER), "on", node, *command], env=self._environment, stdout=subprocess.PIPE, text=True)

    def submit(self, folder: Path, options: list[str], overrides: list[str], **variables: str) -> Job:
        """`sbatch OPTIONS slurm/train.sbatch OVERRIDES` in `folder`, with some environment variables more."""
        environment = {"LIMOE_HOME": str(ROOT), "LIMOE_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | variables
        script = str(ROOT / "slurm" / "train.sbatch")
        command = ["sbatch", "--parsable", f"--chdir={folder}", "--time=60", *options, script, *overrides]
        return Job(self.call("exec", *command, **environment).stdout.strip(), folder, "limoe")

    def show(self, job: Job) -> dict[str, str]:
        """What SLURM says of a job."""
        text = self.call("exec", "scontrol", "show", "job", job.number).stdout
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def wait(self, job: Job, holds: Callable[[], bool]) -> None:
        """Wait for something that a job does; fails when it ends before."""

        def come_so_far() -> bool:
            if holds():
                return True
            state = self.show(job)["JobState"]
            assert state not in ENDED or holds(), f"{state}:\n{job.last_lines()}"
            return False

        wait_for(come_so_far, lambda: f"{self.show(job)['JobState']}:\n{job.last_lines()}")

    def wait_for_line(self, job: Job, text: str, times: int = 1) -> None:
        """Wait for a text in the job's log."""
        self.wait(job, lambda: job.text().count(text) >= times)

    def end(self, job: Job) -> dict[str, str]:
        """What SLURM says of a job that has come to its end."""
        self.wait(job, lambda: self.show(job)["JobState"] in ENDED)
        return self.show(job)
