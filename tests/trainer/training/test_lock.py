"""One run at a time in a directory, whichever process or job comes second."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.training.lock import FILE, check_unclaimed, claim

SCRIPT = (
    "import sys, pathlib, trainer.training.lock as c; c.claim(pathlib.Path(sys.argv[1])); print('claimed', flush=True); input()"
)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The start of a job, whose variables a test may change."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    return monkeypatch


@pytest.fixture
def other(job: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process of job 7 that has claimed tmp_path."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


@pytest.mark.parametrize("variables", [{}, {"SLURM_JOB_ID": "70"}, {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"}])
def test_a_second_run_is_told_who_is_there(
    other: subprocess.Popen[str], tmp_path: Path, job: pytest.MonkeyPatch, variables: dict[str, str]
):
    for name, value in variables.items():
        job.setenv(name, value)
    for attempt in (claim, check_unclaimed):
        with pytest.raises(UserError, match=rf"{tmp_path} is in use by job 7 \(start 0\) on .*choose another run.dir"):
            attempt(tmp_path)


def test_what_a_process_held_is_free_at_its_end(other: subprocess.Popen[str], tmp_path: Path):
    other.kill()
    other.wait()
    check_unclaimed(tmp_path)
    claim(tmp_path)
    claim(tmp_path)


def test_a_requeued_job_goes_on_beside_the_lock_of_a_lost_node(
    other: subprocess.Popen[str], tmp_path: Path, job: pytest.MonkeyPatch
):
    job.setenv("SLURM_RESTART_COUNT", "1")
    check_unclaimed(tmp_path)
    claim(tmp_path)
    assert "job 7 (start 1)" in (tmp_path / FILE).read_text()


def test_a_look_leaves_nothing(tmp_path: Path):
    check_unclaimed(tmp_path)
    check_unclaimed(tmp_path / "none")
    assert not list(tmp_path.iterdir())
