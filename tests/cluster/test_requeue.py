"""What the batch script makes of each way a job can end. The jobs run at once; a stand-in takes the program's place."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cluster.slurm_lab import ROOT, STAND_IN, Job, SlurmLab

pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class Case:
    """play: what the program does at each start; act: what befalls the job once its log holds `when`."""

    play: str
    starts: int
    state: str
    code: str
    says: str
    options: list[str] = field(default_factory=list)
    act: Callable[[SlurmLab, Job], object] | None = None
    when: str = "ready"
    variables: dict[str, str] = field(default_factory=dict)


def command(*words: str) -> Callable[[SlurmLab, Job], object]:
    """Have the head run a command on the job."""
    return lambda lab, job: lab.call("exec", *words, job.number)


def preempt(lab: SlurmLab, job: Job) -> None:
    """An urgent job takes the node."""
    lab.call("exec", "sbatch", "--partition=urgent", "--nodelist=node4", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")


def signal_each_start(lab: SlurmLab, job: Job) -> None:
    """USR1 to the shell of two starts, as when the time limit is always nearer than the warning."""
    for start in (1, 2):
        lab.wait_for_line(job, "ready", start)
        lab.call("exec", "scancel", "--batch", "--signal=USR1", job.number)


TWO_CRASHES = {"LIMOE_MAX_CRASHES": "2"}
CASES = {
    "finished": Case("0", 1, "COMPLETED", "0:0", "start 0: 1 task(s)"),
    "mistake": Case("2", 1, "FAILED", "2:0", "not requeued: fix the error above first"),
    "interrupted": Case("130:5:5", 1, "FAILED", "130:0", "interrupted and saved at step 5: not requeued"),
    "stopped": Case("85:5:5 0", 2, "COMPLETED", "0:0", "stopped and saved at step 5: requeued"),
    "not to be requeued": Case("85:5:5", 1, "FAILED", "85:0", "not requeued, as this job asks", ["--no-requeue"]),
    "crash": Case(
        "1:7:5 0",
        2,
        "COMPLETED",
        "0:0",
        "crashed at step 7, exit code 1, 1 of at most 3 times",
    ),
    "the same crash": Case(
        "1:7:5 1:7:5 0",
        2,
        "FAILED",
        "1:0",
        "error: crashed, 2 times without a new checkpoint (the last is of step 5; at step 7 7), exit code 1: not requeued",
        variables=TWO_CRASHES,
    ),
    "stopped with nothing new to save": Case(
        "85:5:5 85:5:5 85:5:5",
        3,
        "FAILED",
        "85:0",
        "error: asked to stop before it could save, 2 times without a new checkpoint (the last is of step 5",
        variables=TWO_CRASHES,
    ),
    "crashes between checkpoints": Case(
        "1:7:5 1:9:8 1:12:11 0", 4, "COMPLETED", "0:0", "at step 12, exit code 1, 1 of at most 2 times", variables=TWO_CRASHES
    ),
    "signal to the tasks": Case(
        "wait 0", 2, "COMPLETED", "0:0", "stopped and saved at step 7: requeued", act=command("scancel", "--signal=USR1")
    ),
    "signal to the shell": Case(
        "wait 0", 2, "COMPLETED", "0:0", "stopped and saved at step 7", act=command("scancel", "--batch", "--signal=USR1")
    ),
    # SLURM looks at the time every half a minute, and warns if the next look would be too late: not before 20 s after the start.
    "time limit": Case(
        "wait 0", 2, "COMPLETED", "0:0", "stopped and saved at step 7: requeued", ["--time=6", "--signal=B:USR1@310"]
    ),
    "signal too early": Case(
        "deaf 0",
        2,
        "COMPLETED",
        "0:0",
        "asked to stop before it could save at step 0, exit code 138, 1 of at most 3 times without a new checkpoint: requeued",
        act=command("scancel", "-b", "-s", "USR1"),
    ),
    "signal during the check": Case(
        "none 0",
        2,
        "COMPLETED",
        "0:0",
        "asked to stop before it could save at step 0, exit code 0, 1 of at most 3 times without a new checkpoint: requeued",
        act=command("scancel", "-b", "-s", "USR1"),
        when="checking",
        variables={"CHECKS": "2:0"},
    ),
    "the check crashes": Case(
        "none 0", 2, "COMPLETED", "0:0", "crashed at step 0, exit code 137, 1 of at most 3", variables={"CHECKS": "0:137"}
    ),
    "the check finds a mistake": Case(
        "none", 1, "FAILED", "2:0", "not requeued: fix the error above first", variables={"CHECKS": "0:2"}
    ),
    "requeued by a person": Case(
        "wait 0", 2, "COMPLETED", "0:0", "SLURM is already ending this job", act=command("scontrol", "requeue")
    ),
    "cancelled": Case("wait 0", 1, "CANCELLED", "85:0", "SLURM is already ending this job", act=command("scancel")),
    "preempted": Case("wait 0", 2, "COMPLETED", "0:0", "saved at step 7", ["--nodelist=node4", "--exclusive"], act=preempt),
    "always signalled too early": Case(
        "deaf deaf",
        2,
        "FAILED",
        "138:0",
        "error: asked to stop before it could save, 2 times without a new checkpoint (the last is of step 0; at step 0 0), "
        "exit code 138: not requeued; is the time limit longer than the warning before it (--signal)?",
        act=signal_each_start,
        variables=TWO_CRASHES,
    ),
}
OVERRIDES = ["data.train=/x/{000..003}.tar", "run.name=a b", "log.project='\"q\"'", "$HOME", "*"]


@pytest.fixture(scope="module")
def jobs(lab: SlurmLab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """A job a case: submitted, and with what befalls it."""
    folder = tmp_path_factory.mktemp("jobs")
    submitted = {}
    for name, case in CASES.items():
        options = ["--ntasks=1", *(case.options if "--exclusive" in case.options else ["--exclude=node4", *case.options])]
        variables = {"LIMOE_PYTHON": str(STAND_IN), "PLAY": case.play} | case.variables
        submitted[name] = lab.submit(folder, options, OVERRIDES, **variables)
    for name, case in CASES.items():
        if case.act is not None:
            lab.wait_for_line(submitted[name], case.when)
            case.act(lab, submitted[name])
    return submitted


@pytest.mark.parametrize("name", CASES)
def test_the_job_ends_as_it_should(lab: SlurmLab, jobs: dict[str, Job], name: str):
    case, job = CASES[name], jobs[name]
    ended = lab.end(job)
    text = job.text()
    assert (ended["JobState"], ended["ExitCode"]) == (case.state, case.code), text
    assert int(ended["Restarts"]) == case.starts - 1, text
    assert text.count("train.sbatch: start ") == case.starts, text
    assert case.says in text
    assert text.count(": requeued\n") <= case.starts - 1
    assert text.count("checking for ") == 1, "the table of the run is printed once, not at every start"


def test_overrides_arrive_as_they_were_typed(lab: SlurmLab, jobs: dict[str, Job]):
    lab.end(jobs["finished"])
    assert ": <-m> <trainer.train> " + " ".join(f"<{word}>" for word in OVERRIDES) in jobs["finished"].text()


def test_a_task_a_gpu_and_a_log_a_rank(lab: SlurmLab, tmp_path: Path):
    options = ["--nodes=2", "--gpus-per-node=2", "--cpus-per-gpu=3"]
    job = lab.submit(tmp_path, options, [], LIMOE_PYTHON=str(STAND_IN), PLAY="told")
    assert lab.end(job)["ExitCode"] == "2:0"
    assert "start 0: 4 task(s), 3 CPU(s) each, on node[" in job.text()
    for rank in (1, 2, 3):
        assert (job.logs / f"rank-{rank}.log").read_text().startswith(f"start 0 of rank {rank} at")
        assert f"\nerror: seen by rank {rank}\n" in job.text(), "what other ranks met is told where a person looks"
    assert "start 0 of rank 0 at" in job.text()
    assert "start 0 of rank 1 at" not in job.text()


def project(folder: Path, site: str) -> Path:
    """A folder that the batch script takes for the project's, with a slurm/site.env."""
    for name, text in {"trainer/train.py": "", "slurm/site.env": site}.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    return folder


