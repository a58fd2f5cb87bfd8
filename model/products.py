"""The experts' MLPs over their buffers, by what is fastest where they run.

Batched products serve all experts with one call each: on a GPU always, and on a CPU as long as an expert's products are small.
Large ones go one expert after another there: what only the backward pass needs in between is then as large as one expert's
buffer, and not taken anew from the system, a page at a time, in every step.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LARGE = 2**28
"""Multiplications in one product of one expert from which on a CPU serves them one by one (python -m trainer.bench layer)."""


def expert_mlps(x_ecd: Tensor, up_edh: Tensor, up_bias_e1h: Tensor, down_ehd: Tensor, down_bias_e1d: Tensor) -> Tensor:
    """Row e of the buffers through the MLP with the weights of row e: `[E, C, D]` -> `[E, C, D]`, H the hidden width."""
    if _one_by_one(x_ecd, up_edh):
        weights = (up_edh, up_bias_e1h, down_ehd, down_bias_e1d)
        return _OneByOne.apply(x_ecd, *weights, torch.is_grad_enabled())
    hidden_ech = F.gelu(torch.baddbmm(up_bias_e1h, x_ecd, up_edh))
    return torch.baddbmm(down_bias_e1d, hidden_ech, down_ehd)


def _one_by_one(x_ecd: Tensor, up_edh: Tensor) -> bool:
    if x_ecd.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return x_ecd.dtype == up_edh.dtype and x_ecd.shape[1] * up_edh.shape[1] * up_edh.shape[2] >= LARGE


class _OneByOne(torch.autograd.Function):
    """kept: whether a backward pass may follow, which needs the hidden rows of all experts."""

    @staticmethod
    def forward(
        ctx: Any, x_ecd: Tensor, up_edh: Tensor, up_bias_e1h: Tensor, down_ehd: Tensor, down_bias_e1d: Tensor, kept: bool
    ) -> Tensor:
        experts, rows, _ = x_ecd.shape
        held = experts if kept else 1
        before_hch, hidden_hch = (x_ecd.new_empty(held, rows, up_edh.shape[2]) for _ in range(2))
        y_ecd = torch.empty_like(x_ecd)
        for expert in range(experts):
            before_ch, hidden_ch = before_hch[expert % held], hidden_hch[expert % held]
            torch.addmm(up_bias_e1h[expert], x_ecd[expert], up_edh[expert], out=before_ch)
            torch.ops.aten.gelu.out(before_ch, out=hidden_ch)
            torch.addmm(down_bias_e1d[expert], hidden_ch, down_ehd[expert], out=y_ecd[expert])
        if kept:
            ctx.save_for_backward(x_ecd, up_edh, down_ehd, before_hch, hidden_hch)
        return y_ecd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ecd: Tensor) -> tuple[Tensor | None, ...]:
        x_ecd, up_edh, down_ehd, before_ech, hidden_ech = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        experts, width, hidden = up_edh.shape
        shapes = (x_ecd.shape, up_edh.shape, (experts, 1, hidden), down_ehd.shape, (experts, 1, width))
        grads = [x_ecd.new_empty(shape) if want else None for shape, want in zip(shapes, wanted, strict=False)]
        grad_x_ecd, grad_up_edh, grad_up_bias_e1h, grad_down_ehd, grad_down_bias_e1d = grads
        grad_hidden_ch, grad_before_ch = (torch.empty_like(before_ech[0]) for _ in range(2))
        for expert, grad_cd in enumerate(grad_ecd):
            if grad_down_ehd is not None:
                torch.mm(hidden_ech[expert].T, grad_cd, out=grad_down_ehd[expert])
            if grad_down_bias_e1d is not None:
                torch.sum(grad_cd, 0, keepdim=True, out=grad_down_bias_e1d[expert])
            torch.mm(grad_cd, down_ehd[expert].T, out=grad_hidden_ch)
            torch.ops.aten.gelu_backward.grad_input(grad_hidden_ch, before_ech[expert], grad_input=grad_before_ch)
            if grad_up_edh is not None:
                torch.mm(x_ecd[expert].T, grad_before_ch, out=grad_up_edh[expert])
            if grad_up_bias_e1h is not None:
                torch.sum(grad_before_ch, 0, keepdim=True, out=grad_up_bias_e1h[expert])
            if grad_x_ecd is not None:
                torch.mm(grad_before_ch, up_edh[expert].T, out=grad_x_ecd[expert])
        return *grads, None
