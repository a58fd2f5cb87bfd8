"""The contrastive losses over the global batch: softmax (CLIP; LIMoE, section 2), and sigmoid (SigLIP).

Both compare every image with every text. The matrix of their logits grows with the square of the batch, so no process ever has
all of it: each computes the rows of its own pairs, with `chunk` a few at a time, and differentiates them before it computes the
next. Of the softmax loss a row needs the texts of all processes, which are gathered; of the sigmoid loss every logit stands for
itself, so the texts go round from process to process, and the block of logits with those that are here is all that exists.

Axis letters: b pairs of this process, B of all, c of a chunk, D width of an embedding.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.peers import Peers


def contrastive_loss(
    image_bd: Tensor, text_bd: Tensor, scale: Tensor, bias: Tensor | None, peers: Peers, chunk: int | None = None
) -> Tensor:
    """The loss of this process's pairs among those of all: sigmoid if the logits have a bias, else softmax.

    image_bd, text_bd: L2-normalised `[b, D]`, row i of both is a pair; scale, bias: of the logits, scalars; chunk: rows of logits
    that are computed at a time, None: all. The mean of the result over processes is the loss of the global batch, and so for
    gradients, which other processes' rows contribute to. All processes must differentiate it alike. Float32 at least.
    """
    pair_bd = pair_rows(image_bd, text_bd)
    scale = scale.to(pair_bd.dtype)
    rows = min(chunk or len(pair_bd), len(pair_bd))
    if bias is None:
        return _softmax_loss(pair_bd, scale, peers, rows)
    return _sigmoid_loss(pair_bd, scale, bias.to(pair_bd.dtype), peers, rows)


def pair_rows(image_bd: Tensor, text_bd: Tensor) -> Tensor:
    """Each pair as one row, image before text: `[b, 2D]`, float32 at least."""
    dtype = torch.promote_types(image_bd.dtype, torch.float32)
    return torch.cat([image_bd.to(dtype), text_bd.to(dtype)], dim=1)


def _softmax_loss(pair_bd: Tensor, scale: Tensor, peers: Peers, chunk: int) -> Tensor:
    """InfoNCE, image-to-text and text-to-image averaged."""
    all_bd, first = peers.gather_rows(pair_bd), peers.rank * len(pair_bd)
    all_images, all_texts = all_bd.chunk(2, dim=1)
    if chunk == len(pair_bd):
        return _softmax_of_rows(pair_bd, all_images, all_texts, scale, first)
    loss, at_scale = torch.zeros_like(scale), torch.zeros_like(scale)
    at_rows, at_all = [torch.zeros_like(rows_cd) for rows_cd in pair_bd.split(chunk)], torch.zeros_like(all_bd)
    for number, rows_cd in enumerate(pair_bd.split(chunk)):
        of_rows = partial(_softmax_of_rows, first=first + number * chunk, share=len(rows_cd) / len(pair_bd))
        loss += _differentiated(
            of_rows, (rows_cd, all_images, all_texts, scale), (at_rows[number], *at_all.chunk(2, dim=1), at_scale)
        )
    return _with_gradients(loss, (pair_bd, all_bd, scale), (torch.cat(at_rows), at_all, at_scale))


def _softmax_of_rows(
    pair_cd: Tensor, all_image: Tensor, all_text: Tensor, scale: Tensor, first: int, share: float = 1.0
) -> Tensor:
    """`share` of the mean loss of some pairs against all of the batch, among which they come from index `first` on."""
    image_cd, text_cd = pair_cd.chunk(2, dim=1)
    target = first + torch.arange(len(pair_cd), device=pair_cd.device)
    image_to_text = F.cross_entropy(scale * image_cd @ all_text.T, target)
    text_to_image = F.cross_entropy(scale * text_cd @ all_image.T, target)
    return (image_to_text + text_to_image) / 2 * share


def _sigmoid_loss(pair_bd: Tensor, scale: Tensor, bias: Tensor, peers: Peers, chunk: int) -> Tensor:
    """Minus the log-likelihood of which image and text are a pair, each logit by itself: the sum over the number of images.

    Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343: algorithm 1, and section 3.3 for the
    exchange. The texts visit one process after the other, and the gradients that they collect travel with them; after the last
    one both are home again. So nothing is left to exchange in the backward pass.
    """
    image_bd, text_bd = pair_bd.chunk(2, dim=1)
    chunks = image_bd.split(chunk)
    visiting_bd, at_visiting = text_bd.detach(), torch.zeros_like(text_bd)
    loss, at_scale, at_bias = torch.zeros_like(scale), torch.zeros_like(scale), torch.zeros_like(bias)
    at_images = [torch.zeros_like(image_cd) for image_cd in chunks]
    for hop in range(peers.world):
        for number, image_cd in enumerate(chunks):
            partners = number * chunk if hop == 0 else None  # the process's own texts come first
            of_rows = partial(_sigmoid_of_rows, partners=partners, images=len(image_bd))
            loss += _differentiated(
                of_rows, (image_cd, visiting_bd, scale, bias), (at_images[number], at_visiting, at_scale, at_bias)
            )
        visiting_bd, at_visiting = peers.pass_on(torch.cat([visiting_bd, at_visiting], dim=1)).chunk(2, dim=1)
    at_pairs = torch.cat([torch.cat(at_images), at_visiting], dim=1)
    return _with_gradients(loss, (pair_bd, scale, bias), (at_pairs, at_scale, at_bias))


def _sigmoid_of_rows(image_cd: Tensor, text_bd: Tensor, scale: Tensor, bias: Tensor, partners: int | None, images: int) -> Tensor:
    """The loss of some images with some texts, over a number of images.

    partners: the index of the text that is the first image's, followed by those of the others; None: these are not among them.
    """
    logits_cb = scale * image_cd @ text_bd.T + bias
    right_cb = -logits_cb  # the larger, the surer of what is right: for all but partners, that they are no pair
    if partners is not None:
        right_cb = right_cb.diagonal_scatter(logits_cb.diagonal(partners), partners)
    return -F.logsigmoid(right_cb).sum() / images


def _differentiated(term: Callable[..., Tensor], inputs: Sequence[Tensor], sums: Sequence[Tensor]) -> Tensor:
    """The value of a term, whose gradients at the inputs are added to the sums; its graph is gone."""
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in inputs]
        result = term(*leaves)
        gradients = torch.autograd.grad(result, leaves)
    for total, gradient in zip(sums, gradients, strict=True):
        total += gradient
    return result.detach()


def _with_gradients(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """A scalar whose gradients at the inputs are known."""
    result: Tensor = _Known.apply(value, *inputs, *gradients)
    return result


class _Known(torch.autograd.Function):
    """A scalar, the inputs it was computed from, and its gradients at these."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *inputs_and_gradients: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs_and_gradients[len(inputs_and_gradients) // 2 :])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        return None, *(grad * gradient for gradient in gradients), *(None for _ in gradients)
