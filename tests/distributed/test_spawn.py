"""The helper of these tests: a rank that fails, dies or hangs ends the call with its story, and leaves no process behind."""

import os
import time

import pytest
import torch

from tests.distributed.spawn import RanksFailed, run_distributed
from trainer.distributed.processes import Processes

pytestmark = pytest.mark.slow


def rank_and_tensor(processes: Processes) -> tuple[int, torch.Tensor]:
    """A result that holds a tensor."""
    return processes.rank, torch.ones(2)


def misbehave(processes: Processes, how: str) -> None:
    """Rank 1 does, while rank 0 waits for it."""
    if processes.rank == 1:
        if how == "raises":
            raise ValueError("not what was asked for")
        if how == "dies":
            os._exit(3)
        time.sleep(60)
    processes.barrier()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_results_come_in_rank_order(world):
    results = run_distributed(rank_and_tensor, world)
    assert [rank for rank, _ in results] == list(range(world))
    assert all(torch.equal(tensor, torch.ones(2)) for _, tensor in results)


@pytest.mark.parametrize(
    ("how", "told"),
    [("raises", "not what was asked for"), ("dies", "rank 1: died without a message"), ("hangs", "were not finished after 5 s")],
)
def test_a_rank_that_misbehaves_ends_the_call(how, told):
    started = time.monotonic()
    with pytest.raises(RanksFailed, match=told):
        run_distributed(misbehave, 2, how, seconds=5)
    assert time.monotonic() - started < 40, "nobody waits for those that hang"
