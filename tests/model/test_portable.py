"""The encoders in portable operators compute what the model computes, whatever the batch."""

from typing import Any

import pytest
import torch

from model.config import BiasConfig, ModelConfig, RouterConfig
from model.limoe import LIMoE
from model.portable import portable_encoder
from model.stream import MODALITIES
from model.trim import Trim, has, trim
from tests.model.build import tiny

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one choice": ({}, {}),
    "two choices": ({"top_k": 2}, {}),
    "normalised, sigmoid, biased, fine and shared experts": (
        {"top_k": 2, "gates": "sigmoid", "normalise_gates": True, "bias": BiasConfig(kind="modality")},
        {"expert_granularity": 2, "shared_experts": 1},
    ),
    "experts choose": ({"choice": "expert", "capacity_factor": 1.5}, {}),
    "experts choose, normalised": ({"choice": "expert", "normalise_gates": True}, {}),
    "two towers": ({}, {"towers": 2, "expert_layers": []}),
}


def shape(**changes: Any) -> ModelConfig:
    return tiny(**{"image_size": 16, "patch": 4, "vocabulary": 100, "text_length": 8} | changes)


def decided(router: RouterConfig, config: ModelConfig) -> LIMoE:
    """A model whose routers prefer some experts, and whose biases change choices."""
    model = LIMoE(config, router.without_drops()).initialise(3).eval()
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        value.add_(torch.randn(value.shape, generator=generator), alpha=0.3 if "log_scale" not in name else 0)
    return model


def inputs(modality: str, config: ModelConfig, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    if modality == "image":
        return torch.randn(count, 3, config.image_size, config.image_size, generator=generator)
    ids = torch.randint(1, config.vocabulary, (count, config.text_length), generator=generator)
    lengths = torch.randint(1, config.text_length + 1, (count, 1), generator=generator)
    return ids.masked_fill(torch.arange(config.text_length) >= lengths, 0)


@torch.no_grad()
def assert_same(model: LIMoE, modality: str, tolerance: float = 1e-6) -> None:
    encoder = portable_encoder(model, modality)
    for count in (1, 2, 7):
        batch = inputs(modality, model.config, count)
        expected = getattr(model(**{f"{modality}s": batch}), f"{modality}s")
        torch.testing.assert_close(encoder(batch), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_encoder_embeds_as_the_model_does(variant: str, modality: str):
    router, changes = VARIANTS[variant]
    assert_same(decided(RouterConfig(**router), shape(**changes)), modality)


@pytest.mark.parametrize("variant", ["two choices", "two towers"])
def test_of_a_trimmed_model_too(variant: str):
    router, changes = VARIANTS[variant]
    model = decided(RouterConfig(**router), shape(**changes))
    experts = dict.fromkeys(model.config.expert_layers, (0, 2, 3))
    trim(model, Trim("text", experts))
    assert has(model, "text") and not has(model, "image")
    assert_same(model, "text")


def test_in_bfloat16_the_same_is_computed_in_bfloat16():
    model = decided(RouterConfig(), shape()).bfloat16()
    assert_same(model, "image", 4e-3)


def test_a_batch_of_nothing_but_padding_is_computed():
    model = decided(RouterConfig(), shape())
    nothing = torch.zeros(2, 8, dtype=torch.int64)
    with torch.no_grad():
        torch.testing.assert_close(portable_encoder(model, "text")(nothing), model(texts=nothing).texts)


def test_the_model_stays_as_it_is():
    model = decided(RouterConfig(), shape())
    names = set(model.state_dict())
    encoder = portable_encoder(model, "text")
    assert set(model.state_dict()) == names and has(model, "image")
    shared = {value.data_ptr() for value in model.parameters()}
    assert {value.data_ptr() for value in encoder.parameters()} < shared, "the weights are not copied"
