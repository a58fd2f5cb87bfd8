"""The contrastive loss of every pair by itself, to see which are hard: of one source of data or another. Without gradient."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.peers import Peers

AT_ONCE = 1024  # rows of logits


@torch.no_grad()
def pair_losses(pair_bd: Tensor, scale: Tensor, bias: Tensor | None, peers: Peers) -> Tensor:
    """What each of this process's pairs adds to the loss, `[b]`: the mean over the pairs of all processes is that of the batch.

    pair_bd: image and text embeddings as `pair_rows` gives them; scale, bias: of the logits, scalars; a bias if it is the
    sigmoid loss, of which a pair's part is that of its image. A collective.
    """
    scale = scale.to(pair_bd.dtype)
    if bias is None:
        return _softmax(pair_bd, scale, peers)
    return _sigmoid(pair_bd, scale, bias.to(pair_bd.dtype), peers)


def _softmax(pair_bd: Tensor, scale: Tensor, peers: Peers) -> Tensor:
    all_bd, first = peers.gather_rows(pair_bd), peers.rank * len(pair_bd)
    images_bd, texts_bd = all_bd.chunk(2, dim=1)
    losses = []
    for rows_cd in pair_bd.split(AT_ONCE):
        image_cd, text_cd = rows_cd.chunk(2, dim=1)
        target = first + torch.arange(len(rows_cd), device=rows_cd.device)
        image_to_text = F.cross_entropy(scale * image_cd @ texts_bd.T, target, reduction="none")
        text_to_image = F.cross_entropy(scale * text_cd @ images_bd.T, target, reduction="none")
        losses.append((image_to_text + text_to_image) / 2)
        first += len(rows_cd)
    return torch.cat(losses)


def _sigmoid(pair_bd: Tensor, scale: Tensor, bias: Tensor, peers: Peers) -> Tensor:
    """As if no pair were one, for the texts of each process in turn; then what is different for an image's own text."""
    images_bd, texts_bd = pair_bd.chunk(2, dim=1)
    losses_b = pair_bd.new_zeros(len(pair_bd))
    for _ in range(peers.world):
        of_chunks = [_no_pair(scale * image_cd @ texts_bd.T + bias).sum(1) for image_cd in images_bd.split(AT_ONCE)]
        losses_b += torch.cat(of_chunks)
        texts_bd = peers.pass_on(texts_bd)  # after the last turn they are home again
    own_b = scale * (images_bd * texts_bd).sum(1) + bias
    return losses_b - _no_pair(own_b) - F.logsigmoid(own_b)


def _no_pair(logits: Tensor) -> Tensor:
    return -F.logsigmoid(-logits)
