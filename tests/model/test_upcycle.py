"""A model whose experts are copies of a dense model's MLPs: its function, its noise, and the names of its parameters."""

from dataclasses import replace

import pytest
import torch

from model.config import RouterConfig
from model.limoe import LIMoE
from model.peers import SingleProcess
from model.upcycle import upcycle
from tests.model.build import assert_close, model, pairs, randomise, tiny

CONFIG = tiny(layers=3, expert_layers=[0, 2])
ENOUGH = float(CONFIG.experts)
"""A capacity factor with which no token is dropped."""


class Second(SingleProcess):
    """The second of two processes that share the experts."""

    expert_parallel, expert_rank = 2, 1


def dense() -> LIMoE:
    """The dense twin, with values that no fresh model has."""
    twin = model(replace(CONFIG, expert_layers=[]))
    randomise(twin, 7)
    return twin


def upcycled(router: RouterConfig | None = None, noise: float = 0.0, seed: int = 0, peers: SingleProcess | None = None) -> LIMoE:
    sparse = model(CONFIG, router, peers, seed)
    upcycle(sparse, dense().named_parameters(), noise, seed)
    return sparse


@pytest.mark.parametrize(
    "router",
    [
        RouterConfig(normalise_gates=True, top_k=top_k, capacity_factor=ENOUGH, gates=gates, noise=noise)
        for top_k, gates, noise in ((1, "softmax", 1.0), (2, "softmax", 0.0), (2, "sigmoid", 1.0), (4, "softmax", 1.0))
    ],
    ids=lambda router: f"{router.top_k}-{router.gates}-{router.noise:g}",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_dense_model_to_rounding(router: RouterConfig, dtype: torch.dtype) -> None:
    images, texts = pairs(5, CONFIG, dtype=dtype)
    before = dense().to(dtype)(images, texts)
    for training in (True, False):
        after = upcycled(router).to(dtype).train(training)(images, texts)
        assert_close([after.images, after.texts], [before.images, before.texts], 1e-9 if dtype == torch.float64 else 1e-5)
        assert after.scale == before.scale


def test_without_normalised_gates_it_is_another() -> None:
    images, texts = pairs(5, CONFIG)
    before, after = dense()(images, texts), upcycled(RouterConfig(top_k=2, capacity_factor=ENOUGH))(images, texts)
    assert (after.images - before.images).abs().max() > 1e-2


def test_a_dropped_token_passes_by_its_residual() -> None:
    """So what is lost with too few slots is the MLP's output for the dropped tokens, and nothing else."""
    router = RouterConfig(normalise_gates=True, capacity_factor=0.5, noise=0.0)
    stream_in = pairs(5, CONFIG)
    before, after = dense()(*stream_in), upcycled(router)(*stream_in)
    assert (after.images - before.images).abs().max() > 1e-3


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_each_expert_is_its_mlp_and_has_noise_of_its_own(noise: float) -> None:
    width, hidden = 64, 256
    config = tiny(width=width, mlp=hidden)
    twin = LIMoE(replace(config, expert_layers=[]), RouterConfig()).initialise(1)
    sparse = LIMoE(config, RouterConfig()).initialise(0)
    router = sparse.towers[0].blocks[1].mlp.router.weight.clone()  # type: ignore[union-attr, index]
    upcycle(sparse, twin.named_parameters(), noise, seed=0)
    assert torch.equal(sparse.towers[0].blocks[1].mlp.router.weight, router)  # type: ignore[union-attr, index]
    mlp, experts = twin.towers[0].blocks[1].mlp, sparse.towers[0].blocks[1].mlp.experts  # type: ignore[union-attr, index]
    for matrix, stacked, bias, biases in (
        (mlp.up.weight, experts.up, mlp.up.bias, experts.up_bias),
        (mlp.down.weight, experts.down, mlp.down.bias, experts.down_bias),
    ):
        off_eio = stacked - matrix.T
        assert torch.equal(biases, bias.expand_as(biases))
        if not noise:
            assert not off_eio.any()
            continue
        shares = off_eio.flatten(1).std(1) / matrix.std()
        assert_close([shares], [torch.full_like(shares, noise)], tolerance=0.05)
        correlations = torch.corrcoef(off_eio.flatten(1)) - torch.eye(len(off_eio))
        assert correlations.abs().max() < 0.05, "experts share their noise"


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_an_expert_starts_alike_wherever_it_lives(noise: float) -> None:
    whole = dict(upcycled(noise=noise).named_parameters())
    for name, parameter in upcycled(noise=noise, peers=Second()).named_parameters():
        wanted = whole[name][CONFIG.experts // 2 :] if ".experts." in name else whole[name]
        assert torch.equal(parameter, wanted), name


def test_another_seed_draws_other_noise() -> None:
    one, other = upcycled(noise=0.1, seed=0), upcycled(noise=0.1, seed=1)
    name = "towers.0.blocks.2.mlp.experts.up"
    assert (one.get_parameter(name) - other.get_parameter(name)).abs().min() > 0
