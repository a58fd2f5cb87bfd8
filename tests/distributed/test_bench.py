"""The benchmark of checkpoints on models small enough for a test: a row a model, sizes that are right, no file left."""

import tempfile
from pathlib import Path
from typing import Any

import pytest

from model.count import count_parameters
from tests.distributed.spawn import run_distributed
from trainer.bench import accumulate, layer, step, watching
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


def watch(processes: Processes, folder: Path) -> str:
    """The table of watched and unwatched steps, with few of them."""
    tempfile.tempdir = str(folder)
    watching.PAIRS, watching.STEPS, watching.REPEATS, watching.WARM_UP, watching.SETTLE_SECONDS = 4, 10, 2, 1, 0.0
    return watching.bench(processes, ["limoe_tiny"])


def test_it_measures_watched_steps_beside_unwatched_ones_and_leaves_nothing(tmp_path: Path):
    (row,) = [line for line in run_distributed(watch, 1, tmp_path)[0].splitlines() if "limoe_tiny" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == len(watching.COLUMNS)
    unwatched, watched, record = (float(cells[column].removesuffix(" ms")) for column in (1, 2, 5))
    assert min(unwatched, watched, record) > 0
    least, most = map(float, cells[4].split(" … "))
    assert least <= float(cells[3]) <= most
    assert float(cells[6].removesuffix("%")) == pytest.approx(100 * record / (10 * unwatched), rel=0.1)
    assert list(tmp_path.iterdir()) == []


def step_by_step(processes: Processes) -> str:
    """The table of steps, plain alone: compiling takes long."""
    step.WARM_UP, step.STEPS, step.REPEATS, step.WAYS = 1, 1, 2, {"plain": ()}
    return step.bench(processes, ["limoe_tiny"])


def test_it_measures_a_step_beside_the_dense_twins():
    lines = run_distributed(step_by_step, 1)[0].splitlines()
    dense, sparse = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if "_tiny" in line)
    assert len(dense) == len(sparse) == len(step.COLUMNS)
    assert (dense[0], sparse[0], dense[4], dense[5]) == ("dense_tiny", "limoe_tiny", "1.000", "1.000 … 1.000")
    least, most = map(float, sparse[5].split(" … "))
    assert least <= float(sparse[4]) <= most
    # As many FLOPs in the time, within what the two differ in.
    assert float(sparse[6]) * float(sparse[3].removesuffix(" ms")) == pytest.approx(
        float(dense[6]) * float(dense[3].removesuffix(" ms")), rel=0.03
    )


def accumulate_in_few_steps(processes: Processes) -> str:
    """The table of batches in pieces, with one long batch and few steps."""
    accumulate.PAIRS, accumulate.CUTS, accumulate.WARM_UP, accumulate.STEPS, accumulate.REPEATS = 8, (8,), 1, 1, 2
    return accumulate.bench(processes, ["limoe_tiny"])


def test_it_measures_pieces_beside_micro_batches_and_the_memory_of_a_piece():
    (row,) = [line for line in run_distributed(accumulate_in_few_steps, 1)[0].splitlines() if "limoe_tiny" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == len(accumulate.COLUMNS)
    assert cells[1] == "64"
    assert min(float(cells[column].removesuffix(" ms")) for column in (2, 3)) > 0
    least, most = map(float, cells[5].split(" … "))
    assert least <= float(cells[4]) <= most
    pieces, _, at_once = (float(cells[column].removesuffix(" MiB")) for column in (6, 7, 8))
    assert pieces < 0.6 * at_once


def measure_layers(processes: Processes) -> tuple[str, list[dict[str, Any]]]:
    """The table of expert layers, small and in few rounds."""
    layer.WARM_UP, layer.REPEATS, layer.ONE_HOT_TOKENS = 0, 2, 64
    report = layer.bench(processes, ["64:16:4:fp32", "64:16:4:bf16", "128:16:4:fp32"])
    return report.markdown, report.rows


def test_it_measures_our_layer_beside_those_of_others():
    table, rows = run_distributed(measure_layers, 1)[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if " 16 | 4 " in line]
    assert {len(row) for row in cells} == {len(layer.COLUMNS)}
    assert [row[3] for row in cells] == ["fp32", "bf16", "fp32"]
    assert all(cells[0]) and all(cells[1])
    assert [name for name, cell in zip(layer.COLUMNS, cells[2], strict=True) if not cell] == ["FairScale"]  # too many tokens
    assert [len(row["seconds"]) for row in rows] == [5, 5, 4]
    for row, told in zip(rows, cells, strict=True):
        assert {len(seconds) for seconds in row["seconds"].values()} == {2}
        ratios = sorted(ours / dense for ours, dense in zip(row["seconds"]["ours"], row["seconds"]["dense"], strict=True))
        assert told[6] == f"{sum(ratios) / 2:.2f} ({ratios[0]:.2f} … {ratios[1]:.2f})"


def spoilt(processes: Processes) -> str:
    """What is said where a layer has other weights."""
    layer.PEERS["loop"] = layer._Ours
    try:
        layer.check(layer.Shape(64, 16, 4, "fp32"), processes.device)
        other = layer._layer(layer.Shape(64, 16, 4, "fp32"), processes.device, noise=0.0)
        layer.PEERS["loop"] = lambda _: layer._Ours(other)
        layer.check(layer.Shape(64, 16, 4, "fp32"), processes.device)
    except AssertionError as problem:
        return str(problem)
    return ""


def test_a_layer_with_other_results_is_not_timed():
    said = run_distributed(spoilt, 1)[0]
    assert "loop at Shape" in said and "output is off by" in said
