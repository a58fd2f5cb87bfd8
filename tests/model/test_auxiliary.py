"""Auxiliary losses and routing metrics against loops over tokens."""

import math
import statistics
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.auxiliary import RoutingSums, auxiliary_loss, layer_losses, routing_metrics, routing_sums
from model.config import AuxiliaryConfig
from model.routing import choose_experts
from model.stream import IMAGE, MODALITIES, TEXT, TokenStream
from tests.model import reference
from tests.model.build import assert_close, few, gradients, token_stream

EXPERTS = 4
SIGMA = 0.3
OFF = {field.name: 0.0 for field in fields(AuxiliaryConfig) if field.name not in ("scale", "image_share", "text_share")}
ALL = AuxiliaryConfig(**dict.fromkeys(OFF, 1.0), image_share=0.9, text_share=0.8)  # taus that the entropies do not reach by far


class Layer:
    """Random logits of a stream, the sums the model takes of them, and what the loops say."""

    def __init__(self, seed: int, stream: TokenStream, top_k: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.stream, self.top_k = stream, top_k
        tokens = len(stream.valid_n)
        self.logits_ne = torch.randn(tokens, EXPERTS, dtype=torch.float64, generator=generator).requires_grad_()
        torch.manual_seed(seed)
        self.gates = choose_experts(self.logits_ne, top_k, SIGMA * torch.randn_like(self.logits_ne))
        self.kept_nk = torch.rand(tokens, top_k, generator=generator) > 0.4
        self.sums = RoutingSums.unpack(routing_sums(self.gates, self.kept_nk, stream, SIGMA), EXPERTS)

    def expected(self, config: AuxiliaryConfig) -> dict[str, Tensor]:
        """All losses."""
        valid_n, modality_n = self.stream.valid_n.tolist(), self.stream.modality_n.tolist()
        losses = {
            "importance": reference.importance(self.logits_ne, valid_n),
            "load": reference.load(self.logits_ne, self.gates.noisy_ne, valid_n, self.top_k, SIGMA),
            "z": reference.z(self.logits_ne, valid_n),
        }
        for m, share in ((IMAGE, config.image_share), (TEXT, config.text_share)):
            tau = math.log(share * EXPERTS)
            losses[f"local_{MODALITIES[m]}"] = reference.local_entropy(self.logits_ne, modality_n, valid_n, m)
            losses[f"global_{MODALITIES[m]}"] = reference.global_entropy(self.logits_ne, modality_n, valid_n, m, tau)
        return losses


@few
@given(seed=st.integers(0, 10_000), count=st.integers(1, 4), top_k=st.integers(1, 3), share=st.floats(0.3, 1.0))
def test_each_loss_and_its_gradient(seed: int, count: int, top_k: int, share: float) -> None:
    config = AuxiliaryConfig(**dict.fromkeys(OFF, 1.0), image_share=share, text_share=share)
    layer = Layer(seed, token_stream(seed, count, 3, 4, 2), top_k)
    expected, actual = layer.expected(config), layer_losses(layer.sums, config)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_close([actual[name]], [expected[name]])
        if expected[name].requires_grad:
            assert_close(gradients(actual[name], [layer.logits_ne]), gradients(expected[name], [layer.logits_ne]))


@pytest.mark.parametrize("name", OFF)
def test_a_weight_switches_on_its_loss_and_no_other(name: str) -> None:
    layer = Layer(1, token_stream(1, 3, 3, 4, 2))
    config = AuxiliaryConfig(**(OFF | {name: 2.0}))
    total, parts = auxiliary_loss([layer.sums], config)
    assert total is not None and parts.keys() == {name}
    expected = layer.expected(config)[name]
    assert_close([parts[name], total], [expected, 0.04 * 2.0 * expected])


@few
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 3),
    weights=st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=7, max_size=7),
)
def test_the_loss_is_scale_times_the_mean_over_layers_of_the_mean_over_losses(
    seed: int, layers: int, weights: list[float]
) -> None:
    weight = dict(zip(OFF, weights, strict=True))
    config = AuxiliaryConfig(**weight, scale=0.07)
    stack = [Layer(seed + index, token_stream(seed, 2, 3, 4, 2)) for index in range(layers)]
    total, parts = auxiliary_loss([layer.sums for layer in stack], config)
    switched_on = [name for name in weight if weight[name]]
    if not switched_on:
        assert total is None and parts == {}
        return
    expected = [layer.expected(config) for layer in stack]
    by_layer = [reference.mean([weight[name] * losses[name] for name in switched_on]) for losses in expected]
    assert total is not None
    assert_close([total], [0.07 * reference.mean(by_layer)])
    assert parts.keys() == set(switched_on)
    for name in switched_on:
        assert_close([parts[name]], [reference.mean([losses[name] for losses in expected])])


