"""What SLURM's variables say about this process: a task of a step (srun), a batch script, or nothing."""

import os
import re
from dataclasses import dataclass

from trainer.errors import UserError

FIRST_PORT = 20_000
"""Below the ports that systems hand out by themselves (from 32,768 on Linux)."""
PORTS = 10_000


@dataclass(frozen=True)
class Task:
    """One of the tasks that an srun started together. local_tasks: how many of them run on this host."""

    rank: int
    world: int
    local_rank: int
    local_tasks: int
    address: str
    port: int


def started_by_srun() -> bool:
    """Whether srun started this process as one of several."""
    # Not SLURM_NTASKS, which the shells of sbatch and salloc have too, of all the tasks that could be started there.
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def read_task() -> Task:
    """This process among the tasks of its step. Raises UserError when srun has not said all of it."""
    try:
        node = int(os.environ["SLURM_NODEID"])
        job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_STEP_ID", "0"))
        return Task(
            rank=int(os.environ["SLURM_PROCID"]),
            world=int(os.environ["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(os.environ["SLURM_LOCALID"]),
            local_tasks=tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])[node],
            address=os.environ.get("MASTER_ADDR") or first_host(os.environ["SLURM_STEP_NODELIST"]),
            # Every task of the step works out the same one, and steps that run at once have others.
            port=int(os.environ.get("MASTER_PORT") or FIRST_PORT + (job + step) % PORTS),
        )
    except (KeyError, ValueError, IndexError) as problem:
        raise UserError(
            f"srun started several tasks, but its variables cannot be read ({problem!r}): start with a plain `srun python -m …`"
        ) from problem


def first_host(nodes: str) -> str:
    """The first of `node[03-05,9],login1`: "node03"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if not first:
        raise ValueError(f"no host in {nodes!r}")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group())


def tasks_per_node(counts: str) -> list[int]:
    """`2(x3),1`: [2, 2, 2, 1]."""
    numbers: list[int] = []
    for part in counts.split(","):
        count, _, times = part.rstrip(")").partition("(x")
        numbers += [int(count)] * int(times or 1)
    return numbers
