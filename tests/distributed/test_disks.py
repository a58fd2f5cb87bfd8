"""Disks as they are: one that is full in the middle of a run, and one that may only be read."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.spawn import run_distributed
from tests.distributed.test_runs import COMMON, TWO, in_forks, losses_in, run_program
from trainer.checkpoint.files import complete_checkpoints, damage_among, read_marker
from trainer.distributed.processes import Processes
from trainer.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, which has room for few checkpoints."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"only root may mount a small disk: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def what_stops(processes: Processes, overrides: list[str]) -> str:
    """The line that the program ends with."""
    try:
        code = run_program(processes, overrides)
    except UserError as problem:
        return str(problem)
    return f"exit code {code}"


def test_a_disk_that_fills_up_loses_nothing_and_the_run_goes_on_when_there_is_room(small_disk, tmp_path, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    settings = [*TWO, "train.steps=16", "checkpoint.every_steps=2", "checkpoint.keep=100"]
    whole = in_forks(2, tmp_path / "whole", cache, *settings)
    run_dir = small_disk / "run"
    overrides = [*COMMON, f"data.cache={cache}", f"run.dir={run_dir}", *settings]
    first, second = run_distributed(what_stops, 2, overrides)
    assert first == second
    assert "could not be written" in first
    assert "No space left on device" in first
    kept = complete_checkpoints(run_dir)
    assert kept, "the disk has room for one"
    assert f"the last complete one, {kept[-1].name}, is intact" in first
    for checkpoint in kept:
        records = read_marker(checkpoint)
        assert damage_among(checkpoint, records, list(records)) is None
    assert [path.name for path in (run_dir / "checkpoints").iterdir() if path not in kept] == [], "room for the next try"
    remount(small_disk, "size=64m")
    assert run_distributed(run_program, 2, overrides) == [0, 0]
    assert losses_in(run_dir) == pytest.approx(whole, rel=1e-6)


def test_a_run_may_be_told_to_go_on_without_room(small_disk, tmp_path_factory):
    run_dir = small_disk / "run"
    settings = [*TWO, "train.steps=16", "checkpoint.every_steps=2", "checkpoint.keep=100", "checkpoint.on_failure=continue"]
    overrides = [*COMMON, f"data.cache={tmp_path_factory.mktemp('cache')}", f"run.dir={run_dir}", *settings]
    with_last = run_distributed(what_stops, 2, overrides)[0]
    assert "the checkpoint of step 16 could not be written" in with_last, "all steps were taken; only the last must not be lost"
    assert complete_checkpoints(run_dir)


def test_a_disk_that_may_only_be_read_is_told_at_the_start(small_disk, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    remount(small_disk, "ro")
    overrides = [*COMMON, f"data.cache={cache}", f"run.dir={small_disk / 'run'}", *TWO, "train.steps=3"]
    first, second = run_distributed(what_stops, 2, overrides)
    assert first == second
    assert "the run directory" in first
    assert "Read-only file system" in first
    assert "\n" not in first
