"""What the launcher's variables say about this process: those of torchrun, of a task of srun, of a batch script, or none.

No other module reads them.
"""

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import UserError

FIRST_PORT = 20_000
"""Below the ports that systems assign automatically (from 32,768 on Linux)."""
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
    # Not SLURM_NTASKS, which the shells of sbatch and salloc have too, for all the tasks that could be started there.
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def read_task() -> Task:
    """This process among the tasks of its step. Raises UserError if a variable of srun is missing."""
    try:
        node = int(os.environ["SLURM_NODEID"])
        job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_STEP_ID", "0"))
        return Task(
            rank=int(os.environ["SLURM_PROCID"]),
            world=int(os.environ["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(os.environ["SLURM_LOCALID"]),
            local_tasks=tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])[node],
            address=os.environ.get("MASTER_ADDR") or first_host(os.environ["SLURM_STEP_NODELIST"]),
            # The same for every task of the step, and different for steps that run at the same time.
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


def rank_from_environment() -> int:
    """This process's rank as its launcher (torchrun or srun) set it; 0 without a launcher."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) if launched() else 0)


def local_rank_from_environment() -> int:
    """This process's rank on its host as its launcher set it; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) if launched() else 0)


def launched() -> bool:
    """Whether torchrun or srun started this process as one of several."""
    return "WORLD_SIZE" in os.environ or started_by_srun()


def world_from_environment() -> int | None:
    """How many processes the launcher, or the SLURM allocation around this process, is for; None outside of both.

    Raises UserError for a WORLD_SIZE that is not a number of processes.
    """
    wanted = os.environ.get("WORLD_SIZE")
    if wanted is not None:
        if not (wanted.isdigit() and int(wanted) > 0):
            raise UserError(f"WORLD_SIZE={wanted} in the environment must be a number of processes")
        return int(wanted)
    nodes, each = os.environ.get("SLURM_JOB_NUM_NODES"), os.environ.get("SLURM_NTASKS_PER_NODE")
    if nodes and each:  # before SLURM_NTASKS, which with --nodes=MIN-MAX stays at the number for MIN nodes
        return int(nodes) * int(each)
    return int(os.environ.get("SLURM_NTASKS", "0")) or (int(nodes) if nodes else None)


def host_of_launcher_store() -> str | None:
    """Where torchrun keeps the store that the ranks meet by, which ends with it; None: rank 0 keeps it."""
    return os.environ.get("MASTER_ADDR") if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else None


def restarts_from_environment() -> int:
    """How often torchrun (--max-restarts) has started these processes before; 0 under other launchers."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def own_logs_from_environment() -> Path | None:
    """The folder where slurm/train.sbatch keeps a log for each rank except the first; None under other launchers."""
    folder = os.environ.get("LIMOE_LOGS")
    return Path(folder) if folder else None


def seconds_to_leave_from_environment() -> int | None:
    """How long after the first task srun ends the others, as slurm/train.sbatch asks; None: unknown.

    Raises UserError if it is not a number of seconds.
    """
    wait = os.environ.get("LIMOE_WAIT", "0")  # srun's 0: never
    if not wait.isdigit():
        raise UserError(f"LIMOE_WAIT={wait} in the environment must be a whole number of seconds")
    return int(wait) or None


def in_allocation() -> bool:
    """Whether this process is on nodes allocated by SLURM: what is missing here will be missing in the run."""
    return "SLURM_JOB_ID" in os.environ


JOB = {
    "job_id": "SLURM_JOB_ID",
    "job_name": "SLURM_JOB_NAME",
    "array_job_id": "SLURM_ARRAY_JOB_ID",
    "array_task_id": "SLURM_ARRAY_TASK_ID",
    "node_list": "SLURM_JOB_NODELIST",
    "partition": "SLURM_JOB_PARTITION",
    "cluster": "SLURM_CLUSTER_NAME",
    "restarts": "SLURM_RESTART_COUNT",
}


def slurm_job_from_environment() -> dict[str, str]:
    """What SLURM says about the job of this process, as far as it says it; empty outside of one."""
    return {name: os.environ[variable] for name, variable in JOB.items() if os.environ.get(variable)} if in_allocation() else {}


def array_task_from_environment() -> int | None:
    """Which task of a SLURM job array this process belongs to; None outside of one."""
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return None if task is None else int(task)


def adopt_launcher_variables() -> None:
    """Set torch.distributed's variables from srun's, or for a single process; torchrun has set them already."""
    if "WORLD_SIZE" in os.environ:
        missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UserError(f"WORLD_SIZE is set, but not {', '.join(missing)}: start with torchrun or srun, or unset WORLD_SIZE")
        return
    if started_by_srun():
        task = read_task()
        os.environ.update(
            RANK=str(task.rank),
            WORLD_SIZE=str(task.world),
            LOCAL_RANK=str(task.local_rank),
            LOCAL_WORLD_SIZE=str(task.local_tasks),
            MASTER_ADDR=task.address,
            MASTER_PORT=str(task.port),
        )
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
