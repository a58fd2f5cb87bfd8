"""Who goes where: gates, capacity, slots."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from model.routing import Gates, Slots, assign_slots, capacity, choose_experts, largest_load
from tests.model import reference
from tests.model.build import many


@dataclass
class Case:
    """A routing problem. Logits are few and coarse, so that equal gates are frequent."""

    gates: Gates
    valid_n: Tensor
    group_n: Tensor
    groups: int
    experts: int
    places: int
    priority: str

    def assign(self) -> Slots:
        """The model's answer."""
        group_n = self.group_n if self.groups > 1 else None
        return assign_slots(self.gates, self.valid_n, group_n, self.groups, self.experts, self.places, self.priority)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    tokens, experts = draw(st.integers(1, 24)), draw(st.integers(1, 6))
    top_k = draw(st.integers(1, min(3, experts)))
    levels = draw(st.integers(1, 6))  # 1: all gates are equal
    values = st.lists(st.integers(0, levels - 1), min_size=tokens * experts, max_size=tokens * experts)
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))  # gates are sorted in two ways
    logits_ne = torch.tensor(draw(values), dtype=dtype).view(tokens, experts)
    groups = draw(st.integers(1, 3))
    flags = st.lists(st.booleans(), min_size=tokens, max_size=tokens)
    members = st.lists(st.integers(0, groups - 1), min_size=tokens, max_size=tokens)
    return Case(
        gates=choose_experts(logits_ne, top_k),
        valid_n=torch.tensor(draw(st.one_of(st.just([True] * tokens), flags))),
        group_n=torch.tensor(draw(members)),
        groups=groups,
        experts=experts,
        places=draw(st.integers(1, tokens)),
        priority=draw(st.sampled_from(["gate", "token", "order"])),
    )


@many
@given(cases())
def test_experts_are_the_k_largest_gates_with_ties_to_the_lower_index(case: Case) -> None:
    for logits_e, gate_k, expert_k in zip(case.gates.logits_ne, case.gates.gate_nk, case.gates.expert_nk, strict=True):
        gate_e = [gate.item() for gate in reference.gates(logits_e)]
        # Compared by the logits: their order is the gates', without rounding.
        assert expert_k.tolist() == reference.best(logits_e.tolist(), len(expert_k))
        assert gate_k.tolist() == pytest.approx([gate_e[expert] for expert in expert_k.tolist()])


@many
@given(cases())
def test_slots_are_those_of_a_queue_served_one_at_a_time(case: Case) -> None:
    expected = reference.assign(
        case.gates.expert_nk.tolist(),
        case.gates.gate_nk.tolist(),
        case.valid_n.tolist(),
        case.group_n.tolist(),
        case.groups,
        case.experts,
        case.places,
        case.priority,
    )
    assert case.assign().slot_of_choice.tolist() == expected


@many
@given(cases())
def test_the_two_index_tensors_are_inverse_partial_permutations(case: Case) -> None:
    slots = case.assign()
    assert slots.choice_of_slot.shape == (case.experts, case.groups * case.places)
    assert slots.slot_of_choice.shape == case.gates.expert_nk.shape
    choice_of_slot, slot_of_choice = slots.choice_of_slot.flatten().tolist(), slots.slot_of_choice.flatten().tolist()
    forth = {(choice, slot) for choice, slot in enumerate(slot_of_choice) if slot != -1}
    back = {(choice, slot) for slot, choice in enumerate(choice_of_slot) if choice != -1}
    assert forth == back
    assert len({slot for _, slot in forth}) == len(forth)
    assert torch.equal(slots.kept_nk, slots.slot_of_choice >= 0)


@many
@given(cases())
def test_nobody_waits_while_a_place_is_free_and_pads_hold_none(case: Case) -> None:
    slots = case.assign()
    assert not slots.kept_nk[~case.valid_n].any()
    for expert in range(case.experts):
        for group in range(case.groups):
            claims = (case.gates.expert_nk == expert) & (case.valid_n & (case.group_n == group)).unsqueeze(1)
            buffer = slots.choice_of_slot[expert, group * case.places : (group + 1) * case.places]
            held = min(case.places, int(claims.sum()))
            assert (buffer[:held] >= 0).all() and (buffer[held:] == -1).all()
            assert int((slots.kept_nk & claims).sum()) == held


@many
@given(cases())
def test_first_choices_go_before_second_ones_and_large_gates_before_small_ones(case: Case) -> None:
    assume(case.priority == "gate")
    kept_nk = case.assign().kept_nk
    tokens, top_k = kept_nk.shape
    claims = [(n, k) for n in range(tokens) for k in range(top_k) if case.valid_n[n]]
    for winner in claims:
        for loser in claims:
            rivals = (
                case.gates.expert_nk[winner] == case.gates.expert_nk[loser] and case.group_n[winner[0]] == case.group_n[loser[0]]
            )
            if rivals and kept_nk[winner] and not kept_nk[loser]:
                assert (winner[1], -case.gates.gate_nk[winner], winner[0]) <= (loser[1], -case.gates.gate_nk[loser], loser[0])