def test_what_the_site_sets_reaches_the_tasks_whatever_sbatch_exports(lab: SlurmLab, tmp_path: Path):
    site = f"LIMOE_PYTHON={STAND_IN}\nexport PLAY=0\nSRUN_OPTIONS+=(--label)\n"
    home = project(tmp_path / "home", site)
    job = lab.submit(tmp_path, ["--nodes=2", "--ntasks-per-node=1", "--export=LIMOE_HOME"], [], LIMOE_HOME=str(home))
    assert lab.end(job)["ExitCode"] == "0:0", job.text()
    assert "0: checking for 2\n" in job.text(), "where the program runs, it is checked too"
    assert "0: start 0 of rank 0 at" in job.text()
    assert (job.logs / "rank-1.log").read_text().startswith("start 0 of rank 1 at")


def test_a_signal_while_the_site_s_file_is_read_is_not_lost(lab: SlurmLab, tmp_path: Path):
    slow = '[ "${SLURM_RESTART_COUNT:-0}" != 0 ] || { echo loading modules; sleep 5; }'
    home = project(tmp_path / "home", f"LIMOE_PYTHON={STAND_IN}\n{slow}\n")
    (home / "slurm" / "requeue.py").symlink_to(ROOT / "slurm" / "requeue.py")
    job = lab.submit(tmp_path, ["--ntasks=1"], [], LIMOE_HOME=str(home), PLAY="none 0")
    lab.wait_for_line(job, "loading modules")
    lab.call("exec", "scancel", "--batch", "--signal=USR1", job.number)
    ended = lab.end(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), job.text()
    assert "asked to stop before it could save at step 0" in job.text()


