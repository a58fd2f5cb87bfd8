"""Parameter counts, by hand and of the paper's largest model."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.config import ModelConfig, RouterConfig
from model.count import count_parameters, expert_parameters, step_flops
from model.limoe import LIMoE
from tests.model.build import tiny


def test_the_papers_largest_model() -> None:
    config = ModelConfig(
        width=1280,
        mlp=5120,
        heads=16,
        layers=32,
        expert_layers=[3, 7, 11, 15, 18, 20, 22, 24, 26, 28, 30, 31],
        experts=32,
        image_size=224,
        patch=14,
        vocabulary=32000,
        embedding=1024,
    )
    count = count_parameters(config, RouterConfig())
    assert round(count.total / 1e9, 1) == 5.6
    assert round(count.applied / 1e6) == 675


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("towers", [1, 2])
def test_counts_by_hand(top_k: int, towers: int) -> None:
    config = tiny(layers=3, expert_layers=[1, 2] if towers == 1 else [], towers=towers)
    mlp = 8 * 12 + 12 + 12 * 8 + 8
    attention, norms = 8 * 24 + 24 + 8 * 8 + 8, 2 * 16
    embeddings = (12 * 8 + 8) + 4 * 8 + 20 * 8 + 5 * 8 + 2 * 8 * 6
    sparse = len(config.expert_layers)
    tower = 3 * (attention + norms) + 16 + (3 - sparse) * mlp + sparse * 4 * 8
    count = count_parameters(config, RouterConfig(top_k=top_k))
    assert count.experts == sparse * 4 * mlp
    assert count.total == embeddings + 1 + towers * tower + sparse * 4 * mlp
    assert count.applied == embeddings + 1 + tower + sparse * top_k * mlp  # a token passes one tower


def test_counting_agrees_with_the_built_model() -> None:
    net = LIMoE(tiny(), RouterConfig())
    count = count_parameters(tiny(), RouterConfig())
    assert count.total == sum(parameter.numel() for parameter in net.parameters())
    assert count.experts == sum(parameter.numel() for parameter in expert_parameters(net)) > 0


def test_one_expert_a_token_applies_as_much_as_the_dense_model_and_the_router() -> None:
    sparse, dense = (count_parameters(tiny(expert_layers=layers), RouterConfig()) for layers in ([1], []))
    assert sparse.applied - dense.applied == 4 * 8


def test_frozen_parameters_are_not_trained() -> None:
    count = count_parameters(tiny(expert_layers=[1]), RouterConfig(), ["*.experts.up", "tokens.table.*"])
    assert count.total - count.trained == 4 * 8 * 12 + 20 * 8
    assert count.experts - count.trained_experts == 4 * 8 * 12


def test_towers_of_different_sizes_are_counted_by_their_own_tokens():
    config = ModelConfig(
        towers=2, width=96, heads=3, mlp=384, layers=2, text_width=64, text_heads=2, text_mlp=256, text_layers=4,
        image_size=32, patch=8, text_length=12, vocabulary=100, embedding=16, pool="token", text_mask="causal", image_norm=True,
    )  # fmt: skip
    model = LIMoE(config, RouterConfig())
    with FlopCounterMode(display=False) as counter:
        found = model(torch.rand(4, 3, 32, 32), torch.randint(1, 100, (4, 12)))
        (found.images @ found.texts.T).sum().backward()
    # Attention is not counted on a CPU; step_flops applies the heads to every token.
    assert 0.85 < counter.get_total_flops() / step_flops(config, RouterConfig(), 4) < 1
    counts = count_parameters(config, RouterConfig())
    assert counts.total - counts.applied == sum(value.numel() for value in model.towers[1].parameters())
