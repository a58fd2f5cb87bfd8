"""A GPU computes what a CPU computes: embeddings, routing, losses and gradients, plain, recomputed and compiled."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from model.limoe import LIMoE
from model.objective import training_losses
from model.peers import SingleProcess
from model.preprocess import normalise
from model.routing import assign_slots, choose_experts
from tests.distributed.setups import Layout, batch, tiny
from trainer.engine.build import wrap_blocks

PAIRS = 16


@contextmanager
def exact_products() -> Iterator[None]:
    """No TF32, whatever the environment says."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def learned(device: torch.device, dtype: torch.dtype, **changes: object) -> dict[str, Tensor]:
    """The loss, its parts, and every gradient of one batch with few slots, on the CPU."""
    config = tiny(Layout(changes=tuple((name.replace("__", "."), value) for name, value in changes.items())))
    config.router.capacity_factor = 0.75
    model = LIMoE(config.model, config.router).initialise(0).to(device, dtype)
    wrap_blocks(model, config)
    images, texts = batch(0, config)
    with exact_products():
        torch.manual_seed(3)
        losses = training_losses(
            model(images.to(device, dtype), texts.to(device)), config.router.aux, config.model.routed_experts, SingleProcess()
        )
        losses.total.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    found = {"loss": losses.total.detach(), **losses.parts, **gradients}
    return {name: value.double().cpu() for name, value in found.items()}


def assert_close(actual: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == wanted.keys()
    for name, value in wanted.items():
        off = ((actual[name] - value).norm() / value.norm().clamp(min=1e-12)).item()
        assert off <= tolerance, f"{name}: off by {off:.1e}"


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_loss_and_gradients_are_those_of_a_cpu(device: torch.device, dtype: torch.dtype, tolerance: float, top_k: int) -> None:
    """In float64 the same tokens are dropped. In float32 a sum may be rounded another way, so gradients agree less."""
    changes = {"router__top_k": top_k}
    assert_close(learned(device, dtype, **changes), learned(torch.device("cpu"), dtype, **changes), tolerance)


@pytest.mark.parametrize("kind", ["blocks", "offload"])
def test_a_recomputation_sends_every_token_to_the_same_expert(device: torch.device, kind: str) -> None:
    noisy = {"router__noise": 1.0}
    plain = learned(device, torch.float32, **noisy)
    assert_close(learned(device, torch.float32, **noisy, train__activation_checkpointing=kind), plain, 1e-5)


def test_compiled_blocks_learn_what_plain_ones_learn(device: torch.device) -> None:
    plain = learned(device, torch.float32)
    assert_close(learned(device, torch.float32, train__compile=True), plain, 1e-3)
    assert_close(learned(device, torch.float32, train__compile=True, train__activation_checkpointing="blocks"), plain, 1e-3)


@pytest.mark.parametrize("priority", ["gate", "order", "token"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_slots_are_given_as_on_a_cpu(device: torch.device, priority: str, top_k: int) -> None:
    """Logits in steps, so that many are equal: ties are broken the same way."""
    generator = torch.Generator().manual_seed(5)
    logits_ne = torch.randint(0, 8, (4096, 8), generator=generator).float()
    valid_n = torch.rand(4096, generator=generator) < 0.9
    placed = []
    for where in (torch.device("cpu"), device):
        gates = choose_experts(logits_ne.to(where), top_k)
        slots = assign_slots(gates, valid_n.to(where), None, 1, experts=8, slots=256, priority=priority)
        placed.append((gates.expert_nk.cpu(), slots.choice_of_slot.cpu(), slots.slot_of_choice.cpu()))
    for here, there in zip(*placed, strict=True):
        assert torch.equal(here, there)


def test_pixels_are_normalised_as_on_a_cpu(device: torch.device) -> None:
    pixels = torch.randint(0, 256, (PAIRS, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
    found = normalise(pixels.to(device), mean, std, torch.float32)
    torch.testing.assert_close(found.cpu(), normalise(pixels, mean, std, torch.float32), rtol=1e-6, atol=1e-6)


def test_an_evaluation_drops_nothing_and_does_not_depend_on_the_batch(device: torch.device) -> None:
    config = tiny()
    model = LIMoE(config.model, config.router).initialise(0).to(device).eval()
    images, texts = (rows.to(device) for rows in batch(0, config))
    with torch.no_grad(), exact_products():
        together = model(images, texts)
        alone = [model(images[row : row + 1], texts[row : row + 1]) for row in range(4)]
    for row, one in enumerate(alone):
        torch.testing.assert_close(one.images[0], together.images[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.texts[0], together.texts[row], rtol=1e-4, atol=1e-5)
