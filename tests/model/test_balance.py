"""The loss-free biases: who is chosen, how they move, and that they balance."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.auxiliary import RoutingSums, sum_over
from model.balance import bias_metrics, step_against, update_bias, update_biases
from model.config import AuxiliaryConfig, BiasConfig, RouterConfig
from model.experts import ExpertLayer, Router
from model.limoe import LIMoE
from model.objective import training_losses
from model.peers import SingleProcess
from model.routing import choose_experts
from model.stream import IMAGE, MODALITIES, TEXT, TokenStream
from tests.model import reference
from tests.model.build import assert_close, expert_layer, few, gradients, many, model, pairs, tiny, token_stream

EXPERTS = 4
OFF = AuxiliaryConfig(importance=0.0, load=0.0, z=0.0, local_text=0.0, global_image=0.0, global_text=0.0)


def biased(kind: str, update: str = "sign", rate: float = 0.001, **values: Any) -> RouterConfig:
    """A router whose only balance is the bias."""
    return RouterConfig(bias=BiasConfig(kind=kind, update=update, rate=rate), aux=OFF, **values)


def bias_of(layer: ExpertLayer) -> Tensor:
    """The bias of a layer that has one."""
    assert layer.router.bias is not None
    return layer.router.bias


@many
@given(
    loads=st.lists(st.lists(st.integers(0, 9), min_size=EXPERTS, max_size=EXPERTS), min_size=1, max_size=3),
    update=st.sampled_from(["sign", "zscore"]),
)
def test_a_step_is_that_of_the_loop(loads: list[list[int]], update: str) -> None:
    actual = step_against(torch.tensor(loads, dtype=torch.float64), update)
    expected = torch.tensor([reference.bias_step(load_e, update) for load_e in loads], dtype=torch.float64)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("update", ["sign", "zscore"])
def test_a_shared_bias_looks_at_the_sum_and_one_by_modality_at_each(update: str) -> None:
    load_me = torch.tensor([[6.0, 2.0, 4.0, 4.0], [0.0, 4.0, 1.0, 1.0]])  # together 6, 6, 5, 5
    start = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    shared, by_modality = start.clone(), start.repeat(2, 1)
    update_bias(shared, load_me, BiasConfig("shared", update, 0.5))
    torch.testing.assert_close(shared, start + 0.5 * torch.tensor([reference.bias_step([6, 6, 5, 5], update)]))
    update_bias(by_modality, load_me, BiasConfig("modality", update, 0.5, text_rate=0.25))
    steps = [reference.bias_step(load_e, update) for load_e in load_me.tolist()]
    torch.testing.assert_close(by_modality, start + torch.tensor([[0.5], [0.25]]) * torch.tensor(steps))


def test_a_modality_without_tokens_leaves_its_bias_as_it_is() -> None:
    for update in ("sign", "zscore"):
        bias_me = torch.full((2, 3), 0.7)
        update_bias(bias_me, torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), BiasConfig("modality", update, 0.1))
        assert (bias_me[IMAGE] != 0.7).all() and (bias_me[TEXT] == 0.7).all()


def test_the_bias_changes_who_is_chosen_and_no_gate() -> None:
    logits_ne = torch.randn(200, EXPERTS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain, moved = choose_experts(logits_ne, 2), choose_experts(logits_ne, 2, None, None, torch.tensor([[0.0, 9.0, 0.0, -9.0]]))
    assert (moved.expert_nk[:, 0] == 1).all() and (moved.expert_nk != 3).all()
    assert not torch.equal(plain.expert_nk, moved.expert_nk)
    torch.testing.assert_close(moved.gate_nk, logits_ne.softmax(-1).gather(1, moved.expert_nk))
    even = choose_experts(logits_ne, 2, None, None, torch.full((1, EXPERTS), 0.3))
    assert torch.equal(plain.expert_nk, even.expert_nk) and torch.equal(plain.gate_nk, even.gate_nk)


@few
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(["shared", "modality"]),
    top_k=st.integers(1, 3),
    priority=st.sampled_from(["gate", "token", "order"]),
    training=st.booleans(),
)
def test_a_biased_layer_is_the_loop_with_all_its_gradients(
    seed: int, kind: str, top_k: int, priority: str, training: bool
) -> None:
    config = biased(kind, top_k=top_k, priority=priority, noise=0.0, eval_capacity_factor=1.0)
    layer, stream = expert_layer(seed, EXPERTS, config).train(training), token_stream(seed, 3, 3, 2, 5)
    bias = torch.rand(bias_of(layer).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    bias_of(layer).copy_(bias)
    bias_ne = [bias[m if kind == "modality" else 0].tolist() for m in stream.modality_n.tolist()]
    x_nd = stream.x_nd.requires_grad_()
    experts = layer.experts
    expected, _ = reference.expert_layer(
        reference.Layer(layer.router.weight, experts.up, experts.up_bias, experts.down, experts.down_bias),
        x_nd,
        torch.zeros(15, EXPERTS, dtype=torch.float64),
        stream.valid_n.tolist(),
        [0] * 15,
        1,
        top_k,
        reference.capacity(15, EXPERTS, top_k, "1.0"),
        priority,
        bias_ne,
    )
    actual, _ = layer(stream)
    assert_close([actual], [expected])
    inputs = [x_nd, *layer.parameters()]
    assert_close(gradients(actual.square().sum(), inputs), gradients(expected.square().sum(), inputs))


def test_the_bias_is_state_but_no_parameter_and_stays_in_float32() -> None:
    net = LIMoE(tiny(), biased("modality")).bfloat16()
    name = "towers.0.blocks.1.mlp.router.bias"
    assert name in net.state_dict() and name not in dict(net.named_parameters())
    assert (net.state_dict()[name].shape, net.state_dict()[name].dtype) == ((len(MODALITIES), EXPERTS), torch.float32)
    assert name not in LIMoE(tiny(), RouterConfig()).state_dict()


def test_each_layer_follows_its_own_load_over_all_micro_batches() -> None:
    config, router = tiny(layers=3, expert_layers=[0, 2]), biased("shared", rate=0.5)
    net = model(config, router)
    passes = [training_losses(net(*pairs(4, config, seed)), OFF, EXPERTS, SingleProcess()).routing for seed in (1, 2)]
    update_biases(net, sum_over(passes))
    told = bias_metrics(net)
    for index in (0, 2):
        load_e = (passes[0][index].load_me + passes[1][index].load_me).sum(0)
        expected = 0.5 * torch.tensor([reference.bias_step(load_e.tolist(), "sign")], dtype=torch.float64)
        router_of = net.towers[0].blocks[index].mlp.router  # type: ignore[union-attr, index]
        assert isinstance(router_of, Router) and router_of.bias is not None
        torch.testing.assert_close(router_of.bias, expected)
        assert told[f"routing/layer{index:02d}/bias/all"].item() == pytest.approx((expected.max() - expected.min()).item())


def _planted() -> tuple[TokenStream, Tensor]:
    """1000 image tokens that all lean to expert 0, and 50 text tokens that all lean to expert 1; and the logits to get that."""
    stream = token_stream(7, 50, 20, 1, EXPERTS)
    stream.valid_n.fill_(True)
    lean_me = torch.zeros(len(MODALITIES), EXPERTS, dtype=torch.float64)
    lean_me[IMAGE, 0], lean_me[TEXT, 1] = 2.0, 2.0
    return stream.with_x(0.5 * stream.x_nd + lean_me[stream.modality_n]), lean_me


def _balanced(kind: str, update: str, rate: float, steps: int = 600) -> tuple[Tensor, Tensor]:
    """The shares of the experts `[M, E]` among each modality's choices, before the first and after the last step."""
    layer = expert_layer(0, EXPERTS, biased(kind, update, rate, noise=0.0), width=EXPERTS)
    stream, _ = _planted()
    shares = []
    with torch.no_grad():
        layer.router.weight.copy_(torch.eye(EXPERTS))
        for _ in range(steps):
            load_me = RoutingSums.unpack(layer(stream)[1], EXPERTS).load_me
            shares.append(load_me / load_me.sum(1, keepdim=True))
            update_bias(bias_of(layer), load_me, layer.config.bias)
    return shares[0], shares[-1]


@pytest.mark.parametrize(("update", "rate"), [("sign", 0.002), ("zscore", 0.002)])
def test_a_planted_imbalance_is_balanced(update: str, rate: float) -> None:
    before, after = _balanced("shared", update, rate)
    assert before[IMAGE, 0] > 0.8 and before[TEXT, 1] > 0.8
    # The shared bias evens the sum, of which images are nearly all. Texts are left where that has pushed them.
    assert after[IMAGE].max() < 0.3 and after[IMAGE].min() > 0.2
    assert after[TEXT].max() > 0.5
    _, after = _balanced("modality", update, rate)
    for m in (IMAGE, TEXT):
        assert after[m].max() < 0.32 and after[m].min() > 0.18
