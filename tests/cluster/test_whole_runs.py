"""The program itself on several nodes: to its end, over a signal, after the crash of a node and with its cable pulled out."""

import json
import re
from pathlib import Path

import pytest

from tests.cluster.slurm_lab import Job, SlurmLab, wait_for
from tests.distributed.program import TINY
from trainer.checkpoint.files import complete_checkpoints
from trainer.config.compose import load_config

pytestmark = pytest.mark.cluster

TWO_NODES = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1"]
STEPS = 40
NAME = "a b,{c}"
"""A run's name that a shell, Hydra or a list of hosts would take apart."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the embedded data set is written."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def overrides(cache: Path) -> list[str]:
    """Of every run here; steps that are long enough to be interrupted."""
    more = ["train.batch_size=64", "train.precision=fp32", "parallel.expert_parallel=2", "log.wandb=offline"]
    return [*TINY, f"data.cache={cache}", *more]


@pytest.fixture(scope="module")
def undisturbed(lab: SlurmLab, cache: Path, overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run on node1 and node2 that nothing happens to.

    node2 can only read, but for its rank's log, its share of the checkpoints, and the data set, which each host may write.
    """
    folder = tmp_path_factory.mktemp("undisturbed")
    writable = [cache, folder / "logs", folder / "runs" / NAME / "checkpoints"]
    for path in writable:
        path.mkdir(parents=True, exist_ok=True)
    for path, mode in ((folder.parent, "ro"), *((path, "rw") for path in writable)):
        lab.on("node2", "mount", "--bind", str(path), str(path))
        lab.on("node2", "mount", "-o", f"remount,bind,{mode}", str(path))
    job = lab.submit(folder, [*TWO_NODES, "--nodelist=node[1-2]"], [*overrides, f"train.steps={STEPS}", f"run.name={NAME}"])
    lab.end(job)
    for path in (*writable, folder.parent):
        lab.on("node2", "umount", str(path))
    return job


def losses(run_dir: Path) -> dict[int, float]:
    """By step, those of a step that was done again but once."""
    metrics = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def programs_on(lab: SlurmLab, node: str) -> str:
    """The processes of the trainer inside a node."""
    return lab.on(node, "bash", "-c", "grep -l 'trainer[.]train' /proc/[0-9]*/cmdline || true")


def test_a_run_on_two_nodes_ends_and_is_not_requeued(lab: SlurmLab, undisturbed: Job):
    ended = lab.show(undisturbed)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "0"), undisturbed.text()
    assert list(losses(undisturbed.folder / "runs" / NAME)) == list(range(1, STEPS + 1))
    text = undisturbed.text()
    assert "node1" in text and "node2" in text, "the table of ranks is in the job's log"
    assert f"step {STEPS}/{STEPS}" in text
    assert (undisturbed.logs / "position").read_text().split() == [str(STEPS), str(STEPS), "running"]
    assert load_config(undisturbed.folder / "runs" / NAME / "config.yaml").run.name == NAME


def test_other_ranks_write_nothing_but_their_log(undisturbed: Job):
    # node2 could not have written anything else (see the fixture), and would have failed.
    assert "Read-only file system" not in undisturbed.text()
    assert {path.name for path in undisturbed.logs.iterdir()} == {"position", "started", "rank-1.log"}
    assert {path.name for path in undisturbed.folder.iterdir()} == {"logs", "runs", undisturbed.log.name}


def test_after_a_signal_the_job_is_requeued_and_goes_on_exactly(
    lab: SlurmLab, undisturbed: Job, overrides: list[str], tmp_path: Path
):
    job = lab.submit(tmp_path, TWO_NODES, [*overrides, f"train.steps={STEPS}"])
    run_dir = tmp_path / "runs" / f"limoe-{job.number}"
    lab.wait(job, lambda: len(losses(run_dir)) > 3)
    lab.call("exec", "scancel", "--signal=USR1", job.number)
    ended = lab.end(job)
    text = job.text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), text
    assert text.count("stopped by signal") == text.count("continuing from step") == 1, text
    expected = losses(undisturbed.folder / "runs" / NAME)
    assert losses(run_dir) == pytest.approx(expected, rel=1e-6)
    identity = (run_dir / "wandb_run_id").read_text().strip()
    assert len(list((run_dir / "wandb").glob(f"offline-run-*-{identity}"))) == 2
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [run_dir.name]


def test_a_killed_run_is_requeued_and_goes_on_from_its_last_checkpoint(lab: SlurmLab, overrides: list[str], tmp_path: Path):
    more = ["parallel.expert_parallel=1", "log.wandb=disabled", "train.steps=1000000", "checkpoint.every_steps=5"]
    job = lab.submit(tmp_path, ["--ntasks=1", "--nodelist=node4"], [*overrides, *more, "run.name=killed"])
    run_dir = tmp_path / "runs" / "killed"
    lab.wait(job, lambda: bool(complete_checkpoints(run_dir)))
    signal_program(lab, "node4", "KILL")
    lab.wait_for_line(job, "continuing from step")
    text = job.text()
    lab.call("exec", "scancel", job.number)
    lab.end(job)
    told = re.search(r"crashed at step (\d+), exit code 137, 1 of at most 3 times.*: requeued", text)
    went_on = re.search(r"continuing from step (\d+) of", text)
    assert told and went_on, job.last_lines()
    assert int(went_on[1]) % 5 == 0
    assert 5 <= int(went_on[1]) <= int(told[1])