def test_the_default_is_the_papers_recipe() -> None:
    layer = Layer(2, token_stream(2, 3, 3, 4, 2))
    assert layer_losses(layer.sums, AuxiliaryConfig()).keys() == {
        "importance",
        "load",
        "z",
        "local_text",
        "global_image",
        "global_text",
    }
    assert auxiliary_loss([], AuxiliaryConfig()) == (None, {})
    expected = 0.04 * reference.mean([loss for name, loss in layer.expected(AuxiliaryConfig()).items() if name != "local_image"])
    total, _ = auxiliary_loss([layer.sums], AuxiliaryConfig())
    assert total is not None
    assert_close([total], [expected])


def test_chances_are_left_out_where_no_load_loss_needs_them() -> None:
    layer = Layer(3, token_stream(3, 3, 3, 4, 2))
    packed = routing_sums(layer.gates, layer.kept_nk, layer.stream, SIGMA, chances=False)
    sums = RoutingSums.unpack(packed, EXPERTS)
    assert not sums.chance_e.any() and layer.sums.chance_e.all()
    config = AuxiliaryConfig(load=0.0)
    assert_close(list(layer_losses(sums, config).values()), list(layer_losses(layer.sums, config).values()), tolerance=0)


def test_perfect_balance_costs_nothing_and_collapse_costs_what_theory_says() -> None:
    stream = token_stream(0, 2, 4, 4, 2)
    stream.valid_n.fill_(True)
    even_ne = 60 * torch.eye(4, dtype=torch.float64).repeat(4, 1)  # each expert has every fourth token, for certain
    collapsed_ne = torch.tensor([60.0, 0, 0, 0], dtype=torch.float64).repeat(16, 1)
    for logits_ne, variation, gap in ((even_ne, 0.0, 0.0), (collapsed_ne, 3.0, math.log(0.9 * 4))):
        gates = choose_experts(logits_ne, 1)
        sums = RoutingSums.unpack(routing_sums(gates, torch.ones(16, 1, dtype=torch.bool), stream, SIGMA), 4)
        losses = layer_losses(sums, ALL)
        assert losses["importance"].item() == pytest.approx(variation, abs=1e-9)
        assert losses["global_image"].item() == pytest.approx(gap, abs=1e-9)
        assert losses["local_text"].item() == pytest.approx(0, abs=1e-9)
    # The chosen expert has half a chance to stay on top, the others none: (std / mean)^2 is 3 again.
    assert losses["load"].item() == pytest.approx(3.0, abs=1e-9)


@pytest.mark.parametrize("present", [IMAGE, TEXT])
def test_an_absent_modality_adds_nothing_and_is_never_nan(present: int) -> None:
    stream = token_stream(3, 3, 3 if present == IMAGE else 0, 0 if present == IMAGE else 4, 2)
    layer = Layer(3, stream)
    losses = layer_losses(layer.sums, ALL)
    absent = MODALITIES[1 - present]
    assert losses[f"local_{absent}"] == 0 and losses[f"global_{absent}"] == 0
    for name, expected in layer.expected(ALL).items():
        assert_close([losses[name]], [expected])
    total, _ = auxiliary_loss([layer.sums], ALL)
    assert total is not None and total.isfinite()
    assert gradients(total, [layer.logits_ne])[0].isfinite().all()
    metrics = routing_metrics({0: layer.sums})
    assert all(value.isfinite() for value in metrics.values())


