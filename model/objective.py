"""The training loss: contrastive plus auxiliary, both over the global batch."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.auxiliary import RoutingSums, auxiliary_loss
from model.config import AuxiliaryConfig
from model.contrastive import contrastive_loss
from model.limoe import Output
from model.peers import Peers


@dataclass(frozen=True)
class Losses:
    """total: what is differentiated; its mean over processes is the loss of the global batch, and so for contrastive.

    auxiliary and parts are equal on all processes already. routing: sums over all processes by expert layer. scale, bias: of the
    logits, as in Output. Only total and routing have a graph.
    """

    total: Tensor
    contrastive: Tensor
    auxiliary: Tensor
    parts: dict[str, Tensor]
    routing: dict[int, RoutingSums]
    scale: Tensor
    bias: Tensor | None


def training_losses(output: Output, aux: AuxiliaryConfig, experts: int, peers: Peers, chunk: int | None = None) -> Losses:
    """The losses of one batch of pairs; one collective serves the statistics of all expert layers.

    chunk: rows of the contrastive loss's logits that are computed at a time, None: all.
    """
    if output.images is None or output.texts is None:
        raise ValueError("the contrastive loss needs both images and texts")
    contrastive = contrastive_loss(output.images, output.texts, output.scale, output.bias, peers, chunk)
    return with_auxiliary(contrastive, output.routing, (output.scale, output.bias), aux, experts, peers)


def with_auxiliary(
    contrastive: Tensor,
    packed: Mapping[int, Tensor],
    logits: tuple[Tensor, Tensor | None],
    aux: AuxiliaryConfig,
    experts: int,
    peers: Peers,
) -> Losses:
    """The auxiliary losses added to the contrastive one.

    packed: the routing sums of this process; logits: their scale and bias, all as in Output.
    """
    routing: dict[int, RoutingSums] = {}
    if packed:
        sums = peers.sum(torch.stack(list(packed.values())))
        routing = {layer: RoutingSums.unpack(row, experts) for layer, row in zip(packed, sums, strict=True)}
    auxiliary, parts = auxiliary_loss(list(routing.values()), aux)
    return Losses(
        total=contrastive if auxiliary is None else contrastive + auxiliary,
        contrastive=contrastive.detach(),
        auxiliary=torch.zeros_like(contrastive) if auxiliary is None else auxiliary.detach(),
        parts={name: part.detach() for name, part in parts.items()},
        routing=routing,
        scale=logits[0].detach(),
        bias=None if logits[1] is None else logits[1].detach(),
    )
