"""One batch in pieces: the losses and gradients of the whole batch in the memory of a piece, with experts too.

The contrastive loss sees a batch through its embeddings alone, and the auxiliary losses see it through sums over tokens. So the
gradient of a batch that does not fit can be had in three parts (for dense models: Gao et al. 2021, "Scaling Deep Contrastive
Learning Batch Size under Memory Limited Setup", arXiv 2101.06983; BASIC, Pham et al. 2021, arXiv 2111.10050, section 4):

1. each piece passes the model without a graph, and leaves its embeddings and sums: `FirstPass`;
2. the losses of the whole batch, and their gradients at the embeddings, at the sums and at the logit scale: `whole_losses`;
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
from model.contrastive import loss_of_rows, pair_rows
from model.limoe import Output
from model.objective import Losses, with_auxiliary
from model.peers import Peers
from model.routing import Decisions


@dataclass(frozen=True)
class FirstPass:
    """What is kept of a piece of b pairs after its first pass, without gradient.

    pair_bd: the embeddings as `pair_rows` gives them, [b, 2D]; sums: the packed routing sums by expert layer, and decisions: how
    the layers routed; scale: the logit scale.
    """

    pair_bd: Tensor
    sums: dict[int, Tensor]
    decisions: dict[int, Decisions]
    scale: Tensor

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
        )


@dataclass(frozen=True)
class Gradient:
    """The gradient of the whole batch's loss at one piece's output; the logit scale's is shared among the pieces."""

    pair_bd: Tensor
    sums: dict[int, Tensor]
    scale: Tensor


def whole_losses(pieces: Sequence[FirstPass], aux: AuxiliaryConfig, experts: int, peers: Peers) -> tuple[Losses, list[Gradient]]:
    """The losses of one batch, of which each process has as many pieces, and their gradients at each piece's output.

    Logits are computed for a piece's rows at a time: `[b, B]`, and never `[B, B]`. The conventions are those of
    `training_losses`, but that nothing has a graph.
    """
    rows_bd = torch.cat([piece.pair_bd for piece in pieces]).requires_grad_()
    scale = pieces[0].scale.clone().requires_grad_()
    sums = {layer: torch.stack([piece.sums[layer] for piece in pieces]).sum(0).requires_grad_() for layer in pieces[0].sums}
    with torch.enable_grad():
        gathered_bd = peers.gather_rows(rows_bd)
        all_bd = gathered_bd.detach().requires_grad_()  # the pieces' gradients meet here, and cross processes once
        contrastive, first = torch.zeros_like(scale), peers.rank * len(rows_bd)
        for piece_bd in rows_bd.split([len(piece.pair_bd) for piece in pieces]):
            loss = loss_of_rows(piece_bd, all_bd, first, scale) * (len(piece_bd) / len(rows_bd))
            loss.backward()
            contrastive += loss.detach()
            first += len(piece_bd)
        gathered_bd.backward(all_bd.grad)
        losses = with_auxiliary(contrastive, sums, scale, aux, experts, peers)
        if losses.total.requires_grad:
            losses.total.backward()
    detached = replace(
        losses, total=losses.total.detach(), routing={layer: sums.detach() for layer, sums in losses.routing.items()}
    )
    return detached, [
        Gradient(pair_bd, {layer: _gradient(packed) for layer, packed in sums.items()}, _gradient(scale) / len(pieces))
        for pair_bd in _gradient(rows_bd).split([len(piece.pair_bd) for piece in pieces])
    ]


def replayed(output: Output, gradient: Gradient) -> Tensor:
    """A scalar without a meaning of its own, whose gradient is that of the whole batch's loss through this piece's output."""
    assert output.images is not None and output.texts is not None  # as in the first pass
    at_pairs = (pair_rows(output.images, output.texts) * gradient.pair_bd).sum()
    at_sums = sum((output.routing[layer] * at_layer).sum() for layer, at_layer in gradient.sums.items())
    return at_pairs + at_sums + output.scale * gradient.scale


def _gradient(leaf: Tensor) -> Tensor:
    """Zeros where the loss does not depend on it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
