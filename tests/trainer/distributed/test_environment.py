"""What SLURM's variables come to. Real ones are in tests/cluster/."""

import pytest

from trainer.config.compose import compose_config
from trainer.config.schema import Config
from trainer.distributed.environment import (
    first_host,
    launched,
    local_rank_from_environment,
    rank_from_environment,
    read_task,
    slurm_job_from_environment,
    tasks_per_node,
)
from trainer.errors import UserError
from trainer.launch.names import name_after_job

STEP = {
    "SLURM_JOB_ID": "512345",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "node[03-04]",
}


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of srun's."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[1-4,7]", "node1"),
        ("node[03,05-06]", "node03"),
        ("gpu-a[9-12]-ib,login1", "gpu-a9-ib"),
        ("r[1-2]n[07-09]", "r1n07"),
        ("a,node[1-2]", "a"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, host: str):
    assert first_host(nodes) == host


@pytest.mark.parametrize(("text", "counts"), [("4", [4]), ("2(x3)", [2, 2, 2]), ("2(x2),1", [2, 2, 1]), ("3,1(x2)", [3, 1, 1])])
def test_tasks_of_each_node(text: str, counts: list[int]):
    assert tasks_per_node(text) == counts


def test_a_task_knows_its_place_and_where_to_meet(step: None):
    task = read_task()
    assert (task.rank, task.world, task.local_rank, task.local_tasks) == (3, 4, 1, 2)
    assert (task.address, task.port) == ("node03", 22347)
    assert launched()
    assert (rank_from_environment(), local_rank_from_environment()) == (3, 1)


def test_what_the_batch_script_exports_comes_first(step: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert (read_task().address, read_task().port) == ("10.0.0.1", 1234)


@pytest.mark.parametrize("missing", ["SLURM_NODEID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"])
def test_what_srun_has_not_said_is_named(step: None, monkeypatch: pytest.MonkeyPatch, missing: str):
    monkeypatch.delenv(missing)
    with pytest.raises(UserError, match=missing):
        read_task()


def test_the_shell_of_a_batch_script_is_no_task(step: None, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in STEP if name.startswith("SLURM_STEP")]:
        monkeypatch.delenv(name)
    assert not launched()


def test_the_shell_of_salloc_is_no_task(step: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not launched()


def named(*overrides: str) -> Config:
    config = compose_config(list(overrides))
    name_after_job(config, list(overrides))
    return config


def test_a_run_without_a_name_takes_the_job_s(step: None):
    assert named().run.dir == "runs/limoe-512345"
    assert named("experiment=demo").run.name == "demo-512345"


@pytest.mark.parametrize("override", ["run.name=mine", "run.dir=/somewhere/else"])
def test_a_name_that_was_given_stays(step: None, override: str):
    assert named(override) == compose_config([override])


def test_outside_of_jobs_names_stay(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert named() == compose_config([])


def test_what_is_known_of_the_job(step: None, monkeypatch: pytest.MonkeyPatch):
    for name in ("SLURM_JOB_NAME", "SLURM_JOB_PARTITION", "SLURM_CLUSTER_NAME", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "512340")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "5")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[03-04]")
    assert slurm_job_from_environment() == {
        "job_id": "512345",
        "array_job_id": "512340",
        "array_task_id": "5",
        "node_list": "node[03-04]",
    }
    monkeypatch.delenv("SLURM_JOB_ID")
    assert slurm_job_from_environment() == {}
