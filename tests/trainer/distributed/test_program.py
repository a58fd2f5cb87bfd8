"""Who speaks when a program fails, and what is said. Whole programs are in tests/distributed/."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

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
def store() -> dist.Store:
    """The store that ranks meet by."""
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=5))
    return store


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", str(rank))


def rank_of(world: int, rank: int, store: dist.Store | None = None) -> Processes:
    return Processes(rank, world, rank, torch.device("cpu"), store=store)


@pytest.mark.parametrize("rank", [0, 3])
def test_the_first_rank_tells_and_the_others_let_it_be_the_first_to_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], slept: list[float], rank: int
):
    as_rank(monkeypatch, rank)
    with pytest.raises(SystemExit) as ended:
        exit_with(UserError("what, where and how to fix it"))
    assert ended.value.code == 2
    assert capsys.readouterr().err == ("error: what, where and how to fix it\n" if rank == 0 else "")
    assert bool(slept) == (rank != 0)


def test_torchruns_report_gets_the_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slept: list[float]):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit):
        exit_with(UserError("a mistake"))
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert message["message"] == message["extraInfo"]["py_callstack"] == "error: a mistake"
    assert int(message["extraInfo"]["timestamp"]) > 0


def test_one_rank_alone_is_the_first_to_speak(store: dist.Store):
    assert [program._is_first_to_speak(rank_of(3, rank, store)) for rank in (2, 0, 1)] == [True, False, False]


def test_the_rank_that_said_nothing_is_named(store: dist.Store, slept: list[float]):
    for rank in (0, 2, 3):
        program._is_first_to_speak(rank_of(4, rank, store))
    assert program._name_the_lost(rank_of(4, 0, store)).startswith("error: rank 1 died without a message")


def test_ranks_that_wait_but_live_are_not_named(monkeypatch: pytest.MonkeyPatch, store: dist.Store):
    """NCCL tells the neighbour of a dead rank alone."""
    for rank in range(4):
        store.set(f"limoe/alive/{rank}", f"7 node{rank} training step 9")
    program._is_first_to_speak(rank_of(4, 0, store))

    def others_beat(seconds: float) -> None:
        for rank in (1, 3):
            store.set(f"limoe/alive/{rank}", f"8 node{rank} training step 9")

    monkeypatch.setattr(program.time, "sleep", others_beat)
    assert program._name_the_lost(rank_of(4, 0, store)).startswith("error: rank 2 died without a message")


def test_many_silent_ranks_are_not_all_named(monkeypatch: pytest.MonkeyPatch, store: dist.Store, slept: list[float]):
    monkeypatch.setattr(program, "LAST_WORDS_SECONDS", 0.0)
    program._is_first_to_speak(rank_of(64, 0, store))
    assert program._name_the_lost(rank_of(64, 0, store)).startswith(
        "error: ranks 1, 2, 3, 4, 5, 6, 7, 8, … died without a message"
    )


def test_when_all_ranks_lost_each_other_it_is_the_network(store: dist.Store, slept: list[float]):
    for rank in range(3):
        program._is_first_to_speak(rank_of(3, rank, store))
    assert "check the network" in program._name_the_lost(rank_of(3, 0, store))


def test_without_the_store_one_rank_a_host_names_its_keeper(monkeypatch: pytest.MonkeyPatch):
    class Gone:
        def check(self, keys: list[str]) -> bool:
            raise dist.DistNetworkError("the server has gone")

        def set(self, key: str, value: str) -> None:
            raise dist.DistNetworkError("the server has gone")

    store: Any = Gone()
    ranks = [Processes(rank, 8, rank, torch.device("cpu"), store=store) for rank in range(4)]
    assert [program._is_first_to_speak(rank) for rank in ranks] == [True, True, False, False]
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert program._name_the_lost(ranks[1]).startswith("error: rank 0 died without a message")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "node7")
    for rank in ranks[:2]:  # rank 0 would otherwise name itself
        assert program._name_the_lost(rank).startswith("error: the launcher on node7, which connects the ranks,")


NCCL = "NCCL error in: ProcessGroupNCCL.cpp:3690, {}, NCCL version 2.29.3\n{}"
REMOTE = NCCL.format("remote process exited or there was a network error", "ncclRemoteError: A call failed possibly due to …")
MEMORY = NCCL.format("unhandled cuda error (run with NCCL_DEBUG=INFO for details)", "Cuda failure 2 'out of memory'")
INTERFACE = NCCL.format("invalid usage", "ncclInvalidUsage: Bootstrap : no socket interface found")


@pytest.mark.parametrize(
    ("problem", "lost"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:1"), True),
        (RuntimeError("[gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (dist.DistNetworkError("Broken pipe"), True),
        (dist.DistStoreError("wait timeout after 2000ms, keys: /start-0/0//1//cpu//0/1"), True),
        (dist.DistBackendError(REMOTE), True),
        (dist.DistBackendError("NCCL communicator was aborted on rank 1"), True),
        (dist.DistBackendError(MEMORY), False),
        (dist.DistBackendError(INTERFACE), False),
        (torch.OutOfMemoryError("CUDA out of memory, of which NCCL holds 2 GiB"), False),
        (RuntimeError("NCCL is not built in"), False),
        (RuntimeError("The size of tensor a (3) must match"), False),
        (RuntimeError("the loader said: Broken pipe"), False),
        (ConnectionResetError("Connection reset by peer"), False),
    ],
)
def test_a_lost_peer_is_told_from_other_failures_by_its_type(problem: Exception, lost: bool):
    assert program.is_lost_contact(problem) == lost


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> list[int]:
    """The exit codes with which the process would have ended."""
    codes: list[int] = []

    def leave(code: int) -> NoReturn:
        codes.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(program.os, "_exit", leave)
    return codes


def fails(problem: Exception, processes: Processes) -> None:
    """What a rank does that met a problem."""
    try:
        raise problem
    except Exception as met:
        with pytest.raises(SystemExit):
            program._leave_failed(met, processes)


def test_what_was_seen_when_contact_was_lost_is_told(
    store: dist.Store, left: list[int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("LIMOE_LOGS", raising=False)
    fails(dist.DistBackendError(REMOTE), rank_of(2, 0, store))
    told = capsys.readouterr().err
    assert told.startswith("error: rank 1 died without a message")
    assert told.endswith("(rank 0 saw DistBackendError: " + REMOTE.splitlines()[0] + ")\n")
    assert left == [1]


def test_a_failure_inside_nccl_keeps_its_traceback(store: dist.Store, left: list[int], capsys: pytest.CaptureFixture[str]):
    fails(dist.DistBackendError(MEMORY), rank_of(2, 0, store))
    told = capsys.readouterr().err
    assert "in fails" in told and "out of memory" in told
    assert told.splitlines()[-1].startswith("error: rank 0 failed: DistBackendError: NCCL error in:")


MEMORY_OF_A_GPU = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.02 GiB is free. Process "
    "7 has 78.07 GiB memory in use. Of the allocated memory 75.3 GiB is allocated by PyTorch. See documentation for Memory "
    "Management"
)


def test_too_little_memory_of_a_gpu_is_a_line_that_says_what_to_change(
    store: dist.Store, left: list[int], capsys: pytest.CaptureFixture[str]
):
    processes = rank_of(3, 1, store)
    processes.watchdog.note("training step 7")
    fails(torch.OutOfMemoryError(MEMORY_OF_A_GPU), processes)
    fails(torch.OutOfMemoryError(MEMORY_OF_A_GPU), rank_of(3, 2, store))  # the next to notice says nothing more
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: rank 1 has too little GPU memory (CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
        "79.10 GiB of which 1.02 GiB is free), in: training step 7. For training, raise train.accumulate, "
    )
    assert left == [1, 1]


@pytest.mark.parametrize("speaks", [True, False])
def test_a_rank_with_a_log_of_its_own_keeps_the_traceback_there(
    store: dist.Store, left: list[int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, speaks: bool
):
    monkeypatch.setenv("LIMOE_LOGS", "logs")
    if not speaks:
        program._is_first_to_speak(rank_of(3, 2, store))
    fails(dist.DistNetworkError("Broken pipe"), rank_of(3, 1, store))
    told = capsys.readouterr().err
    assert "in fails" in told and "DistNetworkError: Broken pipe" in told
    assert ("error: " in told) == speaks


def test_rank_0_keeps_the_traceback_in_train_log(store: dist.Store, left: list[int], caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    fails(dist.DistNetworkError("Broken pipe"), rank_of(2, 0, store))
    assert "in fails" in caplog.text and "Broken pipe" in caplog.text


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
    with pytest.raises(UserError, match=r"run.device=cuda, but torch finds no CUDA device here"):
        start_processes("cuda")
    with pytest.raises(UserError, match=r"run.device=gpu: choose auto, cpu or cuda"):
        start_processes("gpu")
