"""Every layout (world / expert-parallel size / ZeRO stage) trains the same model: it equals plain torch in losses, gradient
norms, parameters and moments."""

from functools import cache

import pytest
from torch import Tensor

from model.limoe import LIMoE
from tests.distributed.setups import BATCH, Layout, TinyRun, Trained, plain_torch, tiny, whole
from tests.distributed.spawn import run_distributed
from trainer.distributed.processes import Processes
from trainer.engine.state import WEIGHTS

STEPS = 3
KEPT = (1, STEPS)

pytestmark = pytest.mark.slow


def train_all(processes: Processes, layouts: list[Layout]) -> list[tuple[list[tuple[float, float]], dict[int, dict]]]:
    """Train under each layout: (loss, norm) by step, and this rank's share of the state after the steps of KEPT."""
    records = []
    for layout in layouts:
        run = TinyRun(tiny(layout), processes)
        steps, shares = [], {}
        for done in range(1, STEPS + 1):
            steps.append(run.step())
            if done in KEPT:
                shares[done] = run.share()
        records.append((steps, shares))
    return records


def trained(layouts: list[Layout]) -> list[Trained]:
    """What each layout comes to; all have the same world."""
    ranks = run_distributed(train_all, layouts[0].world, layouts)
    results = []
    for number in range(len(layouts)):
        records = [rank[number] for rank in ranks]
        assert all(record[0] == records[0][0] for record in records), "ranks disagree on loss or norm"
        losses, norms = zip(*records[0][0], strict=True)
        states = {kept: whole(record[1][kept] for record in records) for kept in KEPT}
        results.append(Trained(list(losses), list(norms), states))
    return results


@cache
def expected(changes: tuple[tuple[str, object], ...]) -> Trained:
    """What plain torch comes to, after a look at whether the comparison can tell right from wrong."""
    config = tiny(Layout(changes=changes))
    reference = plain_torch(config, STEPS, KEPT)
    assert min(reference.norms) > 1.5 * config.optim.clip_norm, "clipping is not active"
    still = [name for name, value in reference.states[1].items() if name.startswith("exp_avg/") and value.abs().max() < 1e-5]
    assert not still, "nothing to compare where no gradient flows"
    return reference


