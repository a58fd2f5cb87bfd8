"""The moving average of the weights: the same in every layout, kept in checkpoints, and gone on with in any other layout."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.checkpoints import tensors_in
from tests.distributed.setups import Layout, TinyRun, tiny, whole
from tests.distributed.spawn import run_distributed
from trainer.checkpoint.files import checkpoint_path, find_checkpoint
from trainer.distributed.processes import Processes
from trainer.engine.state import EMA, MOMENTS, WEIGHTS

pytestmark = pytest.mark.slow

DECAY = 0.9
STEPS = 3

Share = dict[str, Any]


def with_ema(*layout: int, **changes: Any) -> Layout:
    return Layout(*layout).with_(train__ema=DECAY, **changes)


def part(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors of one kind by parameter name."""
    return {name.removeprefix(f"{kind}/"): value for name, value in state.items() if name.startswith(f"{kind}/")}


def assert_next(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    """The average has moved by one step towards the weights, in the plainest words."""
    average, weights = part(before, EMA), part(after, WEIGHTS)
    assert average.keys() == weights.keys() == part(after, EMA).keys()
    for name, value in part(after, EMA).items():
        expected = DECAY * average[name].double() + (1 - DECAY) * weights[name].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7, msg=name)


def train(processes: Processes, layouts: list[Layout]) -> list[list[Share]]:
    """This rank's share of the state before the first step and after each, under each layout."""
    results = []
    for layout in layouts:
        run = TinyRun(tiny(layout), processes)
        shares = [run.share()]
        for _ in range(STEPS):
            run.step()
            shares.append(run.share())
        results.append(shares)
    return results


@pytest.mark.parametrize(
    "layouts",
    [
        [with_ema(1, 1, 1)],
        [with_ema(2, 2, 2), with_ema(2, 2, 3), with_ema(2, 1, 2, train__precision="bf16", train__accumulate=2)],
        [with_ema(4, 2, 1)],
    ],
    ids=lambda layouts: f"world{layouts[0].world}",
)
def test_it_is_the_average_of_the_float32_weights_in_every_layout(layouts):
    ranks = run_distributed(train, layouts[0].world, layouts)
    for number, layout in enumerate(layouts):
        print(layout)
        states = [whole(rank[number][step] for rank in ranks) for step in range(STEPS + 1)]
        first = part(states[0], WEIGHTS)
        assert all(torch.equal(value, first[name]) for name, value in part(states[0], EMA).items()), "it starts at the weights"
        for before, after in pairwise(states):
            assert_next(before, after)
        off = max((value - first[name]).abs().max().item() for name, value in part(states[-1], EMA).items())
        assert off > 1e-3, "nothing has moved"


def go_on(processes: Processes, layout: Layout, run_dir: Path) -> tuple[Share, Share]:
    """Go on from the newest checkpoint, if there is one; this rank's share before and after a step, which is saved."""
    run = TinyRun(tiny(layout), processes, find_checkpoint(run_dir))
    before = run.share()
    run.step()
    run.save(run_dir)
    return before, run.share()


def test_it_goes_on_in_any_other_layout_to_the_last_bit(run_dir):
    chain = [with_ema(2, 2, 2), with_ema(2, 2, 3), with_ema(4, 2, 1), with_ema(1, 1, 1), with_ema(2, 1, 3)]
    saved: dict[str, Tensor] = {}
    for done, layout in enumerate(chain, start=1):
        print(layout)
        ranks = run_distributed(go_on, layout.world, layout, run_dir)
        before, after = whole(rank[0] for rank in ranks), whole(rank[1] for rank in ranks)
        assert all(torch.equal(before[name], value) for name, value in saved.items())
        assert_next(before, after)
        saved = tensors_in(checkpoint_path(run_dir, done))
        assert saved.keys() == after.keys()
        assert all(torch.equal(after[name], value) for name, value in saved.items())


def test_it_can_be_switched_on_and_off(run_dir):
    without, again = Layout(2, 2, 2), with_ema(2, 2, 3)
    run_distributed(go_on, 2, without, run_dir)
    assert {name.partition("/")[0] for name in tensors_in(checkpoint_path(run_dir, 1))} == {WEIGHTS, *MOMENTS}
    ranks = run_distributed(go_on, 2, again, run_dir)
    before, after = whole(rank[0] for rank in ranks), whole(rank[1] for rank in ranks)
    weights = part(before, WEIGHTS)
    assert all(torch.equal(value, weights[name]) for name, value in part(before, EMA).items()), "it starts at the weights"
    assert_next(before, after)
    run_distributed(go_on, 2, without, run_dir)
    assert {name.partition("/")[0] for name in tensors_in(checkpoint_path(run_dir, 3))} == {WEIGHTS, *MOMENTS}
