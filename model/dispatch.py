"""Moving tokens into expert buffers and back, by index in both directions.

`slot_of_choice [N, K]` and `choice_of_slot [E, C]` are inverse partial permutations, so the gradient of a gather by one is a
gather by the other: no scatter, no atomic addition, deterministic.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def _rows_or_zero(rows: Tensor, index: Tensor) -> Tensor:
    """`rows[index]`, with a row of zeros where the index is negative."""
    return rows.index_select(0, index.clamp(min=0)).masked_fill_((index < 0).unsqueeze(1), 0)


def _sum_over_choices(rows_nkd: Tensor) -> Tensor:
    return rows_nkd.squeeze(1) if rows_nkd.shape[1] == 1 else rows_nkd.sum(1)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_nd: Tensor, choice_of_slot: Tensor, slot_of_choice: Tensor) -> Tensor:
        ctx.save_for_backward(slot_of_choice)
        top_k = slot_of_choice.shape[1]
        token_of_slot = torch.where(choice_of_slot < 0, -1, choice_of_slot // top_k)
        return _rows_or_zero(x_nd, token_of_slot.flatten()).view(*choice_of_slot.shape, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ecd: Tensor) -> tuple[Tensor, None, None]:
        (slot_of_choice,) = ctx.saved_tensors
        grad_nkd = _rows_or_zero(grad_ecd.flatten(0, 1), slot_of_choice.flatten()).view(*slot_of_choice.shape, -1)
        return _sum_over_choices(grad_nkd), None, None


class _Combine(torch.autograd.Function):
    """gate_nk: in the dtype of the outputs, 0 for a choice without a slot, whatever row is then multiplied with it.

    The gates meet the rows where these have been gathered already: tokens in the forward pass, slots in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, y_ecd: Tensor, gate_nk: Tensor, choice_of_slot: Tensor, slot_of_choice: Tensor) -> Tensor:
        ctx.save_for_backward(y_ecd, gate_nk, choice_of_slot, slot_of_choice)
        y_nkd = y_ecd.flatten(0, 1).index_select(0, slot_of_choice.clamp(min=0).flatten()).view(*slot_of_choice.shape, -1)
        return _sum_over_choices(y_nkd.mul_(gate_nk.unsqueeze(-1)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nd: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y_ecd, gate_nk, choice_of_slot, slot_of_choice = ctx.saved_tensors
        choice, slot = choice_of_slot.clamp(min=0).flatten(), slot_of_choice.clamp(min=0).flatten()
        grad_sd = grad_nd.index_select(0, choice // gate_nk.shape[1])
        grad_gate_s = (grad_sd * y_ecd.flatten(0, 1)).sum(-1)
        gate_s = gate_nk.flatten().index_select(0, choice).masked_fill_(choice_of_slot.flatten() < 0, 0)
        grad_gate_nk = grad_gate_s.index_select(0, slot).view_as(slot_of_choice).masked_fill_(slot_of_choice < 0, 0)
        return grad_sd.mul_(gate_s.unsqueeze(1)).view_as(y_ecd), grad_gate_nk, None, None


def dispatch(x_nd: Tensor, choice_of_slot: Tensor, slot_of_choice: Tensor) -> Tensor:
    """Fill the expert buffers: tokens `[N, D]` -> `[E, C, D]`, zeros in empty slots.

    choice_of_slot: int64 [E, C], `token * K + choice` of the token in each slot, -1 for none;
    slot_of_choice: int64 [N, K], `expert * C + place`, -1 for a choice that got no slot.
    """
    return _Dispatch.apply(x_nd, choice_of_slot, slot_of_choice)


def combine(y_ecd: Tensor, gate_nk: Tensor, choice_of_slot: Tensor, slot_of_choice: Tensor) -> Tensor:
    """Bring expert outputs back: `[E, C, D]` -> `[N, D]`, the gate-weighted sum over a token's choices.

    A choice without a slot adds nothing, so a token without any gets zeros: only its residual passes.
    """
    kept_gate_nk = gate_nk.to(y_ecd.dtype).masked_fill(slot_of_choice < 0, 0)
    return _Combine.apply(y_ecd, kept_gate_nk, choice_of_slot, slot_of_choice)
