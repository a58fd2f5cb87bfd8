"""One batch in pieces: the losses and gradients of the whole batch in the memory of a piece, with experts too.

The contrastive loss sees a batch through its embeddings alone, and the auxiliary losses see it through sums over tokens. So the
gradient of a batch that does not fit can be had in three parts (for dense models: Gao et al. 2021, "Scaling Deep Contrastive
Learning Batch Size under Memory Limited Setup", arXiv 2101.06983; BASIC, Pham et al. 2021, arXiv 2111.10050, section 4):

1. each piece passes the model without a graph, and leaves its embeddings and sums: `FirstPass`;
2. the losses of the whole batch, and their gradients at the embeddings, the sums, and the scale and bias of the logits:
   `whole_losses`;
3. each piece passes again, with a graph, and the chain rule goes on from these gradients: `replayed`.

With experts this is the gradient of part 2's losses only if the second pass sends every token where the first one did. Noise,
ties and buffers that overflow decide where that is, so the decisions are kept (model.routing.Decisions) and repeated.

A piece fills its own expert buffers: it is a routing group, or several. The result is that of the whole batch at once, routed in
the same groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.config import AuxiliaryConfig
from model.contrastive import contrastive_loss, pair_rows
from model.limoe import Output
from model.objective import Losses, with_auxiliary
from model.peers import Peers
from model.routing import Decisions


@dataclass(frozen=True)
class FirstPass:
    """What is kept of a piece of b pairs after its first pass, without gradient.

    pair_bd: the embeddings as `pair_rows` gives them, [b, 2D]; sums: the packed routing sums by expert layer, and decisions: how
    the layers routed; scale, bias: of the logits, as in Output.
    """

    pair_bd: Tensor
    sums: dict[int, Tensor]
    decisions: dict[int, Decisions]
    scale: Tensor
    bias: Tensor | None

    @staticmethod
    def of(output: Output) -> "FirstPass":
        """Of a piece's output. Raises ValueError without images or texts."""
        if output.images is None or output.texts is None:
            raise ValueError("the contrastive loss needs both images and texts")
        return FirstPass(
            pair_rows(output.images, output.texts).detach(),
            {layer: sums.detach() for layer, sums in output.routing.items()},
            {layer: used.decisions() for layer, used in output.assignments.items()},
            output.scale.detach(),
            None if output.bias is None else output.bias.detach(),
        )


@dataclass(frozen=True)
class Gradient:
    """The gradient of the whole batch's loss at one piece's output; that at scale and bias is shared among the pieces."""

    pair_bd: Tensor
    sums: dict[int, Tensor]
    scale: Tensor
    bias: Tensor | None


def whole_losses(
    pieces: Sequence[FirstPass], aux: AuxiliaryConfig, experts: int, peers: Peers, chunk: int | None = None
) -> tuple[Losses, list[Gradient]]:
    """The losses of one batch, of which each process has as many pieces, and their gradients at each piece's output.

    Logits are computed for a piece's rows at a time, or for `chunk` of them. The conventions are those of `training_losses`, but
    that nothing has a graph.
    """
    rows_bd = torch.cat([piece.pair_bd for piece in pieces]).requires_grad_()
    scale = pieces[0].scale.clone().requires_grad_()
    bias = None if pieces[0].bias is None else pieces[0].bias.clone().requires_grad_()
    sums = {layer: torch.stack([piece.sums[layer] for piece in pieces]).sum(0).requires_grad_() for layer in pieces[0].sums}
    of_a_piece = len(pieces[0].pair_bd)
    with torch.enable_grad():
        images_bd, texts_bd = rows_bd.chunk(2, dim=1)
        contrastive = contrastive_loss(images_bd, texts_bd, scale, bias, peers, min(chunk or of_a_piece, of_a_piece))
        losses = with_auxiliary(contrastive, sums, (scale, bias), aux, experts, peers)
        losses.total.backward()
    detached = replace(
        losses, total=losses.total.detach(), routing={layer: sums.detach() for layer, sums in losses.routing.items()}
    )
    return detached, [
        Gradient(
            pair_bd,
            {layer: _gradient(packed) for layer, packed in sums.items()},
            _gradient(scale) / len(pieces),
            None if bias is None else _gradient(bias) / len(pieces),
        )
        for pair_bd in _gradient(rows_bd).split([len(piece.pair_bd) for piece in pieces])
    ]


def replayed(output: Output, gradient: Gradient) -> Tensor:
    """A scalar without a meaning of its own, whose gradient is that of the whole batch's loss through this piece's output."""
    assert output.images is not None and output.texts is not None  # as in the first pass
    at_pairs = (pair_rows(output.images, output.texts) * gradient.pair_bd).sum()
    at_sums = sum((output.routing[layer] * at_layer).sum() for layer, at_layer in gradient.sums.items())
    at_logits = output.scale * gradient.scale
    if output.bias is not None and gradient.bias is not None:
        at_logits = at_logits + output.bias * gradient.bias
    return at_pairs + at_sums + at_logits


def _gradient(leaf: Tensor) -> Tensor:
    """Zeros where the loss does not depend on it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
