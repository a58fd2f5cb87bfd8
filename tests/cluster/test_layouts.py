"""Experts inside a node and across nodes train the same model: losses and norms equal those of plain torch in one process."""

import json
import sys
from pathlib import Path

import pytest

from tests.cluster.layouts import LAYOUTS, NODES, STEPS, TASKS
from tests.cluster.slurm_lab import ROOT, SlurmLab
from tests.distributed.setups import plain_torch, tiny

pytestmark = pytest.mark.cluster


def test_experts_in_a_node_and_across_nodes_train_like_one_process(lab: SlurmLab, tmp_path: Path):
    out = tmp_path / "losses.json"
    # A bare srun, as in an allocation that a person works in: the program finds rank, address and port by itself.
    options = [f"--nodes={NODES}", f"--ntasks-per-node={TASKS}", "--cpus-per-task=1", f"--chdir={ROOT}", "--kill-on-bad-exit=1"]
    program = [sys.executable, "-m", "tests.cluster.layouts", str(out)]
    lab.call("exec", "srun", *options, *program, OMP_NUM_THREADS="1")
    result = json.loads(out.read_text())
    assert result["hosts"] == [f"node{node}" for node in range(1, NODES + 1) for _ in range(TASKS)]
    expected = plain_torch(tiny(), STEPS, [])
    for layout in LAYOUTS:
        losses, norms = zip(*result["losses"][str(layout)], strict=True)
        assert losses == pytest.approx(expected.losses, rel=1e-5), layout
        assert norms == pytest.approx(expected.norms, rel=1e-5), layout
