"""The routers' loss-free biases are state: the same in every layout, and gone on with from a checkpoint in any other."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.checkpoints import tensors_in
from tests.distributed.setups import Layout, TinyRun, plain_torch, tiny
from tests.distributed.spawn import run_distributed
from tests.distributed.test_checkpoint import go_on
from tests.distributed.test_layouts import STEPS, assert_same_state, check, expected
from tests.distributed.test_runs import COMMON, TWO, run_program
from trainer.checkpoint.files import checkpoint_path
from trainer.checkpoint.load import load_state
from trainer.distributed.processes import Processes
from trainer.engine.state import EMA, WEIGHTS, set_weights

pytestmark = pytest.mark.slow

BIASES = [f"{WEIGHTS}/towers.0.blocks.{layer}.mlp.router.bias" for layer in (1, 2)]
FAST: dict[str, Any] = {"router__bias__rate": 0.05, "router__aux__load": 0.0}
"""So fast that the second step sends many tokens elsewhere than without a bias."""
SHARED = {**FAST, "router__bias__kind": "shared", "router__bias__update": "zscore"}
MODALITY = {**FAST, "router__bias__kind": "modality", "router__bias__text_rate": 0.02}


@pytest.mark.parametrize("bias", [SHARED, MODALITY], ids=["shared", "modality"])
@pytest.mark.parametrize(
    "layouts",
    [
        [Layout(1, 1, 1), Layout(1, 1, 3)],
        [Layout(2, 1, 1), Layout(2, 2, 2), Layout(2, 2, 3), Layout(2, 1, 3)],
        [Layout(4, 2, 1), Layout(4, 4, 3)],
    ],
    ids=lambda layouts: f"world{layouts[0].world}",
)
def test_every_layout_moves_them_like_plain_torch(layouts, bias):
    check(*(layout.with_(**bias) for layout in layouts))
    reference = expected(Layout().with_(**bias).changes)
    without = expected(Layout().with_(router__aux__load=0.0).changes)
    assert all(reference.states[STEPS][name].any() for name in BIASES)
    assert abs(reference.losses[-1] - without.losses[-1]) > 1e-4, "nobody was sent elsewhere"


def test_they_move_once_a_step_by_all_its_micro_batches_in_every_layout():
    check(*(Layout(2, ep, stage).with_(**MODALITY, train__accumulate=2) for ep, stage in ((2, 2), (2, 3), (1, 1))))


@pytest.mark.parametrize("how", [{"activation_checkpointing": "blocks"}, {"activation_checkpointing": "blocks", "compile": True}])
def test_recomputed_and_compiled_blocks_change_nothing(how):
    changes = {f"train__{name}": value for name, value in how.items()}
    check(Layout(1, 1, 1).with_(**MODALITY, **changes))


def test_a_run_goes_on_in_any_other_layout_as_if_uninterrupted(run_dir):
    chain = [layout.with_(**MODALITY) for layout in (Layout(1, 1, 1), Layout(2, 2, 2), Layout(4, 2, 3), Layout(1, 1, 1))]
    uninterrupted = plain_torch(tiny(chain[0]), len(chain), range(1, len(chain) + 1))
    losses = []
    for done, layout in enumerate(chain, start=1):
        losses += [loss for loss, _ in run_distributed(go_on, layout.world, layout, run_dir, 1)[0]]
        saved = tensors_in(checkpoint_path(run_dir, done))
        assert_same_state(saved, uninterrupted.states[done])
        assert all(torch.equal(saved[name], uninterrupted.states[done][name]) for name in BIASES)
    assert losses == pytest.approx(uninterrupted.losses, rel=1e-5)


def save_and_load(processes: Processes, layout: Layout, run_dir: Path) -> None:
    """Train two steps and save; a model with the averaged weights of that has the biases of the run."""
    run = TinyRun(tiny(layout), processes)
    run.step()
    run.step()
    checkpoint = run.save(run_dir)
    again = TinyRun(run.config, processes, checkpoint)
    loaded = TinyRun(run.config, processes).engine.module
    set_weights(loaded, load_state(checkpoint, loaded, run.sharding, (EMA,)), EMA)
    biases = dict(run.engine.module.named_buffers())
    assert len(biases) == len(BIASES) and all(value.any() for value in biases.values())
    for module in (again.engine.module, loaded):
        for name, value in module.named_buffers():
            assert torch.equal(value, biases[name])


def test_the_average_of_the_weights_goes_with_them(run_dir):
    run_distributed(save_and_load, 2, Layout(2, 2, 2).with_(**MODALITY, train__ema=0.5), run_dir)


def rows_of(run_dir: Path) -> list[dict[str, float]]:
    """What a run measured, but for its speed."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in rows]


def test_a_stopped_run_goes_on_to_the_last_bit(tmp_path):
    common = [*COMMON, *TWO, "router=loss_free_modality", "router.bias.rate=0.05", "router.top_k=2", "train.accumulate=2"]
    common += ["train.ema=0.9", f"data.cache={tmp_path / 'cache'}", "checkpoint.every_steps=3"]
    at_once, in_two = tmp_path / "at once", tmp_path / "in two"
    assert run_distributed(run_program, 2, [*common, f"run.dir='{at_once}'", "train.steps=6"]) == [0, 0]
    for steps in (3, 6):
        assert run_distributed(run_program, 2, [*common, f"run.dir='{in_two}'", f"train.steps={steps}"]) == [0, 0]
    rows = [row for row in rows_of(at_once) if "train/loss" in row]
    assert rows == [row for row in rows_of(in_two) if "train/loss" in row] and len(rows) == 6
    # It has moved by the rate once a step.
    assert [row["routing/layer01/bias/text"] for row in rows[:2]] == pytest.approx([0.1, 0.2], abs=0.051)
    one, other = (tensors_in(checkpoint_path(place, 6)) for place in (at_once, in_two))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    # And evaluation knows it: a resume without is another model, and is told so.
    codes = []
    with pytest.raises(AssertionError, match=r"router.bias.kind was modality, is none\): use router.bias.kind=modality"):
        codes = run_distributed(run_program, 2, [*common, f"run.dir='{in_two}'", "train.steps=7", "router=limoe"])
    assert not codes
