"""The expert layer against a loop over tokens."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.auxiliary import RoutingSums, layer_losses
from model.config import AuxiliaryConfig, RouterConfig
from model.experts import ExpertLayer
from model.stream import TokenStream
from tests.model import reference
from tests.model.build import assert_close, expert_layer, few, gradients, token_stream

EXPERTS = 4


def _reference_of(layer: ExpertLayer) -> reference.Layer:
    experts = layer.experts
    return reference.Layer(layer.router.weight, experts.up, experts.up_bias, experts.down, experts.down_bias)


def _groups(stream: TokenStream, group_size: int | None) -> tuple[list[int], int]:
    """Each token's group: pair by pair, `group_size` pairs a group."""
    group_n = []
    for segment in stream.segments:
        for sequence in range(segment.count):
            group_n += [sequence // group_size if group_size else 0] * segment.length
    return group_n, max(group_n) + 1


def _compare(layer: ExpertLayer, stream: TokenStream, noise_ne: Tensor, places: int, group_size: int | None) -> None:
    """Output, kept tokens and all gradients of the layer and of the loop."""
    config = layer.config
    group_n, groups = _groups(stream, group_size)
    x_nd = stream.x_nd.requires_grad_()
    actual, packed = layer(stream)
    expected, slot_nk = reference.expert_layer(
        _reference_of(layer), x_nd, noise_ne, stream.valid_n.tolist(), group_n, groups, config.top_k, places, config.priority
    )
    assert_close([actual], [expected])
    kept = [any(slot >= 0 for slot in slots) for slots in slot_nk]
    sums = RoutingSums.unpack(packed, EXPERTS)
    assert sums.kept_m.tolist() == [
        sum(k for k, m in zip(kept, stream.modality_n.tolist(), strict=True) if m == wanted) for wanted in (0, 1)
    ]
    weight_nd = torch.randn(x_nd.shape, dtype=x_nd.dtype, generator=torch.Generator().manual_seed(5))
    inputs = [x_nd, *layer.parameters()]
    assert_close(gradients((actual * weight_nd).sum(), inputs), gradients((expected * weight_nd).sum(), inputs))


@few
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 4),
    top_k=st.integers(1, 3),
    factor=st.sampled_from(["0.3", "1.0", "1.5", "4.0"]),
    priority=st.sampled_from(["gate", "token", "order"]),
    group_size=st.sampled_from([None, 1, 2, 4]),
)
def test_training_without_noise(seed: int, count: int, top_k: int, factor: str, priority: str, group_size: int | None) -> None:
    group_size = group_size if group_size and count % group_size == 0 else None
    config = RouterConfig(top_k=top_k, capacity_factor=float(factor), priority=priority, group_size=group_size, noise=0.0)
    layer, stream = expert_layer(seed, EXPERTS, config), token_stream(seed, count, 3, 2, 5)
    tokens_of_group = 5 * (group_size or count)
    noise_ne = torch.zeros(5 * count, EXPERTS, dtype=torch.float64)
    _compare(layer, stream, noise_ne, reference.capacity(tokens_of_group, EXPERTS, top_k, factor), group_size)


@few
@given(seed=st.integers(0, 10_000), top_k=st.integers(1, 2), noise=st.sampled_from([1.0, 3.0]))
def test_training_noise_is_drawn_once_a_logit_with_std_noise_over_experts(seed: int, top_k: int, noise: float) -> None:
    layer, stream = expert_layer(seed, EXPERTS, RouterConfig(top_k=top_k, noise=noise)), token_stream(seed, 3, 3, 2, 5)
    torch.manual_seed(seed)
    noise_ne = noise / EXPERTS * torch.randn(15, EXPERTS, dtype=torch.float64)
    torch.manual_seed(seed)
    _compare(layer, stream, noise_ne, reference.capacity(15, EXPERTS, top_k, "1.0"), None)


@few
@given(seed=st.integers(0, 10_000), count=st.integers(1, 4), top_k=st.integers(1, 3))
def test_evaluation_without_capacity_drops_nothing_and_draws_no_noise(seed: int, count: int, top_k: int) -> None:
    layer, stream = (
        expert_layer(seed, EXPERTS, RouterConfig(top_k=top_k, capacity_factor=0.1)).eval(),
        token_stream(seed, count, 3, 2, 5),
    )
    sums = RoutingSums.unpack(layer(stream)[1], EXPERTS)
    assert torch.equal(sums.kept_m, sums.tokens_m)
    _compare(layer, stream, torch.zeros(5 * count, EXPERTS, dtype=torch.float64), 5 * count, None)


