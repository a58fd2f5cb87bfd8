"""Sigmoid gates, expert choice, shared and finer experts, each against a loop over tokens."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.auxiliary import RoutingSums, layer_losses
from model.config import AuxiliaryConfig, RouterConfig
from model.count import count_parameters, step_flops
from model.experts import ExpertLayer
from model.limoe import LIMoE
from model.peers import SingleProcess
from model.routing import choose_experts, normalised_gates
from model.stream import TokenStream
from tests.model import reference
from tests.model.build import assert_close, expert_layer, few, gradients, model, pairs, randomise, tiny, token_stream

EXPERTS = 4
ZEROS = torch.zeros(15, EXPERTS, dtype=torch.float64)


def loop_of(layer: ExpertLayer) -> reference.Layer:
    """The same weights for the loop."""
    experts = layer.experts
    return reference.Layer(layer.router.weight, experts.up, experts.up_bias, experts.down, experts.down_bias)


def assert_same(layer: ExpertLayer, stream: TokenStream, actual: Tensor, expected: Tensor) -> None:
    """Outputs, and all gradients of a function of them."""
    assert_close([actual], [expected])
    inputs = [stream.x_nd, *layer.parameters()]
    assert_close(gradients(actual.square().sum(), inputs), gradients(expected.square().sum(), inputs))


def stream_of(seed: int) -> TokenStream:
    """Three images of three tokens and three texts of two, whose gradients are wanted."""
    stream = token_stream(seed, 3, 3, 2, 5)
    stream.x_nd.requires_grad_()
    return stream


@few
@given(seed=st.integers(0, 10_000), top_k=st.integers(1, 3), priority=st.sampled_from(["gate", "token", "order"]))
def test_sigmoid_gates(seed: int, top_k: int, priority: str) -> None:
    config = RouterConfig(gates="sigmoid", top_k=top_k, priority=priority, noise=0.0)
    layer, stream = expert_layer(seed, EXPERTS, config), stream_of(seed)
    places = reference.capacity(15, EXPERTS, top_k, "1.0")
    valid_n, group_n = stream.valid_n.tolist(), [0] * 15
    expected, _ = reference.expert_layer(
        loop_of(layer), stream.x_nd, ZEROS, valid_n, group_n, 1, top_k, places, priority, kind="sigmoid"
    )
    actual, packed = layer(stream)
    assert_same(layer, stream, actual, expected)
    # Losses and statistics take the gates normalised over the experts.
    sums = RoutingSums.unpack(packed, EXPERTS)
    shares = [
        [gate / sum(row) for gate in row]
        for row, valid in zip(map(reference.sigmoids, layer.router(stream.x_nd)), valid_n, strict=True)
        if valid
    ]
    importance = reference.squared_variation([sum(column[1:], column[0]) for column in zip(*shares, strict=True)])
    assert_close([layer_losses(sums, AuxiliaryConfig())["importance"]], [importance])
    assert_close([sums.entropy_m.sum()], [sum((reference.entropy(row) for row in shares), torch.zeros(()))])


@few
@given(
    seed=st.integers(0, 10_000),
    top_k=st.integers(1, 3),
    factor=st.sampled_from(["0.3", "1.0", "2.0"]),
    group_size=st.sampled_from([None, 1, 2]),
    training=st.booleans(),
)
def test_expert_choice(seed: int, top_k: int, factor: str, group_size: int | None, training: bool) -> None:
    config = RouterConfig(choice="expert", top_k=top_k, capacity_factor=float(factor), group_size=group_size, noise=0.0)
    layer, stream = expert_layer(seed, EXPERTS, config).train(training), stream_of(seed)
    of_a_group = (group_size or 3) if training else 1
    group_n = [sequence // of_a_group for length in (3, 2) for sequence in range(3) for _ in range(length)]
    places = reference.capacity(5 * of_a_group, EXPERTS, top_k, factor)
    valid_n = stream.valid_n.tolist()
    expected, taken_by = reference.expert_choice_layer(loop_of(layer), stream.x_nd, valid_n, group_n, max(group_n) + 1, places)
    actual, packed = layer(stream)
    assert_same(layer, stream, actual, expected)
    sums = RoutingSums.unpack(packed, EXPERTS)
    for m in (0, 1):
        mine = [experts for experts, modality in zip(taken_by, stream.modality_n.tolist(), strict=True) if modality == m]
        assert sums.kept_m[m] == sum(bool(experts) for experts in mine)
        assert sums.load_me[m].tolist() == [sum(expert in experts for experts in mine) for expert in range(EXPERTS)]


@few
@given(
    seed=st.integers(0, 10_000),
    top_k=st.integers(1, 3),
    factor=st.sampled_from(["0.3", "1.0", "4.0"]),
    priority=st.sampled_from(["gate", "token", "order"]),
    kind=st.sampled_from(["softmax", "sigmoid"]),
)
def test_normalised_gates(seed: int, top_k: int, factor: str, priority: str, kind: str) -> None:
    config = RouterConfig(
        normalise_gates=True, gates=kind, top_k=top_k, capacity_factor=float(factor), priority=priority, noise=0.0
    )
    layer, stream = expert_layer(seed, EXPERTS, config), stream_of(seed)
    places = reference.capacity(15, EXPERTS, top_k, factor)
    expected, _ = reference.expert_layer(
        loop_of(layer),
        *(stream.x_nd, ZEROS, stream.valid_n.tolist(), [0] * 15, 1, top_k, places, priority),
        kind=kind,
        normalise=True,
    )
    actual, packed = layer(stream)
    assert_same(layer, stream, actual, expected)
    # The losses and who gets a slot know nothing of it: with K=1 all gates would be equal.
    layer.config = replace(config, normalise_gates=False)
    assert torch.equal(layer(stream)[1], packed)


@few
@given(seed=st.integers(0, 10_000), top_k=st.integers(1, 3), factor=st.sampled_from(["0.3", "1.0"]))
def test_normalised_gates_of_the_experts_that_chose_a_token(seed: int, top_k: int, factor: str) -> None:
    config = RouterConfig(choice="expert", normalise_gates=True, top_k=top_k, capacity_factor=float(factor), noise=0.0)
    layer, stream = expert_layer(seed, EXPERTS, config), stream_of(seed)
    places = reference.capacity(15, EXPERTS, top_k, factor)
    expected, _ = reference.expert_choice_layer(
        loop_of(layer), stream.x_nd, stream.valid_n.tolist(), [0] * 15, 1, places, normalise=True
    )
    assert_same(layer, stream, layer(stream)[0], expected)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_gates_that_are_too_small_for_floating_point_are_normalised_too(kind: str) -> None:
    logits_ne = torch.tensor([[0.0, -2000.0, -2000.0 - math.log(3.0)]], dtype=torch.float64, requires_grad=True)
    gates = choose_experts(logits_ne, 2, expert_nk=torch.tensor([[1, 2]]), kind=kind)
    assert (gates.gate_nk == 0).all()
    shares_nk = normalised_gates(gates, torch.tensor([[True, True]]), kind)
    assert_close([shares_nk], [torch.tensor([[0.75, 0.25]], dtype=torch.float64)])
    assert gradients(shares_nk[0, 0], [logits_ne])[0].isfinite().all()


def test_with_expert_choice_an_embedding_does_not_depend_on_its_batch() -> None:
    config, router = tiny(), RouterConfig(choice="expert", top_k=2)
    net = model(config, router).eval()
    images, texts = pairs(6, config)
    together = net(images=images).images, net(texts=texts).texts
    for number in range(6):
        assert_close([net(images=images[number : number + 1]).images[0]], [together[0][number]])
        assert_close([net(texts=texts[number : number + 1]).texts[0]], [together[1][number]])


@few
@given(seed=st.integers(0, 10_000), shared=st.integers(1, 2), choice=st.sampled_from(["token", "expert"]))
def test_shared_experts_are_passed_by_every_token(seed: int, shared: int, choice: str) -> None:
    config = RouterConfig(choice=choice, capacity_factor=0.3, noise=0.0)
    layer, stream = ExpertLayer(5, 7, EXPERTS, config, SingleProcess(), shared).double(), stream_of(seed)
    randomise(layer, seed)
    assert layer.shared is not None and layer.shared.up.weight.shape == (7 * shared, 5)
    actual, _ = layer(stream)
    mlp, layer.shared = layer.shared, None
    routed, _ = layer(stream)
    layer.shared = mlp
    always = torch.stack(
        [mlp.down.weight @ reference.gelu(mlp.up.weight @ x_d + mlp.up.bias) + mlp.down.bias for x_d in stream.x_nd]
    )
    assert (routed == 0).all(1).any(), "nothing was dropped"
    assert_same(layer, stream, actual, routed + always)


def test_finer_experts_are_as_many_narrower_ones_and_choices() -> None:
    fine, plain = tiny(expert_granularity=3), tiny(experts=12)
    assert (fine.routed_experts, fine.expert_width) == (12, 4)
    by_c, by_hand = model(fine, RouterConfig(top_k=2, noise=0.0)), model(plain, RouterConfig(top_k=6, noise=0.0))
    layer = by_hand.towers[0].blocks[1].mlp = ExpertLayer(  # type: ignore[union-attr, index]
        8, 4, 12, RouterConfig(top_k=6, noise=0.0), SingleProcess()
    ).double()
    assert isinstance(layer, ExpertLayer)
    by_hand.load_state_dict(by_c.state_dict())
    one, other = by_c(*pairs(4, fine)), by_hand(*pairs(4, fine))
    assert torch.equal(one.images, other.images) and torch.equal(one.routing[1], other.routing[1])
    assert by_c.towers[0].blocks[1].mlp.experts.up.shape == (12, 8, 4)  # type: ignore[union-attr, index]


def test_finer_experts_cost_what_coarse_ones_do_and_shared_ones_count_as_applied() -> None:
    coarse, router = tiny(), RouterConfig(top_k=2)
    counts = count_parameters(coarse, router)
    finer = count_parameters(replace(coarse, expert_granularity=3), router)
    extra_routers, extra_biases = 8 * 8, 8 * 8  # of 8 more experts: rows of the router, and output biases
    assert finer.experts == counts.experts + extra_biases
    assert finer.total == counts.total + extra_routers + extra_biases
    assert finer.applied == counts.applied + extra_routers + extra_biases // 2
    shared = count_parameters(replace(coarse, expert_granularity=3, shared_experts=2), router)
    mlp = 2 * 8 * (2 * 4) + 2 * 4 + 8
    assert shared.experts == finer.experts
    assert shared.applied - finer.applied == shared.total - finer.total == mlp
    tokens = coarse.image_tokens + coarse.text_length
    more = step_flops(replace(coarse, expert_granularity=3, shared_experts=2), router, 1)
    assert more - step_flops(replace(coarse, expert_granularity=3), router, 1) == 6 * mlp * tokens
    net = LIMoE(replace(coarse, expert_granularity=3, shared_experts=2), router)
    assert shared.total == sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("values", [{"expert_granularity": 3}, {"shared_experts": 1}])
def test_a_model_starts_alike_wherever_its_experts_live(values: dict[str, int]) -> None:
    class Second(SingleProcess):
        expert_parallel, expert_rank = 2, 1

    config = tiny(**values)
    whole = dict(model(config).named_parameters())
    for name, parameter in model(config, peers=Second()).named_parameters():
        wanted = whole[name][config.routed_experts // 2 :] if ".experts." in name else whole[name]
        assert torch.equal(parameter, wanted), name
