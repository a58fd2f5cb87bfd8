"""The training loss: contrastive plus auxiliary, both over the global batch."""

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

    auxiliary and parts are equal on all processes already. routing: sums over all processes by expert layer.
    """

    total: Tensor
    contrastive: Tensor
    auxiliary: Tensor
    parts: dict[str, Tensor]
    routing: dict[int, RoutingSums]


def training_losses(output: Output, aux: AuxiliaryConfig, experts: int, peers: Peers) -> Losses:
    """The losses of one batch of pairs; one collective serves the statistics of all expert layers."""
    if output.images is None or output.texts is None:
        raise ValueError("the contrastive loss needs both images and texts")
    contrastive = contrastive_loss(output.images, output.texts, output.scale, peers)
    routing: dict[int, RoutingSums] = {}
    if output.routing:
        sums = peers.sum(torch.stack(list(output.routing.values())))
        routing = {layer: RoutingSums.unpack(row, experts) for layer, row in zip(output.routing, sums, strict=True)}
    auxiliary, parts = auxiliary_loss(list(routing.values()), aux)
    if auxiliary is None:
        return Losses(contrastive, contrastive.detach(), torch.zeros_like(contrastive), parts, routing)
    return Losses(
        contrastive + auxiliary,
        contrastive.detach(),
        auxiliary.detach(),
        {name: part.detach() for name, part in parts.items()},
        routing,
    )