@few
@given(seed=st.integers(0, 10_000), factor=st.sampled_from(["0.3", "1.0"]))
def test_evaluation_with_a_capacity_keeps_to_it(seed: int, factor: str) -> None:
    config = RouterConfig(capacity_factor=9.0, eval_capacity_factor=float(Fraction(factor)))
    layer, stream = expert_layer(seed, EXPERTS, config).eval(), token_stream(seed, 3, 3, 2, 5)
    _compare(layer, stream, torch.zeros(15, EXPERTS, dtype=torch.float64), reference.capacity(15, EXPERTS, 1, factor), None)


@few
@given(seed=st.integers(0, 10_000), count=st.sampled_from([3, 5, 7]), training=st.booleans())
def test_a_short_last_group_costs_the_full_ones_no_slot(seed: int, count: int, training: bool) -> None:
    config = RouterConfig(group_size=2, noise=0.0, capacity_factor=1.0, eval_capacity_factor=1.0)
    layer, stream = expert_layer(seed, EXPERTS, config).train(training), token_stream(seed, count, 3, 2, 5)
    noise_ne = torch.zeros(5 * count, EXPERTS, dtype=torch.float64)
    _compare(layer, stream, noise_ne, reference.capacity(5 * 2, EXPERTS, 1, "1.0"), 2)


@few
@given(seed=st.integers(0, 10_000), top_k=st.integers(1, 2), noise=st.sampled_from([0.0, 1.0, 2.0]), training=st.booleans())
def test_losses_come_from_the_logits_of_the_layer_and_the_std_of_its_noise(
    seed: int, top_k: int, noise: float, training: bool
) -> None:
    layer = expert_layer(seed, EXPERTS, RouterConfig(top_k=top_k, noise=noise)).train(training)
    stream = token_stream(seed, 3, 3, 2, 5)
    torch.manual_seed(seed)
    noise_ne = (noise / EXPERTS if training else 0.0) * torch.randn(15, EXPERTS, dtype=torch.float64)
    torch.manual_seed(seed)
    losses = layer_losses(RoutingSums.unpack(layer(stream)[1], EXPERTS), AuxiliaryConfig())
    logits_ne, valid_n = stream.x_nd @ layer.router.weight.T, stream.valid_n.tolist()
    sigma = (noise or 1.0) / EXPERTS  # without noise the load loss imagines the default one
    expected = {
        "importance": reference.importance(logits_ne, valid_n),
        "load": reference.load(logits_ne, logits_ne + noise_ne, valid_n, top_k, sigma),
        "z": reference.z(logits_ne, valid_n),
    }
    for name, loss in expected.items():
        assert_close([losses[name]], [loss])
        assert_close(gradients(losses[name], [layer.router.weight]), gradients(loss, [layer.router.weight]))


@few
@given(seed=st.integers(0, 10_000), top_k=st.integers(1, 2), training=st.booleans())
def test_pads_take_part_in_nothing(seed: int, top_k: int, training: bool) -> None:
    config = RouterConfig(top_k=top_k, noise=0.0)
    layer, stream = expert_layer(seed, EXPERTS, config).train(training), token_stream(seed, 3, 3, 4, 5)
    x_nd = stream.x_nd.requires_grad_()
    y_nd, sums = layer(stream)
    assert (y_nd[~stream.valid_n] == 0).all()
    (grad_nd,) = gradients(y_nd.square().sum() + sums.square().sum(), [x_nd])
    assert (grad_nd[~stream.valid_n] == 0).all()
    other_nd = torch.where(stream.valid_n.unsqueeze(1), x_nd, 100 * torch.randn_like(x_nd))
    assert_close(list(layer(stream.with_x(other_nd))), [y_nd, sums], tolerance=0)


def test_the_router_works_in_float32_in_a_bf16_model_and_under_autocast() -> None:
    layer, stream = expert_layer(0, EXPERTS, RouterConfig(noise=0.0)).bfloat16(), token_stream(0, 64, 3, 2, 5)
    stream = stream.with_x(stream.x_nd.bfloat16())
    y_nd, sums = layer(stream)
    assert y_nd.dtype == torch.bfloat16 and sums.dtype == torch.float32
    logits_ne = stream.x_nd.double() @ layer.router.weight.double().T
    assert_close([layer.router(stream.x_nd).double()], [logits_ne], tolerance=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close([layer.router(stream.x_nd).double()], [logits_ne], tolerance=1e-5)


@pytest.mark.parametrize("priority", ["gate", "token", "order"])
def test_a_single_token_and_experts_without_any(priority: str) -> None:
    layer = expert_layer(3, EXPERTS, RouterConfig(priority=priority, noise=0.0))
    stream = token_stream(3, 1, 1, 0, 5)
    _compare(layer, stream, torch.zeros(1, EXPERTS, dtype=torch.float64), 1, None)
    y_nd, _ = layer(stream)
    used = [bool(grad_hd.any()) for grad_hd in gradients(y_nd.sum(), [layer.experts.down_bias])[0]]
    assert sum(used) == 1
