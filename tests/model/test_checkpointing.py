"""Activation checkpointing computes the same, noise of the router included."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fairscale.nn.checkpoint import checkpoint_wrapper
from fairscale.nn.checkpoint.checkpoint_activations import is_recomputing
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.block import Encoder
from model.config import ModelConfig, RouterConfig
from model.experts import ExpertLayer, Router
from model.limoe import LIMoE
from model.objective import training_losses
from model.peers import SingleProcess
from model.routing import Assignment
from tests.model.build import model, pairs, tiny

SPARSE = tiny(layers=3, expert_layers=[0, 2])
FAMILY = {"limoe": SPARSE, "one tower": tiny(expert_layers=[]), "two towers": tiny(expert_layers=[], towers=2)}


def _step(net: LIMoE, config: ModelConfig, router: RouterConfig, seed: int) -> tuple[Tensor, list[Tensor]]:
    """The loss and all gradients of one step whose noise comes from the seed."""
    torch.manual_seed(seed)
    total = training_losses(net(*pairs(6, config)), router.aux, config.experts, SingleProcess()).total
    torch.manual_seed(999)  # what happens between forward and backward must not reach the recomputation
    total.backward()
    grads = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in net.parameters()]
    return total.detach(), grads


def _wrap(net: LIMoE, wrap: Callable[[nn.Module], nn.Module]) -> LIMoE:
    for tower in net.towers:
        assert isinstance(tower, Encoder)
        for index, block in enumerate(tower.blocks):
            tower.blocks[index] = wrap(block)
    return net


@pytest.mark.parametrize("config", FAMILY.values(), ids=FAMILY.keys())
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("offload", [False, True])
def test_wrapped_blocks_give_the_same_loss_and_gradients(config: ModelConfig, top_k: int, offload: bool) -> None:
    router = RouterConfig(top_k=top_k, noise=3.0, capacity_factor=0.7)
    plain = model(config, router)
    wrapped = _wrap(model(config, router), lambda block: checkpoint_wrapper(block, offload_to_cpu=offload))
    loss, grads = _step(plain, config, router, 3)
    wrapped_loss, wrapped_grads = _step(wrapped, config, router, 3)
    assert torch.equal(loss, wrapped_loss)
    for one, other in zip(grads, wrapped_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_other_noise_gives_another_loss() -> None:
    router = RouterConfig(noise=3.0)
    losses = [_step(model(SPARSE, router), SPARSE, router, seed)[0] for seed in (3, 4)]
    assert not torch.equal(*losses)


def _careless(block: nn.Module) -> nn.Module:
    """Checkpointing that draws the noise and decides again when it recomputes."""
    inner = block.forward

    def forward(*args: Any) -> Any:
        x_nd, modality_n, valid_n, segments, assignment = args

        def anew(x_nd: Tensor) -> Any:
            again = torch.is_grad_enabled() and isinstance(block.mlp, ExpertLayer)
            return inner(x_nd, modality_n, valid_n, segments, block.mlp.draw(segments) if again else assignment)

        return checkpoint(anew, x_nd, use_reentrant=True, preserve_rng_state=False)

    block.forward = forward  # type: ignore[method-assign]
    return block


def test_fresh_noise_in_the_recomputation_would_be_noticed() -> None:
    router = RouterConfig(noise=3.0, capacity_factor=0.7)
    loss, grads = _step(model(SPARSE, router), SPARSE, router, 3)
    careless_loss, careless_grads = _step(_wrap(model(SPARSE, router), _careless), SPARSE, router, 3)
    assert torch.equal(loss, careless_loss)
    assert not all(torch.allclose(one, other) for one, other in zip(grads, careless_grads, strict=True))


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_recomputation_whose_logits_differ_in_their_last_bits_sends_every_token_where_it_was(top_k: int) -> None:
    router = RouterConfig(top_k=top_k, noise=0.0, capacity_factor=0.7)
    plain, wrapped = model(SPARSE, router), _wrap(model(SPARSE, router), checkpoint_wrapper)
    recomputed = 0

    def other_last_bits(_: nn.Module, __: Any, logits_ne: Tensor) -> Tensor:
        nonlocal recomputed
        recomputed += is_recomputing()
        return logits_ne + 1e-12 * torch.randn_like(logits_ne) if is_recomputing() else logits_ne

    for net in (plain, wrapped):
        for module in net.modules():
            if isinstance(module, Router):
                torch.nn.init.zeros_(module.weight)  # every expert is as near as the next
                module.register_forward_hook(other_last_bits)
    loss, grads = _step(plain, SPARSE, router, 3)
    wrapped_loss, wrapped_grads = _step(wrapped, SPARSE, router, 3)
    assert recomputed == len(SPARSE.expert_layers)
    assert torch.equal(loss, wrapped_loss)
    for one, other in zip(grads, wrapped_grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_second_pass_with_the_assignments_of_the_first_repeats_it(top_k: int) -> None:
    router = RouterConfig(top_k=top_k, noise=3.0, capacity_factor=0.7)
    net, batch = model(SPARSE, router), pairs(6, SPARSE)
    with torch.no_grad():
        first = net(*batch)
    second, other = net(*batch, assignments=first.assignments), net(*batch)
    assert list(first.assignments) == SPARSE.expert_layers
    assert torch.equal(first.images, second.images) and torch.equal(first.texts, second.texts)
    assert all(torch.equal(sums, second.routing[layer]) for layer, sums in first.routing.items())
    assert not torch.equal(first.images, other.images)
    # And it is the pass that is differentiated: the gradients are those of a single pass with the same noise.
    losses = [training_losses(output, router.aux, SPARSE.experts, SingleProcess()).total for output in (second, other)]
    torch.manual_seed(8)
    once = net(*batch)
    again = net(*batch, assignments={layer: Assignment(given.noise_ne) for layer, given in once.assignments.items()})
    for one, two in zip(
        *(
            torch.autograd.grad(training_losses(o, router.aux, SPARSE.experts, SingleProcess()).total, list(net.parameters()))
            for o in (once, again)
        ),
        strict=True,
    ):
        assert torch.equal(one, two)
    assert losses[0] != losses[1]
