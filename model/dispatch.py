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
        return grad_nkd.squeeze(1) if grad_nkd.shape[1] == 1 else grad_nkd.sum(1), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_ecd: Tensor, choice_of_slot: Tensor, slot_of_choice: Tensor) -> Tensor:
        ctx.save_for_backward(choice_of_slot)
        return _rows_or_zero(y_ecd.flatten(0, 1), slot_of_choice.flatten()).view(*slot_of_choice.shape, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nkd: Tensor) -> tuple[Tensor, None, None]:
        (choice_of_slot,) = ctx.saved_tensors
        return _rows_or_zero(grad_nkd.flatten(0, 1), choice_of_slot.flatten()).view(*choice_of_slot.shape, -1), None, None


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
    y_nkd = _Collect.apply(y_ecd, choice_of_slot, slot_of_choice)
    return (y_nkd * gate_nk.to(y_nkd.dtype).unsqueeze(-1)).sum(1)
