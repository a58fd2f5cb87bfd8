"""Blocks that run compiled, are recomputed in the backward pass, or both, learn what plain ones learn: noise draws the same, and
a recomputation sends every token to the expert that it had."""

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.distributed.setups import Layout, TinyRun, tiny, whole
from tests.distributed.spawn import run_distributed
from trainer.distributed.processes import Processes

pytestmark = pytest.mark.slow

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "compile": {"train__compile": True},
    "checkpoint": {"train__activation_checkpointing": "blocks"},
    "offload": {"train__activation_checkpointing": "offload"},
    "compile and checkpoint": {"train__compile": True, "train__activation_checkpointing": "blocks"},
    "compile and offload": {"train__compile": True, "train__activation_checkpointing": "offload"},
}
STEPS = 3


def train(processes: Processes, layouts: list[Layout]) -> list[dict[str, Any]]:
    """By layout: losses of all steps, this rank's share after the first step, and what the compiler did in the steps."""
    results = []
    for layout in layouts:
        run = TinyRun(tiny(layout), processes)
        losses: list[float] = []
        compiled: list[int] = []
        shares: list[dict[str, Any]] = []
        for step in range(STEPS):
            torch.manual_seed(10 * step + processes.rank)
            losses.append(run.step()[0])
            torch.manual_seed(999)
            compiled.append(counters["stats"]["unique_graphs"])
            if step == 0:
                shares.append(run.share())
        results.append({"losses": losses, "share": shares[0], "graphs": compiled, "breaks": dict(counters["graph_break"])})
    return results


def _off(name: str, actual: dict[str, Any], expected: dict[str, Any]) -> float:
    return float((actual[name] - expected[name]).norm() / expected[name].norm().clamp(min=1e-12))


@pytest.mark.parametrize(
    ("layout", "top_k"), [(Layout(1, 1, 1), 1), (Layout(1, 1, 1), 2), (Layout(2, 2, 2), 1)], ids=["one", "one, K=2", "EP=2"]
)
def test_every_way_of_running_the_blocks_gives_the_same_gradients(layout: Layout, top_k: int) -> None:
    noisy = layout.with_(router__top_k=top_k, router__noise=1.0, router__capacity_factor=1.0, router__aux__scale=1.0)
    ranks = run_distributed(train, layout.world, [noisy.with_(**changes) for changes in WAYS.values()], seconds=1500.0)
    by_way = {way: [rank[number] for rank in ranks] for number, way in enumerate(WAYS)}
    plain = by_way.pop("plain")
    wanted = whole(rank["share"] for rank in plain)
    # Adam's first moment after the first step is the gradient, but for a factor.
    names = [name for name in wanted if name.startswith("exp_avg/") and (".experts." in name or ".router." in name)]
    assert len(names) == 5 * 2
    for way, results in by_way.items():
        state = whole(rank["share"] for rank in results)
        for name in names:
            assert _off(name, state, wanted) < 1e-4, f"{way}: {name}"
        for result, reference in zip(results, plain, strict=True):
            assert result["losses"] == pytest.approx(reference["losses"], rel=1e-5), way
            assert not result["breaks"], way
            assert len(set(result["graphs"])) == 1, f"{way}: compiled again after the first step"
    assert by_way["compile"][0]["graphs"][0] > plain[0]["graphs"][0], "nothing was compiled"
