"""A run on two machines, which W&B shows as one."""

import os
import socket
from pathlib import Path

import pytest

from tests.distributed.spawn import run_distributed
from tests.distributed.test_runs import COMMON, TWO
from tests.trainer.reporting.wandb_server import FakeServer
from trainer.config.compose import compose_config
from trainer.distributed.processes import Processes
from trainer.training.run import train

pytestmark = pytest.mark.slow


def train_on_two_machines(processes: Processes, overrides: list[str], url: str, home: str) -> int:
    """Train where each rank has a host name, and a wandb, of its own."""
    for name in ("WANDB_SERVICE", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_PROJECT", "WANDB_ENTITY"):
        os.environ.pop(name, None)
    os.environ |= {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0123456789" * 4, "WANDB_ERROR_REPORTING": "false", "HOME": home}
    socket.gethostname = lambda: f"node{processes.rank}"
    return train(compose_config(overrides), processes)


def test_one_process_per_machine_adds_its_system_metrics(tmp_path: Path):
    settings = [f"data.cache={tmp_path / 'cache'}", f"run.dir={tmp_path / 'run'}", "train.steps=20", "log.wandb=online"]
    with FakeServer() as server:
        codes = run_distributed(train_on_two_machines, 2, [*COMMON, *TWO, *settings], server.url, str(tmp_path))
        assert codes == [0, 0]
        assert server.labels() == {"node0", "node1"}
        assert len(server.streams) == 1
        assert [row["step"] for row in server.rows("wandb-history.jsonl") if "train/loss" in row][-1] == 20
        assert server.exits == [0], "only the first machine ends the run"
        upserts = server.calls("UpsertBucket")
        assert {call["name"] for call in upserts} == {(tmp_path / "run" / "wandb_run_id").read_text().strip()}
        assert {call["displayName"] for call in upserts} == {"limoe", None}, "the other machine leaves the run's name alone"
        assert {call["host"] for call in upserts} == {"node0", None}
    assert (tmp_path / "run" / "wandb_run_shared").exists(), "or a requeue would write over it"