def test_batch_priority_saves_the_largest_gate_wherever_it_stands() -> None:
    gates = choose_experts(torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 9.0]]), 1)
    valid_n = torch.ones(4, dtype=torch.bool)
    kept = {
        priority: assign_slots(gates, valid_n, None, 1, 2, 1, priority).kept_nk[:, 0].tolist() for priority in ("gate", "order")
    }
    assert kept == {"gate": [False, False, True, True], "order": [True, False, False, True]}


@many
@given(cases())
def test_slots_by_token_are_those_of_vmoe(case: Case) -> None:
    """Their `_get_top_experts_per_item_common` (vmoe/nn/routing.py): permute, one-hot, cumulate, permute back."""
    assume(case.groups == 1 and case.valid_n.all())
    permutation = torch.argsort(-case.gates.gate_nk[:, 0], stable=True)
    expert = case.gates.expert_nk[permutation].T.flatten()
    one_hot = torch.nn.functional.one_hot(expert, case.experts)
    place = ((one_hot.cumsum(0) * one_hot).sum(1) - 1).view(-1, len(permutation)).T[torch.argsort(permutation)]
    expected = torch.where(place < case.places, case.gates.expert_nk * case.places + place, -1)
    case.priority = "token"
    assert torch.equal(case.assign().slot_of_choice, expected)


def test_by_token_a_second_choice_goes_with_the_tokens_largest_gate() -> None:
    gate_nk = torch.tensor([[0.5, 0.4], [0.7, 0.2], [0.9, 0.1]])
    expert_nk = torch.tensor([[0, 2], [1, 2], [3, 0]])
    gates, valid_n = Gates(gate_nk, gate_nk, gate_nk, expert_nk), torch.ones(3, dtype=torch.bool)
    kept = {by: assign_slots(gates, valid_n, None, 1, 4, 1, by).kept_nk[:, 1].tolist() for by in ("gate", "token")}
    assert kept == {"gate": [True, False, False], "token": [False, True, False]}


@many
@given(
    tokens=st.integers(1, 5000),
    experts=st.integers(1, 64),
    top_k=st.integers(1, 4),
    factor=st.sampled_from(["0.5", "1.0", "1.05", "1.1", "1.25", "1.3", "2.0", "7.0"]),
)
def test_capacity_rounds_up_exactly(tokens: int, experts: int, top_k: int, factor: str) -> None:
    assert capacity(tokens, experts, top_k, float(factor)) == reference.capacity(tokens, experts, top_k, factor)


def test_capacity_of_a_single_token_and_of_rounding_errors() -> None:
    assert capacity(1, 32, 1, 1.0) == 1
    assert capacity(100, 10, 1, 1.1) == 11  # 1.1 * 100 / 10 is 11.000000000000002 in floating point
    assert capacity(9, 8, 1, 1.0) == 2
    assert capacity(3, 2, 2, 9.0) == 3  # an expert can get no token twice


@many
@given(cases())
def test_largest_load_counts_the_choices_of_valid_tokens(case: Case) -> None:
    counts = [0] * case.experts
    for expert_k, valid in zip(case.gates.expert_nk.tolist(), case.valid_n.tolist(), strict=True):
        for expert in expert_k:
            counts[expert] += valid
    assert int(largest_load(case.gates, case.valid_n, case.experts)) == max(counts)


def test_noise_moves_the_logits_that_route_and_leaves_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_ne, noise_ne = torch.randn(500, 4, generator=generator), 0.25 * torch.randn(500, 4, generator=generator)
    gates = choose_experts(logits_ne, 2, noise_ne)
    assert torch.equal(gates.logits_ne, logits_ne) and torch.equal(gates.noisy_ne, logits_ne + noise_ne)
    expected = gates.noisy_ne.softmax(-1).topk(2)
    assert torch.equal(gates.expert_nk, expected.indices) and torch.equal(gates.gate_nk, expected.values)
    assert choose_experts(logits_ne, 2).noisy_ne is logits_ne


def test_experts_that_are_chosen_already_stay_and_get_their_own_gates() -> None:
    logits_ne = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    chosen = torch.tensor([[2, 0], [1, 2]])
    gates = choose_experts(logits_ne, 2, None, chosen)
    assert torch.equal(gates.expert_nk, chosen)
    torch.testing.assert_close(gates.gate_nk, logits_ne.softmax(-1).gather(1, chosen))


def test_gradient_of_the_gates_is_that_of_a_softmax() -> None:
    logits_ne = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda logits: choose_experts(logits, 2).gate_nk, logits_ne)
