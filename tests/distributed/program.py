"""The whole program as a user starts it: its processes, what they print, and how they end."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.training import lock as claim

ROOT = Path(__file__).parents[2]
SECONDS = 120.0
"""How long a start may take on a busy machine before it counts as a hang."""

TINY = [
    "model=limoe_tiny",
    "model.width=32",
    "model.mlp=64",
    "model.patch=8",
    "model.embedding=32",
    "data.shapes_train=512",
    "data.shapes_val=64",
    "data.workers=0",
    "train.batch_size=8",
    "eval.batch_size=32",
    "eval.retrieval=false",
    "eval.zeroshot={}",
    "eval.fewshot={}",
    "log.wandb=disabled",
    "log.report=false",
    "log.every=1",
]


@dataclass(frozen=True)
class Ended:
    """code: of the process that was started; output: what all of it printed, to both streams."""

    code: int
    output: str

    @property
    def errors(self) -> list[str]:
        """Our own lines that tell why."""
        return [line for line in self.output.splitlines() if line.startswith(("error:", "interrupted:"))]


def command(arguments: list[str], ranks: int = 1, module: str = "trainer.train") -> list[str]:
    """What a user types, for one process or for several."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return [sys.executable, *launcher, "-m", module, *arguments]


def torchrun(world: int, module: str, arguments: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    """A module under torchrun, however many processes, to its end."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", *options]
    return subprocess.run(
        [*launcher, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@contextmanager
def started(arguments: list[str], log: Path, ranks: int = 1, module: str = "trainer.train") -> Iterator[subprocess.Popen[bytes]]:
    """The program in a process group of its own, which is ended with all its processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(arguments, ranks, module),
            stdout=output,
            stderr=output,
            cwd=log.parent,
            env=environment,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        # torchrun's ranks have process groups of their own, and outlive it when it is killed.
        for rank in ranks_of(process):
            end_group(rank)
        end_group(process.pid)
        process.wait()


def ranks_of(launcher: subprocess.Popen[bytes]) -> list[int]:
    """Process ids of the ranks that a launcher which still runs has started, in rank order."""
    try:
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        return [int(child) for child in children if b"--standalone" not in Path(f"/proc/{child}/cmdline").read_bytes()]
    except OSError:  # it has just ended
        return []


def end_group(leader: int) -> None:
    """Kill what is left of the process group of a process that `started` or its launcher made."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def run(arguments: list[str], log: Path, ranks: int = 1, module: str = "trainer.train") -> Ended:
    """The program from its start to its end."""
    with started(arguments, log, ranks, module) as process:
        return ended(process, log)


def ended(process: subprocess.Popen[bytes], log: Path) -> Ended:
    """How a started program ended; fails when it does not."""
    try:
        code = process.wait(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"hangs:\n{log.read_text()}") from None
    return Ended(code, log.read_text(errors="replace"))


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for something that the program does; fails when it ends before."""
    until = time.monotonic() + SECONDS
    while not holds():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, f"nothing after {SECONDS} s:\n{log.read_text()}"
        time.sleep(0.05)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with its digest, but for the log, which every start adds to, and the name of who has it now."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("train.log", claim.FILE)
    }
