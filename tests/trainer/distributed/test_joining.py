"""What a process sets up before it joins the others."""

import logging
import os
import resource
from pathlib import Path

import pytest

from trainer.distributed import joining

LIMIT = {"soft": 1024, "hard": 4096}


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The limits of open files that the system has."""
    limits = dict(LIMIT)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits["soft"], limits["hard"]))
    monkeypatch.setattr(resource, "setrlimit", lambda which, values: limits.update(soft=values[0], hard=values[1]))
    return limits


@pytest.mark.parametrize(("world", "warned"), [(8, False), (512, False), (1024, True)])
def test_the_limit_of_open_files_is_raised_and_told_where_it_is_too_low(
    limits: dict[str, int], caplog: pytest.LogCaptureFixture, world: int, warned: bool
):
    joining.raise_open_files(world)
    assert limits == {"soft": 4096, "hard": 4096}
    assert ("4096 files here" in caplog.text) == warned


def test_without_a_hard_limit_there_is_nothing_to_warn_of(limits: dict[str, int], caplog: pytest.LogCaptureFixture):
    limits["hard"] = resource.RLIM_INFINITY
    with caplog.at_level(logging.WARNING):
        joining.raise_open_files(100_000)
    assert limits["soft"] == resource.RLIM_INFINITY
    assert not caplog.text


def test_a_real_limit_can_be_raised():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
        joining.raise_open_files(2)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


VARIABLES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_FR_DUMP_TEMP_FILE")


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No word about the flight recorder, before and after."""
    for name in (*VARIABLES, "TORCH_NCCL_TRACE_BUFFER_SIZE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"):
        monkeypatch.setenv(name, "")  # so that what the test sets goes again
        monkeypatch.delenv(name)


def test_the_flight_recorder_is_on(clean: None, tmp_path: Path):
    joining.record_collectives(tmp_path)
    assert [os.environ[name] for name in VARIABLES] == ["2000", "1", f"{tmp_path}/nccl-trace-rank-"]


def test_what_a_user_says_of_the_flight_recorder_stays(clean: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TORCH_NCCL_TRACE_BUFFER_SIZE", "0")  # its names in older releases
    monkeypatch.setenv("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "/scratch/trace-")
    monkeypatch.setenv("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")
    joining.record_collectives(tmp_path)
    assert [os.environ[name] for name in VARIABLES] == ["0", "0", "/scratch/trace-"]
