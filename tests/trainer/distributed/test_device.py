"""Model FLOPs of a step, and the share of a device's peak that they are."""

import pytest
import torch

from model.config import ModelConfig, RouterConfig
from model.count import step_flops
from trainer.distributed.device import memory_gib, utilisation

ROUTED = {"width": 8, "mlp": 12, "heads": 2, "layers": 2, "image_size": 4, "patch": 2, "text_length": 5, "vocabulary": 20}
CPU = torch.device("cpu")


@pytest.mark.parametrize(("expert_layers", "top_k"), [([], 1), ([1], 1), ([1], 2)])
def test_flops_are_six_an_applied_weight_and_token_and_those_of_attention(expert_layers: list[int], top_k: int):
    config = ModelConfig(**ROUTED, expert_layers=expert_layers, experts=4, embedding=6)
    images, texts, width, mlp = 4, 5, 8, 12
    attention_weights = width * 3 * width + 3 * width + width * width + width
    mlp_weights = width * mlp + mlp + mlp * width + width
    router_weights = 4 * width
    blocks = 2 * (attention_weights + 4 * width) + mlp_weights
    blocks += (top_k * mlp_weights + router_weights) if expert_layers else mlp_weights
    rest = 2 * width + (3 * 2 * 2 * width + width) + 2 * width * 6 + 1  # last norm, patches, two heads, logit scale
    # Attention's two products, 2 FLOPs a multiplication, once forwards and twice backwards, in each of 2 blocks.
    products = 2 * 3 * 2 * 2 * width * (images**2 + texts**2)
    expected = 6 * (blocks + rest) * (images + texts) + products
    assert step_flops(config, RouterConfig(top_k=top_k), pairs=1) == expected
    assert step_flops(config, RouterConfig(top_k=top_k), pairs=7) == 7 * expected


def test_dropped_patches_take_nothing():
    config = ModelConfig(**ROUTED, embedding=6)
    half = step_flops(config, RouterConfig(), 1, image_tokens=2)
    attention = 2 * 3 * 2 * 2 * 8 * (2**2 + 5**2)
    everything = step_flops(config, RouterConfig(), 1) - 2 * 3 * 2 * 2 * 8 * (4**2 + 5**2)
    assert half == attention + everything * (2 + 5) / (4 + 5)


def test_a_frozen_weight_has_no_gradient_and_below_all_that_is_trained_nothing_has_one():
    config = ModelConfig(**ROUTED, expert_layers=[1], experts=4, embedding=6)
    images, texts, width, mlp = 4, 5, 8, 12
    block = 2 * 2 * width + (width * 3 * width + 3 * width + width * width + width) + width * mlp + mlp + mlp * width + width
    everything = step_flops(config, RouterConfig(), 1)

    def saved(*frozen: str) -> float:
        return everything - step_flops(config, RouterConfig(), 1, frozen)

    assert saved("towers.0.blocks.0.*") == 2 * block * (images + texts)  # the gradient of the embeddings passes through it
    spared = 4 * block * (images + texts) + 4 * 2 * width * (images**2 + texts**2)
    assert saved("patches.*", "tokens.*", "towers.0.blocks.0.*") == spared
    assert saved("*.1.mlp.experts.*") == 2 * (width * mlp + mlp + mlp * width + width) * (images + texts)


def test_utilisation_is_the_share_of_all_devices_peak(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert utilisation(989e12, 0.5, 4, torch.device("cuda")) == pytest.approx(0.5)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card of another maker")
    assert utilisation(989e12, 0.5, 4, torch.device("cuda")) is None
    assert utilisation(989e12, 0.5, 4, CPU) is None


def test_memory_of_a_process_is_in_gib():
    held = torch.ones(2**26)  # 1/4 GiB
    assert 0.25 < memory_gib(CPU) < 64
    assert held.sum() == 2**26
