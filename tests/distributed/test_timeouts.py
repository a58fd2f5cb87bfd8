"""One time-out bounds the wait for a lost peer, in whichever group a collective runs."""

from datetime import timedelta

import pytest
import torch.distributed as dist

from tests.distributed.setups import Layout, TinyRun, tiny
from tests.distributed.spawn import run_distributed
from trainer.distributed.processes import Processes

pytestmark = pytest.mark.slow


def timeouts(processes: Processes) -> list[timedelta]:
    """Of every group that this rank is in, once a run is built."""
    TinyRun(tiny(Layout(2, 2, 1)), processes)
    groups = list(dist.distributed_c10d._world.pg_map)
    return [group._get_backend(processes.device).options._timeout for group in groups]


def test_the_groups_that_deepspeed_makes_wait_no_longer_than_the_whole():
    for found in run_distributed(timeouts, 2):
        assert len(found) > 1
        assert set(found) == {timedelta(minutes=1)}  # what run_distributed asks for
