"""Where the ranks of these tests compute: on the CPU over gloo, or all on one GPU.

LIMOE_TEST_DEVICE=cuda puts them on the first GPU. LIMOE_TEST_BACKEND says how they talk there: `gloo` takes the tensors through
the host; `nccl` is NCCL itself, which has to believe that each rank is on a machine of its own.
"""

import os
from typing import Any

import torch
import torch.distributed as dist

from trainer.distributed import processes
from trainer.distributed.processes import Processes

DEVICE = os.environ.get("LIMOE_TEST_DEVICE", "cpu")
BACKEND = os.environ.get("LIMOE_TEST_BACKEND", "gloo")


def share_one_gpu(rank: int) -> None:
    """Let this process and its peers share a GPU, which a run refuses and NCCL too."""
    if DEVICE == "cpu":
        return
    processes._check_devices = _accept_any
    # https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html; over the loopback, because the card itself is busy
    os.environ.update(
        NCCL_HOSTID=str(rank), NCCL_NET="Socket", NCCL_SOCKET_IFNAME="lo", NCCL_P2P_DISABLE="1", NCCL_SHM_DISABLE="1"
    )
    if BACKEND != "gloo":
        return
    join = dist.init_process_group

    def join_over_gloo(_: str, **options: Any) -> None:
        join("cpu:gloo,cuda:gloo", **(options | {"device_id": None}))

    dist.init_process_group = join_over_gloo  # type: ignore[assignment]


def _accept_any(processes: Processes) -> None:
    """In place of the check that no two ranks share a GPU."""


def like_new_torch() -> None:
    """Give an older torch the names that its collectives have since 2.13."""
    for new, old in (("all_gather_single", "all_gather_into_tensor"), ("reduce_scatter_single", "reduce_scatter_tensor")):
        if not hasattr(torch.distributed, new):
            setattr(torch.distributed, new, getattr(torch.distributed, old))
