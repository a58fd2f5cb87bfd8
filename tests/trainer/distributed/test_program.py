"""Who speaks when a program fails, and what is said. Whole programs are in tests/distributed/."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from trainer.distributed import program
from trainer.distributed.processes import Processes, start_processes
from trainer.distributed.program import exit_with
from trainer.errors import UserError


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the program waits, instead of waiting."""
    slept: list[float] = []
    monkeypatch.setattr(program.time, "sleep", slept.append)
    return slept


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    """The store that ranks meet by."""
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=5))
    monkeypatch.setattr(program, "_store", lambda: store)
    return store


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", str(rank))


def rank_of(world: int, rank: int) -> Processes:
    return Processes(rank, world, rank, torch.device("cpu"))


@pytest.mark.parametrize("rank", [0, 3])
def test_the_first_rank_tells_and_the_others_let_it_be_the_first_to_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], slept: list[float], rank: int
):
    as_rank(monkeypatch, rank)
    with pytest.raises(SystemExit) as ended:
        exit_with(UserError("what, where and how to mend it"))
    assert ended.value.code == 2
    assert capsys.readouterr().err == ("error: what, where and how to mend it\n" if rank == 0 else "")
    assert bool(slept) == (rank != 0)


def test_torchruns_report_gets_the_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slept: list[float]):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit):
        exit_with(UserError("a mistake"))
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert message["message"] == message["extraInfo"]["py_callstack"] == "error: a mistake"
    assert int(message["extraInfo"]["timestamp"]) > 0


def test_one_rank_alone_is_the_first_to_speak(store: dist.Store):
    assert [program._is_first_to_speak(rank_of(3, rank)) for rank in (2, 0, 1)] == [True, False, False]


def test_the_rank_that_said_nothing_is_named(store: dist.Store, slept: list[float]):
    for rank in (0, 2, 3):
        program._is_first_to_speak(rank_of(4, rank))
    assert program._name_the_lost(rank_of(4, 0)).startswith("error: rank 1 ended without a word")


def test_many_silent_ranks_are_not_all_named(monkeypatch: pytest.MonkeyPatch, store: dist.Store, slept: list[float]):
    monkeypatch.setattr(program, "LAST_WORDS_SECONDS", 0.0)
    program._is_first_to_speak(rank_of(64, 0))
    assert program._name_the_lost(rank_of(64, 0)).startswith("error: ranks 1, 2, 3, 4, 5, 6, 7, 8, … ended without a word")


def test_when_all_ranks_lost_each_other_it_is_the_network(store: dist.Store, slept: list[float]):
    for rank in range(3):
        program._is_first_to_speak(rank_of(3, rank))
    assert "look at the network" in program._name_the_lost(rank_of(3, 0))


def test_without_the_store_one_rank_a_host_names_its_keeper(monkeypatch: pytest.MonkeyPatch):
    def gone() -> dist.Store:
        raise dist.DistNetworkError("the server has gone")

    monkeypatch.setattr(program, "_store", gone)
    spoke = [rank for rank in range(4) if program._is_first_to_speak(Processes(rank, 8, rank, torch.device("cpu")))]
    assert spoke == [0, 1]
    assert program._name_the_lost(rank_of(8, 1)).startswith("error: rank 0 ended without a word")


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("[../gloo/pair.cc:525] Connection closed by peer [127.0.0.1]:1", True),
        ("NCCL communicator was aborted on rank 1", True),
        ("The size of tensor a (3) must match", False),
    ],
)
def test_a_lost_peer_is_told_from_a_bug(text: str, lost: bool):
    assert program._is_lost_contact(RuntimeError(text)) == lost


def test_half_of_a_launchers_variables_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE is set, but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        start_processes("cpu")


def test_processes_that_cannot_meet_are_told_where(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")  # nobody listens there
    with pytest.raises(UserError, match=r"rank 1 of 2 could not join the others at 127.0.0.1:1 "):
        start_processes("cpu", timeout_minutes=0.02)


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"run.device=cuda, but torch sees no CUDA device here"):
        start_processes("cuda")
    with pytest.raises(UserError, match=r"run.device=gpu: choose auto, cpu or cuda"):
        start_processes("gpu")
