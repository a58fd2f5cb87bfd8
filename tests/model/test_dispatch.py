"""Into the buffers and back, against the one-hot products it replaces."""

import torch
from hypothesis import given
from torch import Tensor

from model.dispatch import combine, dispatch
from tests.model.build import assert_close, gradients, many
from tests.model.test_routing import Case, cases


def _one_hot(slot_of_choice: Tensor, slots: int) -> Tensor:
    """`[N, K, slots]`, 1 where the choice holds the slot."""
    one_hot = torch.zeros(*slot_of_choice.shape, slots, dtype=torch.float64)
    for token, row in enumerate(slot_of_choice.tolist()):
        for k, slot in enumerate(row):
            if slot >= 0:
                one_hot[token, k, slot] = 1
    return one_hot


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@many
@given(cases())
def test_dispatch_is_the_one_hot_product(case: Case) -> None:
    slots = case.assign()
    experts, places = slots.choice_of_slot.shape
    x_nd, weight_ecd = _normal(0, len(case.valid_n), 3), _normal(1, experts, places, 3)
    one_hot = _one_hot(slots.slot_of_choice, experts * places)
    expected = torch.einsum("nd,nks->sd", x_nd, one_hot).view(experts, places, 3)
    actual = dispatch(x_nd, slots.choice_of_slot, slots.slot_of_choice)
    assert_close([actual], [expected])
    assert_close(gradients((actual * weight_ecd).sum(), [x_nd]), gradients((expected * weight_ecd).sum(), [x_nd]))


@many
@given(cases())
def test_combine_is_the_weighted_one_hot_product(case: Case) -> None:
    slots = case.assign()
    experts, places = slots.choice_of_slot.shape
    tokens, top_k = slots.slot_of_choice.shape
    y_ecd, gate_nk, weight_nd = _normal(0, experts, places, 3), _normal(1, tokens, top_k), _normal(2, tokens, 3)
    one_hot = _one_hot(slots.slot_of_choice, experts * places)
    expected = torch.einsum("sd,nks,nk->nd", y_ecd.view(-1, 3), one_hot, gate_nk)
    actual = combine(y_ecd, gate_nk, slots.choice_of_slot, slots.slot_of_choice)
    assert_close([actual], [expected])
    inputs = [y_ecd, gate_nk]
    assert_close(gradients((actual * weight_nd).sum(), inputs), gradients((expected * weight_nd).sum(), inputs))


@many
@given(cases())
def test_a_token_without_a_slot_gets_zeros_and_gives_no_gradient(case: Case) -> None:
    slots = case.assign()
    x_nd = _normal(0, len(case.valid_n), 3)
    y_nd = combine(
        dispatch(x_nd, slots.choice_of_slot, slots.slot_of_choice) + 1,  # empty slots hold something, too
        torch.ones_like(case.gates.gate_nk),
        slots.choice_of_slot,
        slots.slot_of_choice,
    )
    dropped = ~slots.kept_nk.any(1)
    (grad_nd,) = gradients(y_nd.sum(), [x_nd])
    assert (y_nd[dropped] == 0).all() and (grad_nd[dropped] == 0).all()
    assert_close([y_nd[~dropped]], [(slots.kept_nk.sum(1, keepdim=True) * (x_nd + 1))[~dropped]])


def test_gradcheck() -> None:
    choice_of_slot = torch.tensor([[4, -1], [1, 3], [-1, -1]])  # 3 tokens with 2 choices; choices 0, 2 and 5 are dropped
    slot_of_choice = torch.tensor([[-1, 2], [-1, 3], [0, -1]])
    assert torch.autograd.gradcheck(lambda x: dispatch(x, choice_of_slot, slot_of_choice), _normal(0, 3, 2))
    inputs = (_normal(1, 3, 2, 2), _normal(2, 3, 2))
    assert torch.autograd.gradcheck(lambda y, gate: combine(y, gate, choice_of_slot, slot_of_choice), inputs)