def assert_same_state(actual: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Tensor by tensor; moments, which are small, relative to the largest value in the tensor.

    Three times as far for these: after three steps, what float32 rounds differently in a sum is more than a hundred of its units
    in a gradient that is a difference of large ones.
    """
    assert actual.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = 1.0 if name.startswith(f"{WEIGHTS}/") else 3 * max(value.abs().max().item(), 1e-9)
        assert actual[name].shape == value.shape, name
        off = (actual[name] - value).abs().max().item()
        assert off <= tolerance * scale, f"{name}: off by {off:.2e}, values up to {value.abs().max():.2e}"


def assert_same_training(actual: Trained, wanted: Trained) -> None:
    """Losses and norms by step, and every tensor of the kept states."""
    assert actual.losses == pytest.approx(wanted.losses, rel=1e-5)
    assert actual.norms == pytest.approx(wanted.norms, rel=1e-5)
    for kept in KEPT:
        assert_same_state(actual.states[kept], wanted.states[kept])


def check(*layouts: Layout) -> None:
    """Train under each layout, all of one world, and compare with plain torch."""
    for layout, result in zip(layouts, trained(list(layouts)), strict=True):
        print(layout)  # pytest shows it when the comparison fails
        assert_same_training(result, expected(layout.changes))


@pytest.mark.parametrize(
    "layouts",
    [
        [Layout(1, 1, 1), Layout(1, 1, 3)],
        [Layout(2, 1, 1), Layout(2, 2, 1), Layout(2, 2, 2), Layout(2, 2, 3), Layout(2, 1, 3)],
        [Layout(4, 2, 2), Layout(4, 4, 3), Layout(4, 2, 3)],
    ],
    ids=lambda layouts: f"world{layouts[0].world}",
)
def test_every_layout_trains_like_plain_torch(layouts):
    check(*layouts)


def test_second_choices_train_alike_in_every_layout():
    check(*(Layout(2, 2, stage).with_(router__top_k=2) for stage in (2, 3)))


def test_accumulated_micro_batches_train_alike_in_every_layout():
    """As pieces of one batch, for which tests/distributed/test_pieces.py does more, and each for itself."""
    for negatives, layouts in (("batch", ((2, 1), (1, 2))), ("micro", ((2, 1), (2, 2), (2, 3), (1, 2)))):
        check(*(Layout(2, ep, stage).with_(train__accumulate=2, train__negatives=negatives) for ep, stage in layouts))


@pytest.mark.parametrize("kind", ["blocks", "offload"])
def test_activation_checkpointing_changes_nothing(kind):
    layouts = [Layout(2, 2, stage).with_(train__activation_checkpointing=kind) for stage in (2, 3)]
    for layout, result in zip(layouts, trained(layouts), strict=True):
        print(layout)
        assert_same_training(result, expected(()))


def test_dense_models_train_alike_in_every_layout():
    check(*(Layout(2, 1, stage).with_(model__expert_layers=()) for stage in (1, 2, 3)))


def test_two_towers_train_alike_in_every_layout():
    check(*(Layout(2, 1, stage).with_(model__expert_layers=(), model__towers=2) for stage in (1, 3)))


def test_the_sigmoid_loss_trains_alike_in_every_layout():
    # From -10, the gradient at the bias would change its sign in these steps, and leave a moment that is all rounding.
    changes = {"model__loss": "sigmoid", "model__initial_bias": -5.0, "train__loss_chunk": 3}
    check(*(Layout(2, ep, stage).with_(**changes) for ep, stage in ((1, 1), (2, 2), (2, 3))))


def test_patches_are_dropped_alike_in_every_layout():
    """Micro-batches and recomputed blocks included."""
    changes = {"train__patch_dropout": 0.5}
    layouts = [Layout(2, 1, 1), Layout(2, 2, 2), Layout(2, 2, 3).with_(train__accumulate=2)]
    micro = {"train__accumulate": 2, "train__negatives": "micro", "train__activation_checkpointing": "blocks"}
    layouts = [layout.with_(**changes) for layout in (*layouts, Layout(2, 1, 3).with_(**micro))]
    everything = expected(())
    for layout, result in zip(layouts, trained(layouts), strict=True):
        print(layout)
        assert abs(result.losses[0] - everything.losses[0]) > 1e-3, "nothing was dropped"
        assert_same_training(result, plain_torch(tiny(layout), STEPS, KEPT))


def factor(name: str) -> float:
    """What the test below asks for, parameter by parameter: three blocks, half the rate from each to the one before it."""
    layer = {"0": 0.125, "1": 0.25, "2": 0.5}[name.split(".")[3]] if ".blocks." in name else 1.0
    if name.startswith(("patches.", "tokens.")):
        layer = 0.0625
    return layer * (3.0 if ".router." in name else 0.0 if name.startswith("towers.0.blocks.1.mlp.experts.") else 1.0)


def test_factors_on_the_learning_rate_act_alike_in_every_layout():
    asked = {"optim__lr_factors": {"*.router.*": 3.0, "*.1.mlp.experts.*": 0.0}, "optim__layer_decay": 0.5}
    layouts = [Layout(2, ep, stage).with_(**asked) for ep, stage in ((1, 1), (2, 3))]
    names = [name for name, _ in LIMoE(tiny().model, tiny().router).named_parameters()]
    wanted = plain_torch(tiny(layouts[0]), STEPS, KEPT, {name: factor(name) for name in names})
    for result in trained(layouts):
        assert_same_training(result, wanted)


# Half the wanted slots, so that many tokens are dropped. With one routing group a process (the default), a single process
# that routes in groups of as many pairs drops the same tokens.
DROPPING = {"router__capacity_factor": 0.5}


@pytest.mark.parametrize("priority", ["gate", "order"])
def test_the_same_tokens_are_dropped_with_and_without_expert_parallelism(priority):
    layouts = [Layout(2, ep, stage).with_(**DROPPING, router__priority=priority) for ep, stage in ((1, 2), (2, 2), (2, 3))]
    reference = expected(Layout().with_(**DROPPING, router__priority=priority, router__group_size=BATCH // 2).changes)
    everything = expected(())
    assert abs(reference.losses[0] - everything.losses[0]) > 1e-3, "nothing was dropped"
    for layout, result in zip(layouts, trained(layouts), strict=True):
        print(layout)
        assert_same_training(result, reference)


def test_normalised_gates_train_alike_in_every_layout():
    """Where choices are dropped, and the others of their token share its whole weight."""
    changes = {**DROPPING, "router__normalise_gates": True, "router__top_k": 2}
    reference = expected(Layout().with_(**changes, router__group_size=BATCH // 2).changes)
    layouts = [Layout(2, ep, stage).with_(**changes) for ep, stage in ((1, 2), (2, 2), (2, 3))]
    for layout, result in zip(layouts, trained(layouts), strict=True):
        print(layout)
        assert_same_training(result, reference)


def test_bf16_trains_like_float32_to_rounding_in_every_layout():
    layouts = [Layout(2, ep, stage).with_(train__precision="bf16") for ep, stage in ((1, 1), (2, 1), (2, 2), (2, 3), (1, 3))]
    exact = expected(())
    for layout, result in zip(layouts, trained(layouts), strict=True):
        print(layout)
        assert result.losses == pytest.approx(exact.losses, rel=1e-2)
        assert result.norms == pytest.approx(exact.norms, rel=5e-2)
        for name, value in exact.states[1].items():
            # A token whose two best gates are near may go elsewhere: the sum of many is what can be compared.
            off = ((result.states[1][name] - value).norm() / value.norm()).item()
            assert name.startswith(f"{WEIGHTS}/") or off <= 0.2, f"{name}: off by {off:.1%}"
        for name in (name for name in exact.states[STEPS] if name.startswith(f"{WEIGHTS}/")):
            assert (result.states[STEPS][name] - exact.states[STEPS][name]).abs().max() <= 1e-2, name
