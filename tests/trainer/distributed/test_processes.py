"""What keeps the processes from joining is told with what mends it."""

import pytest
import torch.distributed as dist

from trainer.distributed import processes
from trainer.distributed.processes import start_processes
from trainer.errors import UserError

FULL_MESH = "Gloo connectFullMesh failed with [pair.cc:152] timed out connecting: Connection refused, remote=[127.0.1.1]:30109$0"

INTERFACE = (
    "NCCL error in: NCCLUtils.cpp:77, invalid usage\nncclInvalidUsage: …\nLast error:\nBootstrap : no socket interface found"
)


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        (RuntimeError("The server socket has failed to listen"), "MASTER_PORT a free port"),
        (RuntimeError(FULL_MESH), "GLOO_SOCKET_IFNAME"),
        (dist.DistBackendError(INTERFACE), "no socket interface found.*set NCCL_SOCKET_IFNAME"),
        (dist.DistStoreError("Timed out after 601 seconds waiting for clients. 3/4 clients joined."), "3/4 clients.*MASTER_PORT"),
    ],
)
def test_ranks_that_cannot_join(monkeypatch: pytest.MonkeyPatch, reason: Exception, remedy: str):
    def fail(*given: object, **named: object) -> None:
        raise reason

    monkeypatch.setattr(processes, "meet", lambda timeout: dist.HashStore())
    monkeypatch.setattr(dist, "init_process_group", fail)
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "29000",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"rank 1 of 2 could not join the others at node1:29000 .*{remedy}"):
        start_processes("cpu")
