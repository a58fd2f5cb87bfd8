"""The losses of sources: of the right pairs, and only in steps that are recorded."""

import pytest
import torch
from torch import Tensor

from model.contrastive import pair_rows
from model.pair_losses import pair_losses
from model.peers import SingleProcess
from trainer.training.by_source import LossBySource

CPU = torch.device("cpu")


def embeddings(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    images, texts = (torch.nn.functional.normalize(torch.randn(4, 3, generator=generator), dim=1) for _ in range(2))
    return pair_rows(images, texts)


@pytest.mark.parametrize("micro", [True, False])
def test_pairs_are_counted_to_their_source_in_micro_batches_and_in_one(micro: bool) -> None:
    losses, scale = LossBySource(["a", "b"], SingleProcess(), CPU), torch.tensor(7.0)
    first, second = embeddings(1), embeddings(2)
    for _ in range(2):  # the second step does not remember the first
        losses.begin(is_recorded=True)
        losses.drew(["a", "a", "b", "a"])
        if micro:
            losses.saw(first, scale, None)
        losses.drew(["b", "a", "b", "b"])
        losses.saw(second if micro else torch.cat([first, second]), scale, None)
    of = [
        pair_losses(pairs, scale, None, SingleProcess()) for pairs in ([first, second] if micro else [torch.cat([first, second])])
    ]
    each = torch.cat(of).double()
    torch.testing.assert_close(losses.sums, torch.stack([each[[0, 1, 3, 5]].sum(), each[[2, 4, 6, 7]].sum()]))


def test_a_step_that_is_not_recorded_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.training.by_source.pair_losses", None)  # a call would fail
    for names, is_recorded in ((["a", "b"], False), ([], True)):
        losses = LossBySource(names, SingleProcess(), CPU)
        losses.begin(is_recorded)
        losses.drew(["a", "b", "b", "a"])
        losses.saw(embeddings(1), torch.tensor(7.0), None)
        assert losses.sums.tolist() == [0.0] * len(names)
