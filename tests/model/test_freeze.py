"""Which parameters a pattern freezes, how far the backward pass still goes, and what a frozen router does."""

import pytest
import torch

from model.balance import update_biases
from model.errors import UserError
from model.freeze import blocks_passed_back, freeze
from model.limoe import LIMoE, expert_layers
from model.objective import training_losses
from model.peers import SingleProcess
from model.stream import IMAGE, Segment
from tests.distributed.setups import Layout, batch, tiny


def frozen(*patterns: str, **changes: object) -> LIMoE:
    """A tiny model of three blocks."""
    config = tiny(Layout().with_(**changes))
    return freeze(LIMoE(config.model, config.router).initialise(0), patterns)


def test_names_that_fit_a_pattern_are_frozen_and_no_others():
    model = frozen("patches.*", "*.norm?.bias", "scale.log_scale")
    still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    norms = {f"towers.0.blocks.{block}.norm{which}.bias" for block in range(3) for which in (1, 2)}
    assert still == {"patches.project.weight", "patches.project.bias", "patches.position", "scale.log_scale"} | norms
    assert all(parameter.requires_grad for parameter in frozen().parameters())


def test_a_pattern_that_fits_nothing_is_refused_with_the_nearest_names():
    with pytest.raises(
        UserError, match=r"^train\.freeze: no parameter has a name like 'head\.image'; .* nearest are heads\.image\.w"
    ):
        frozen("towers.*", "head.image")


def test_freezing_everything_is_refused():
    with pytest.raises(UserError, match=r"train\.freeze=\[\*\.\*,scale\.\*\] fits every parameter"):
        frozen("*.*", "scale.*")


@pytest.mark.parametrize(
    ("patterns", "passed"),
    [
        ([], [[0, 1, 2]]),
        (["patches.*", "towers.*"], [[0, 1, 2]]),  # the texts' embeddings are trained below
        (["patches.*", "tokens.*", "towers.0.blocks.0.*"], [[1, 2]]),
        (["patches.*", "tokens.*", "towers.0.blocks.[02].*"], [[1, 2]]),
        (["patches.*", "tokens.*", "towers.*"], [[]]),
    ],
)
def test_a_gradient_passes_what_has_something_trained_below_it(patterns: list[str], passed: list[list[int]]):
    model = frozen(*patterns)
    assert blocks_passed_back(model) == passed
    inputs = {}
    for index, block in enumerate(model.towers[0].blocks):
        block.register_forward_hook(lambda module, given, output, index=index: inputs.update({index: output[0]}))
    model(*batch(0, tiny()))
    assert [index for index, output in inputs.items() if output.requires_grad] == passed[0]


def test_towers_have_embeddings_of_their_own():
    changes = {"model__towers": 2, "model__expert_layers": ()}
    assert blocks_passed_back(frozen("patches.*", "towers.0.*", **changes)) == [[], [0, 1, 2]]
    assert blocks_passed_back(frozen("tokens.*", "towers.0.*", "towers.1.blocks.0.*", **changes)) == [[0, 1, 2], [1, 2]]


def test_a_frozen_router_draws_no_noise_and_keeps_its_bias():
    bias = {"router__noise": 1.0, "router__bias__kind": "shared", "router__aux__load": 0.0}
    model = frozen("towers.0.blocks.1.mlp.router.*", **bias).train()
    layers = expert_layers(model)
    segments = (Segment(IMAGE, 2, 16),)
    assert layers[1].draw(segments).noise_ne is None and layers[2].draw(segments).noise_ne is not None
    config = tiny(Layout().with_(**bias))
    losses = training_losses(model(*batch(0, config)), config.router.aux, config.model.routed_experts, SingleProcess())
    update_biases(model, losses.routing)
    still, moved = (layer.router.bias for layer in layers.values())
    assert still is not None and moved is not None
    assert torch.equal(still, torch.zeros_like(still)) and moved.abs().max() > 0
