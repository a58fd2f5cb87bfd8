"""Experts spread over processes, played by threads that share one autograd graph: the mathematics of one process."""

import pytest
import torch
from torch import Tensor

from model.config import RouterConfig
from model.experts import Experts
from model.limoe import LIMoE
from model.objective import Losses, training_losses
from model.peers import SingleProcess
from tests.model.build import ThreadPeers, assert_close, gradients, model, pairs, play, tiny

CONFIG = tiny(layers=3, expert_layers=[0, 2])


def _stacked(nets: list[LIMoE], grads: list[list[Tensor]]) -> dict[str, Tensor]:
    """One tensor a name from those of all ranks: experts side by side, the gradients of dense copies added."""
    whole = {}
    experts = {
        f"{name}.{leaf}"
        for name, module in nets[0].named_modules()
        if isinstance(module, Experts)
        for leaf, _ in module.named_parameters()
    }
    for name, *values in zip([name for name, _ in nets[0].named_parameters()], *grads, strict=True):
        whole[name] = torch.cat(values) if name in experts else torch.stack(values).sum(0)
    return whole


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("top_k", [1, 2])
def test_losses_statistics_and_gradients_are_those_of_one_process(world: int, training: bool, top_k: int) -> None:
    per_rank = 3
    images, texts = pairs(per_rank * world, CONFIG)
    # Capacity is competed for inside a process, so the one process routes in groups of as many pairs.
    router = RouterConfig(top_k=top_k, noise=0.0, group_size=per_rank, capacity_factor=0.4)
    single = model(CONFIG, router).train(training)
    expected = training_losses(single(images, texts), router.aux, CONFIG.experts, SingleProcess())
    if training:
        sums = expected.routing[0]
        assert (sums.kept_m < sums.tokens_m).any()  # the buffers do overflow

    def on_one(peers: ThreadPeers) -> tuple[LIMoE, Losses]:
        net = model(CONFIG, router, peers).train(training)
        own = slice(peers.rank * per_rank, (peers.rank + 1) * per_rank)
        return net, training_losses(net(images[own], texts[own]), router.aux, CONFIG.experts, peers)

    nets, losses = zip(*play(world, on_one), strict=True)
    mean = torch.stack([loss.total for loss in losses]).mean()
    assert_close([mean], [expected.total])
    for loss in losses:
        assert_close([loss.auxiliary, *loss.parts.values()], [expected.auxiliary, *expected.parts.values()])
        for layer, sums in expected.routing.items():
            assert_close([loss.routing[layer].kept_m, loss.routing[layer].load_me], [sums.kept_m, sums.load_me])
    flat = gradients(mean, [parameter for net in nets for parameter in net.parameters()])
    size = len(flat) // world
    actual = _stacked(list(nets), [flat[rank * size : (rank + 1) * size] for rank in range(world)])
    for (name, _), grad in zip(single.named_parameters(), gradients(expected.total, list(single.parameters())), strict=True):
        torch.testing.assert_close(actual[name], grad, rtol=1e-8, atol=1e-10, msg=f"the gradient of {name} differs")
