"""The loss of each pair against a plain loop in float64, and their mean against the loss that is trained."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from model.contrastive import contrastive_loss, pair_rows
from model.pair_losses import pair_losses
from model.peers import SingleProcess


def softmax(images: Tensor, texts: Tensor, scale: Tensor, index: int) -> Tensor:
    row, column = scale * images[index] @ texts.T, scale * texts[index] @ images.T
    return (2 * -row[index] + row.logsumexp(0) + column.logsumexp(0)) / 2


def sigmoid(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, index: int) -> Tensor:
    logits = [scale * images[index] @ text + bias for text in texts]
    return -sum(logsigmoid(logit if number == index else -logit) for number, logit in enumerate(logits))


@pytest.mark.parametrize("bias", [None, torch.tensor(-3.0)], ids=["softmax", "sigmoid"])
def test_each_pair_has_its_own_loss_in_chunks_or_at_once(monkeypatch: pytest.MonkeyPatch, bias: Tensor | None) -> None:
    images, texts = (normalize(torch.randn(7, 5, dtype=torch.float64), dim=1) for _ in range(2))
    scale = torch.tensor(9.0)
    of_pair = [
        softmax(images, texts, scale, index) if bias is None else sigmoid(images, texts, scale, bias, index) for index in range(7)
    ]
    for rows in (3, 1024):
        monkeypatch.setattr("model.pair_losses.AT_ONCE", rows)
        found = pair_losses(pair_rows(images, texts), scale, bias, SingleProcess())
        torch.testing.assert_close(found, torch.stack(of_pair))
    torch.testing.assert_close(found.mean(), contrastive_loss(images, texts, scale, bias, SingleProcess()))
