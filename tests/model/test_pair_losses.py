"""The loss of each pair against a plain loop in float64, and their mean against the loss that is trained."""

import torch

from model.contrastive import pair_rows
from model.pair_losses import pair_losses
from model.peers import SingleProcess


def test_each_pair_has_its_own_loss_in_chunks_or_at_once(monkeypatch) -> None:
    images, texts = (torch.nn.functional.normalize(torch.randn(7, 5, dtype=torch.float64), dim=1) for _ in range(2))
    scale, bias = torch.tensor(9.0), torch.tensor(-3.0)
    expected, by_itself = [], []
    for index in range(7):
        row, column = scale * images[index] @ texts.T, scale * texts[index] @ images.T
        expected.append((2 * -row[index] + row.logsumexp(0) + column.logsumexp(0)) / 2)
        signs = torch.full((7,), -1.0, dtype=torch.float64)
        signs[index] = 1
        by_itself.append((1 + (-signs * (row + bias)).exp()).log().sum())
    for rows in (3, 1024):
        monkeypatch.setattr("model.pair_losses.AT_ONCE", rows)
        found = pair_losses(pair_rows(images, texts), scale, SingleProcess())
        torch.testing.assert_close(found, torch.stack(expected))
        found = pair_losses(pair_rows(images, texts), scale, SingleProcess(), bias)
        torch.testing.assert_close(found, torch.stack(by_itself))
