"""The benchmark of checkpoints on models small enough for a test: a row a model, sizes that are right, no file left."""

import tempfile
from pathlib import Path

import pytest

from model.count import count_parameters
from tests.distributed.spawn import run_distributed
from trainer.bench.checkpoint import COLUMNS, bench
from trainer.config.compose import compose_config
from trainer.distributed.processes import Processes

pytestmark = pytest.mark.slow


def measure(processes: Processes, models: list[str], folder: Path) -> str:
    """The table, written in a folder of the test's own."""
    tempfile.tempdir = str(folder)
    return bench(processes, models)


def test_it_measures_dense_models_beside_deepspeed_and_leaves_nothing(tmp_path: Path):
    table = run_distributed(measure, 2, ["dense_tiny", "limoe_tiny"], tmp_path)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "_tiny" in line]
    assert [row[0] for row in rows] == ["dense_tiny", "limoe_tiny"]
    assert {len(row) for row in rows} == {len(COLUMNS)}
    for row in rows:
        config = compose_config([f"model={row[0]}"])
        number, unit = row[2].split()
        # Master and two moments, and what the files' format adds.
        assert unit == "MiB"
        assert float(number) * 2**20 == pytest.approx(12 * count_parameters(config.model, config.router).total, rel=0.1)
    seconds = [float(cell.removesuffix(" s")) for row in rows for cell in row if cell.endswith(" s")]
    assert len(seconds) == 5 + 5 + 2
    dense, mixture = rows
    assert all(dense)
    assert not any(mixture[8:])
    assert list(tmp_path.iterdir()) == []
