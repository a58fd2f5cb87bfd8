"""A sweep as a job array, from the command to the end of its runs, and one of its jobs that is requeued."""

import re
import sys
from pathlib import Path

import pytest

from tests.cluster.slurm_lab import ROOT, STAND_IN, Job, SlurmLab
from tests.distributed.program import TINY

pytestmark = pytest.mark.cluster


def submitted(lab: SlurmLab, folder: Path, *overrides: str, **variables: str) -> list[Job]:
    """The jobs of the array that `trainer.train -m hydra/launcher=slurm` submits; two of them."""
    environment = {"LIMOE_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-m", "trainer.train", "-m", "hydra/launcher=slurm", *overrides]
    done = lab.call("exec", "env", f"--chdir={folder}", *command, check=False, **environment)
    assert done.returncode == 0, done.stderr
    array = re.search(r"job array (\d+): 2 runs", done.stdout)
    assert array, done.stdout
    (sweep,) = (folder / "runs" / "sweeps").iterdir()
    assert all(str(sweep.relative_to(folder) / f"{index}.log") in done.stdout for index in (0, 1))
    return [ArrayTask(f"{array[1]}_{index}", sweep, str(index)) for index in (0, 1)]


class ArrayTask(Job):
    """A job of an array, whose log lies in the folder of the sweep."""

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"


def test_a_sweep_trains_each_run_in_its_own_directory(lab: SlurmLab, tmp_path: Path):
    jobs = submitted(lab, tmp_path, *TINY, f"data.cache={tmp_path}/cache", "train.steps=2", "optim.lr=1e-3,3e-4")
    for job, lr in zip(jobs, ("0.001", "0.0003"), strict=True):
        assert lab.end(job)["JobState"] == "COMPLETED", job.text()
        assert f"limoe-lr-{lr}: ready to run" in job.text(), "the batch script has checked it"
        run_dir = job.folder / f"limoe-lr-{lr}"
        assert (run_dir / "checkpoints" / "step-00000002").is_dir(), job.text()
        assert f"lr: {float(lr)}" in (run_dir / "config.yaml").read_text()


def test_a_requeue_is_of_one_job_of_the_array(lab: SlurmLab, tmp_path: Path):
    jobs = submitted(lab, tmp_path, *TINY, "seed=0,1", LIMOE_PYTHON=str(STAND_IN), PLAY="wait 0")
    for job in jobs:
        lab.wait_for_line(job, "ready")
    for job in reversed(jobs):  # the last job of an array bears its number
        lab.call("exec", "scancel", "--signal=USR1", job.number)
        ended = lab.end(job)
        assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.text()
    assert [job.text().count(": requeued\n") for job in jobs] == [1, 1]


def test_what_slurm_refuses_is_told_and_nothing_is_left(lab: SlurmLab, tmp_path: Path):
    command = [sys.executable, "-m", "trainer.train", "-m", "hydra/launcher=slurm", *TINY, "seed=0,1"]
    told = lab.call(
        "exec", "env", f"--chdir={tmp_path}", *command, "hydra.launcher.partition=none", check=False, PYTHONPATH=str(ROOT)
    )
    assert told.returncode == 2
    assert re.fullmatch(r"error: sbatch refuses the sweep: .*invalid partition.*\n", told.stderr), told.stderr
    assert not list(tmp_path.rglob("*.*"))