def test_a_mistake_in_the_site_s_file_is_told(lab: SlurmLab, tmp_path: Path):
    home = project(tmp_path / "home", "SRUN_OPTIONS+=(--label\n")
    job = lab.submit(tmp_path, [], [], LIMOE_HOME=str(home))
    assert lab.end(job)["ExitCode"] == "2:0"
    assert "site.env: line 1:" in job.text()
    assert "error: slurm/site.env has a syntax error (above); nothing in it has been read" in job.text()
    assert "start 0" not in job.text()


def test_a_port_that_is_taken_is_left_alone(lab: SlurmLab, tmp_path: Path):
    options = ["--nodelist=node1", "--ntasks=1", "--hold"]
    job = lab.submit(tmp_path, options, [], LIMOE_PYTHON=str(STAND_IN), PLAY="0")
    port = 20_000 + int(job.number) % 10_000
    listen = f"import socket, time; s = socket.create_server(('', {port})); print('listens', flush=True); time.sleep(600)"
    with lab.start_on("node1", sys.executable, "-c", listen) as listener:
        assert listener.stdout and listener.stdout.readline() == "listens\n"
        lab.call("exec", "scontrol", "release", job.number)
        lab.end(job)
        listener.kill()
    assert f"at node1:{port + 1}: <-m>" in job.text()


def test_gpus_without_cores_are_an_error(lab: SlurmLab, tmp_path: Path):
    job = lab.submit(tmp_path, ["--gpus-per-node=2"], [], LIMOE_PYTHON=str(STAND_IN), PLAY="0")
    assert lab.end(job)["ExitCode"] == "2:0"
    assert "error: 2 tasks share 1 CPUs per node: give each some with --cpus-per-gpu or --cpus-per-task" in job.text()


def test_gpus_that_nodes_got_different_numbers_of_are_an_error(lab: SlurmLab, tmp_path: Path):
    job = lab.submit(tmp_path, ["--nodes=2", "--gpus=3", "--cpus-per-gpu=2"], [], LIMOE_PYTHON=str(STAND_IN), PLAY="0")
    assert lab.end(job)["ExitCode"] == "2:0"
    assert "error: --gpus=3 came to different numbers on the 2 nodes: ask for --gpus-per-node" in job.text()


@pytest.mark.parametrize(
    ("options", "tasks"),
    [(["--gpus=8", "--cpus-per-gpu=2"], 8), (["--gpus-per-task=1", "--ntasks-per-node=2", "--cpus-per-task=2"], 4)],
)
def test_other_ways_to_ask_for_gpus(lab: SlurmLab, tmp_path: Path, options: list[str], tasks: int):
    job = lab.submit(tmp_path, ["--nodes=2", *options], [], LIMOE_PYTHON=str(STAND_IN), PLAY="0")
    ended = lab.end(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), job.text()
    assert f"start 0: {tasks} task(s), 2 CPU(s) each, on node[" in job.text()


def test_a_node_without_python_leaves_the_exit_code(lab: SlurmLab, tmp_path: Path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "srun", "mkdir", "touch", "head", "scontrol"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    variables = {"LIMOE_PYTHON": str(STAND_IN), "PLAY": "85:5:5"}
    job = lab.submit(tmp_path, ["--ntasks=1", f"--export=ALL,PATH={tools}"], [], **variables)
    assert lab.end(job)["ExitCode"] == "85:0"
    assert "warning: there is no python3 here, so nothing will requeue this job" in job.text()


def test_without_scontrol_the_exit_code_and_a_line_remain(lab: SlurmLab, tmp_path: Path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "srun", "mkdir", "touch", "find", "tail", "grep", "sort", "head", "sleep", "cat", "timeout", "python3"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    variables = {"LIMOE_PYTHON": str(STAND_IN), "PLAY": "85:5:5"}
    job = lab.submit(tmp_path, ["--ntasks=1", f"--export=ALL,PATH={tools}"], [], **variables)
    ended = lab.end(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "85:0"), job.text()
    assert "stopped and saved at step 5, but scontrol is not here to requeue the job" in job.text()


def test_a_folder_that_is_not_the_project_is_named(lab: SlurmLab, tmp_path: Path):
    job = lab.submit(tmp_path, [], [], LIMOE_HOME=str(tmp_path))
    assert lab.end(job)["ExitCode"] == "2:0"
    assert f"error: {tmp_path} is not the project's folder" in job.text()