def test_gates_of_exactly_zero_leave_finite_losses_and_gradients() -> None:
    stream = token_stream(0, 2, 3, 4, 2)
    logits_ne = torch.zeros(14, EXPERTS)
    logits_ne[:, 0] = 500.0  # in float32 the other gates are 0
    logits_ne.requires_grad_()
    gates = choose_experts(logits_ne, 1)
    sums = RoutingSums.unpack(routing_sums(gates, torch.ones(14, 1, dtype=torch.bool), stream, SIGMA), EXPERTS)
    total, _ = auxiliary_loss([sums], ALL)
    assert total is not None and total.isfinite()
    assert gradients(total, [logits_ne])[0].isfinite().all()
    assert all(value.isfinite() for value in routing_metrics({0: sums}).values())


@few
@given(seed=st.integers(0, 10_000))
def test_sums_of_parts_add_up_to_the_sums_of_the_whole(seed: int) -> None:
    stream = token_stream(seed, 4, 3, 4, 2)
    layer = Layer(seed, stream)
    half_n = torch.arange(28) % 2 == 0
    parts = []
    for chosen_n in (half_n, ~half_n):
        part = TokenStream(stream.x_nd, stream.modality_n, stream.valid_n & chosen_n, stream.segments)
        parts.append(routing_sums(layer.gates, layer.kept_nk, part, SIGMA))
    assert_close([parts[0] + parts[1]], [routing_sums(layer.gates, layer.kept_nk, stream, SIGMA)])


@few
@given(seed=st.integers(0, 10_000), top_k=st.integers(1, 2))
def test_metrics(seed: int, top_k: int) -> None:
    layers = {index: Layer(seed + index, token_stream(seed, 3, 3, 4, 2), top_k) for index in (1, 3)}
    metrics = routing_metrics({index: layer.sums for index, layer in layers.items()})
    success: dict[str, list[float]] = {name: [] for name in MODALITIES}
    expected: dict[str, float] = {}
    for index, layer in layers.items():
        valid_n, modality_n = layer.stream.valid_n.tolist(), layer.stream.modality_n.tolist()
        for m, name in enumerate(MODALITIES):
            members = [token for token, valid in enumerate(valid_n) if valid and modality_n[token] == m]
            if members:
                success[name].append(sum(any(layer.kept_nk[token].tolist()) for token in members) / len(members))
                used = math.exp(reference.entropy(reference.mean_gates(layer.logits_ne, modality_n, valid_n, m)).item())
            else:
                success[name].append(0.0)
                used = 1.0
            local = reference.local_entropy(layer.logits_ne, modality_n, valid_n, m).item()
            expected |= {
                f"routing/layer{index:02d}/success/{name}": success[name][-1],
                f"routing/layer{index:02d}/entropy/{name}": local,
                f"routing/layer{index:02d}/experts_used/{name}": used,
            }
        counts = {name: [0] * EXPERTS for name in ("max", *MODALITIES)}
        for token, valid in enumerate(valid_n):
            for expert in layer.gates.expert_nk[token].tolist():
                counts["max"][expert] += valid
                counts[MODALITIES[modality_n[token]]][expert] += valid
        for name, count_e in counts.items():
            expected[f"routing/layer{index:02d}/load/{name}"] = max(count_e) / (max(1, sum(count_e)) / EXPERTS)
        wanted = counts["max"]
        expected[f"routing/layer{index:02d}/load/cv"] = statistics.pstdev(wanted) / max(1e-9, statistics.mean(wanted))
        expected[f"routing/layer{index:02d}/dead_experts"] = sum(count == 0 for count in wanted)  # 1% of these few is none
    expected |= {f"routing/success/{name}": sum(values) / 2 for name, values in success.items()}
    texts = sum(valid and MODALITIES[m] == "text" for valid, m in zip(valid_n, modality_n, strict=True))
    expected["routing/dead_experts"] = sum(expected[f"routing/layer{index:02d}/dead_experts"] for index in layers)
    expected["routing/text_share"] = texts / max(1, sum(valid_n))
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected)
    assert not any(value.requires_grad for value in metrics.values())
