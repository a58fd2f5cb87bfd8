"""A batch in pieces has the loss, the statistics and the gradients of the same batch in one piece, routed in the same groups."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.auxiliary import RoutingSums
from model.balance import update_biases
from model.config import BiasConfig, ModelConfig, RouterConfig
from model.limoe import LIMoE, Output, expert_layers
from model.objective import Losses, training_losses
from model.peers import SingleProcess
from model.pieces import FirstPass, replayed, whole_losses
from model.routing import Assignment
from model.stream import IMAGE, TEXT, Segment
from tests.model.build import assert_close, gradients, model, pairs, tiny

SPARSE = tiny(layers=3, expert_layers=[0, 2])
BATCH, PIECES = 12, 3
OF_A_PIECE = BATCH // PIECES
DROPPING = RouterConfig(noise=3.0, capacity_factor=0.4)
ROUTERS = {
    "gate": DROPPING,
    "order": replace(DROPPING, priority="order"),
    "gate, K=2": replace(DROPPING, top_k=2),
    "token, K=2": replace(DROPPING, top_k=2, priority="token", normalise_gates=True),
    "order, K=2": replace(DROPPING, top_k=2, priority="order"),
    "expert choice": replace(DROPPING, choice="expert"),
    "bias by modality": replace(DROPPING, bias=BiasConfig(kind="modality", rate=0.1)),
    "no noise": replace(DROPPING, noise=0.0),
}


def generators(first: int, count: int) -> list[torch.Generator]:
    """Of `count` routing groups of the batch, from number `first` on."""
    return [torch.Generator().manual_seed(100 + group) for group in range(first, first + count)]


def assignments(net: LIMoE, count: int, noise: list[torch.Generator]) -> dict[int, Assignment]:
    """For a pass of `count` pairs."""
    segments = (Segment(IMAGE, count, net.config.image_tokens), Segment(TEXT, count, net.config.text_length))
    return {index: layer.draw(segments, noise) for index, layer in expert_layers(net).items()}


def losses_of(output: Output, net: LIMoE, router: RouterConfig) -> Losses:
    """Of a batch in one piece."""
    return training_losses(output, router.aux, net.config.routed_experts, SingleProcess())


def at_once(net: LIMoE, batch: tuple[Tensor, Tensor], router: RouterConfig, groups: int) -> tuple[Losses, list[Tensor]]:
    """Losses and all gradients of a batch in one piece."""
    losses = losses_of(net(*batch, assignments(net, BATCH, generators(0, groups))), net, router)
    return losses, gradients(losses.total, list(net.parameters()))


def in_pieces(
    net: LIMoE, batch: tuple[Tensor, Tensor], router: RouterConfig, groups: int, chunk: int | None = None
) -> tuple[Losses, list[Tensor]]:
    """The same in pieces of `groups` routing groups each; chunk: rows of logits at a time."""
    cut = list(zip(*(tensor.split(OF_A_PIECE) for tensor in batch), strict=True))
    noise = [assignments(net, OF_A_PIECE, generators(groups * number, groups)) for number in range(PIECES)]
    with torch.no_grad():
        firsts = [FirstPass.of(net(*piece, drawn)) for piece, drawn in zip(cut, noise, strict=True)]
    losses, wanted = whole_losses(firsts, router.aux, net.config.routed_experts, SingleProcess(), chunk)
    net.zero_grad()
    for number, (piece, first, gradient) in enumerate(zip(cut, firsts, wanted, strict=True)):
        drawn = assignments(net, OF_A_PIECE, generators(groups * number, groups))
        again = {layer: first.decisions[layer].assignment(drawn[layer].noise_ne) for layer in drawn}
        replayed(net(*piece, again), gradient).backward()
    return losses, [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]


def assert_same_losses(one: Losses, other: Losses) -> None:
    """Values and statistics."""
    assert_close(
        [one.total, one.contrastive, one.auxiliary, one.scale, *one.parts.values()],
        [other.total, other.contrastive, other.auxiliary, other.scale, *other.parts.values()],
    )
    assert one.bias == other.bias
    assert one.parts.keys() == other.parts.keys() and one.routing.keys() == other.routing.keys()
    for layer, sums in one.routing.items():
        assert_close(list(vars(sums).values()), list(vars(other.routing[layer]).values()))


@pytest.mark.parametrize("groups", [1, 2], ids=["a piece is a group", "a piece is two groups"])
@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS.keys())
def test_a_batch_in_pieces_is_the_batch_at_once(router: RouterConfig, groups: int) -> None:
    router = replace(router, group_size=OF_A_PIECE // groups)
    if router.choice == "expert":
        router = replace(router, aux=replace(router.aux, load=0.0))
    batch = pairs(BATCH, SPARSE)
    nets = [model(SPARSE, router) for _ in range(2)]
    expected, expected_grads = at_once(nets[0], batch, router, PIECES * groups)
    actual, actual_grads = in_pieces(nets[1], batch, router, groups)
    assert any(_dropped(sums) for sums in expected.routing.values()), "nothing to tell right from wrong"
    assert_same_losses(actual, expected)
    assert_close(actual_grads, expected_grads)
    for net, losses in zip(nets, (expected, actual), strict=True):
        update_biases(net, losses.routing)
    assert_close(list(nets[1].buffers()), list(nets[0].buffers()))


def _dropped(sums: RoutingSums) -> bool:
    return bool((sums.kept_m < sums.tokens_m).any())


@pytest.mark.parametrize("shape", [{}, {"towers": 2}, {"loss": "sigmoid"}], ids=["one tower", "two towers", "sigmoid loss"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_dense_models_too(shape: dict[str, Any], chunk: int | None) -> None:
    config, router = tiny(expert_layers=[], **shape), RouterConfig()
    net, batch = model(config, router), pairs(BATCH, config)
    expected, expected_grads = at_once(net, batch, router, 1)
    actual, actual_grads = in_pieces(net, batch, router, 1, chunk)
    assert_same_losses(actual, expected)
    assert_close(actual_grads, expected_grads)


def test_a_logit_scale_at_its_maximum_stays_there_or_falls_as_at_once() -> None:
    config, router = replace(SPARSE, initial_scale=100.0), replace(DROPPING, group_size=OF_A_PIECE)
    net, batch = model(config, router), pairs(BATCH, config)
    assert_close(in_pieces(net, batch, router, 1)[1], at_once(net, batch, router, PIECES)[1])


def test_another_routing_of_the_second_pass_would_show() -> None:
    """Of a router whose logits have other last bits the second time, all of them ties: the decisions of the first are kept."""
    router = replace(DROPPING, noise=0.0, group_size=OF_A_PIECE)
    net, batch = model(SPARSE, router), pairs(BATCH, SPARSE)
    for layer in expert_layers(net).values():
        torch.nn.init.zeros_(layer.router.weight)
    losses, expected = in_pieces(net, batch, router, 1)
    handles = [
        layer.router.register_forward_hook(
            lambda _module, _given, logits_ne: logits_ne + 1e-13 * torch.randn_like(logits_ne) * torch.is_grad_enabled()
        )
        for layer in expert_layers(net).values()
    ]
    again, actual = in_pieces(net, batch, router, 1)
    assert_same_losses(again, losses)
    assert_close(actual, expected)
    other = at_once(net, batch, router, PIECES)[0]  # decides for itself, by those last bits
    assert abs(other.total - losses.total) > 1e-6
    for handle in handles:
        handle.remove()


def test_both_modalities_are_needed() -> None:
    net = model(SPARSE)
    with pytest.raises(ValueError, match="both images and texts"):
        FirstPass.of(net(texts=pairs(2, SPARSE)[1]))


def test_decisions_are_kept_in_few_bytes_and_come_back_whole() -> None:
    for router in ROUTERS.values():
        net = model(ModelConfig(**vars(SPARSE)), router)
        for used in net(*pairs(BATCH, SPARSE)).assignments.values():
            kept = used.decisions()
            again = kept.assignment(used.noise_ne)
            assert again.noise_ne is used.noise_ne and torch.equal(again.expert_nk, used.expert_nk)
            assert torch.equal(again.slots.choice_of_slot, used.slots.choice_of_slot)
            assert torch.equal(again.slots.slot_of_choice, used.slots.slot_of_choice)
            choices = used.expert_nk.numel() if router.choice == "token" else used.expert_nk.shape[1]
            stored = sum(t.untyped_storage().nbytes() for t in (kept.expert_nk, kept.choice_of_slot))
            assert stored == 2 * choices + 4 * kept.choice_of_slot.numel()
    with pytest.raises(ValueError, match="nothing is decided"):
        Assignment().decisions()