def test_after_the_crash_of_a_node_the_job_goes_on_with_fewer(lab: SlurmLab, overrides: list[str], tmp_path: Path):
    options = ["--nodes=1-2", "--cpus-per-task=1", "--exclude=node[3-4]"]
    more = ["parallel.expert_parallel=1", "log.wandb=disabled", "train.steps=1000000", "checkpoint.every_steps=5"]
    job = lab.submit(tmp_path, options, [*overrides, *more, "run.name=crash"])
    run_dir = tmp_path / "runs" / "crash"
    lab.wait(job, lambda: bool(complete_checkpoints(run_dir)))
    lab.call("crash", "node2")
    lab.wait_for_line(job, "continuing from step")
    saved = len(losses(run_dir))
    lab.wait(job, lambda: len(losses(run_dir)) > saved)
    shown = lab.show(job)
    lab.call("exec", "scancel", job.number)
    lab.end(job)
    lab.call("boot", "node2")
    assert (shown["NumNodes"], shown["NodeList"], shown["Restarts"]) == ("1", "node1", "1"), job.last_lines()
    assert "start 1: 1 task(s), 1 CPU(s) each, on node1" in job.text()
    assert "error: rank 1 died without a message" in job.text(), "the survivor names the rank of the node"


def test_a_cut_cable_leaves_no_rank_waiting(lab: SlurmLab, overrides: list[str], tmp_path: Path):
    options = [*TWO_NODES, "--nodelist=node[2-3]", "--no-requeue"]
    more = ["log.wandb=disabled", "train.steps=1000000", "parallel.lost_after_seconds=15"]
    job = lab.submit(tmp_path, options, [*overrides, *more, "run.name=cut"])
    lab.wait(job, lambda: len(losses(tmp_path / "runs" / "cut")) > 3)
    assert programs_on(lab, "node2") and programs_on(lab, "node3")
    lab.call("cut", "node3")
    try:
        ended = lab.end(job)
        # SLURM cannot reach the node: its rank has to leave by itself.
        wait_for(lambda: not programs_on(lab, "node3"), lambda: f"a rank is left behind the cut cable:\n{job.last_lines()}")
    finally:
        lab.call("heal", "node3")
    assert ended["JobState"] in ("NODE_FAIL", "FAILED"), job.last_lines()
    assert "error: rank 1 " in job.text(), job.last_lines()
    assert not programs_on(lab, "node2")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_task_of_two_nodes_is_named(lab: SlurmLab, overrides: list[str], tmp_path: Path, rank: int):
    job = endless(lab, tmp_path, overrides)
    signal_program(lab, f"node{1 + rank}", "KILL")
    ended = lab.end(job)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), job.last_lines()
    named = [line for line in job.text().splitlines() if line.startswith(f"error: rank {rank} died without a message")]
    assert len(named) == 1, job.last_lines()
    assert f"(rank {1 - rank} saw RuntimeError: " in named[0]
    if rank == 0:
        assert "Traceback" in (job.logs / "rank-1.log").read_text(), "a rank's log holds what it saw"
    else:
        assert "Traceback" in (tmp_path / "runs" / "endless" / "train.log").read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_task_of_two_nodes_is_named(lab: SlurmLab, overrides: list[str], tmp_path: Path, rank: int):
    """Its connections stay open, so that no collective notices; srun ends it when the others have left."""
    job = endless(lab, tmp_path, [*overrides, "parallel.lost_after_seconds=8"], LIMOE_WAIT="25")
    signal_program(lab, f"node{1 + rank}", "STOP")
    ended = lab.end(job)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), job.last_lines()
    told = f"error: rank {rank} on node{1 + rank} has not been heard from for 8 s (last message: training step "
    assert told in job.text(), job.last_lines()
    assert not programs_on(lab, f"node{1 + rank}")


def endless(lab: SlurmLab, folder: Path, overrides: list[str], **variables: str) -> Job:
    """A run on node1 and node2 that has taken a few steps and continues until something happens to it."""
    more = ["log.wandb=disabled", "train.steps=1000000", "run.name=endless"]
    job = lab.submit(folder, [*TWO_NODES, "--nodelist=node[1-2]", "--no-requeue"], [*overrides, *more], **variables)
    lab.wait(job, lambda: len(losses(folder / "runs" / "endless")) > 3)
    return job


def signal_program(lab: SlurmLab, node: str, name: str) -> None:
    """A signal to the Python processes of a node."""
    lab.on(node, "bash", "-c", f"grep -lx 'python.*' /proc/[0-9]*/comm | cut -d/ -f3 | xargs kill -{name}")
