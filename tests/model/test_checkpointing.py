"""Activation checkpointing computes the same, noise of the router included."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fairscale.nn.checkpoint import checkpoint_wrapper
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.block import Encoder
from model.config import ModelConfig, RouterConfig
from model.limoe import LIMoE
from model.objective import training_losses
from model.peers import SingleProcess
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


class _Careless(nn.Module):
    """Checkpointing that draws the noise anew when it recomputes."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any) -> Any:
        return checkpoint(self.block, *args, use_reentrant=True, preserve_rng_state=False)


def test_fresh_noise_in_the_recomputation_would_be_noticed() -> None:
    router = RouterConfig(noise=3.0, capacity_factor=0.7)
    loss, grads = _step(model(SPARSE, router), SPARSE, router, 3)
    careless_loss, careless_grads = _step(_wrap(model(SPARSE, router), _Careless), SPARSE, router, 3)
    assert torch.equal(loss, careless_loss)
    assert not all(torch.allclose(one, other) for one, other in zip(grads, careless_grads, strict=True))
