"""The contrastive loss of each source's pairs, in the steps that are recorded."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.pair_losses import pair_losses
from model.peers import Peers


class LossBySource:
    """Sums over this process's pairs in a step, by source. Nothing is computed for a step that is not recorded."""

    def __init__(self, names: Sequence[str], peers: Peers, device: torch.device) -> None:
        """names: of the sources; none where there are not several, and then nothing is ever computed."""
        self.names = list(names)
        self._peers = peers
        self._device = device
        self._is_wanted = False
        self._drawn: list[int] = []
        self.sums = self._nothing()

    def begin(self, is_recorded: bool) -> None:
        """A step begins."""
        self._is_wanted = is_recorded and bool(self.names)
        self._drawn = []
        self.sums = self._nothing()

    def drew(self, sources: Sequence[str]) -> None:
        """A micro-batch's pairs come from these."""
        if self._is_wanted:
            self._drawn += [self.names.index(source) for source in sources]

    def saw(self, pair_bd: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        """The embeddings of a contrastive batch's pairs on this process, as `pair_rows` gives them; scale, bias: of the logits.

        A collective, if the step is recorded.
        """
        if self._is_wanted:
            of_batch, self._drawn = self._drawn[: len(pair_bd)], self._drawn[len(pair_bd) :]
            losses = pair_losses(pair_bd.detach(), scale.detach(), self._peers, bias)
            self.sums.index_add_(0, torch.tensor(of_batch, device=self._device), losses.double())

    def _nothing(self) -> Tensor:
        return torch.zeros(len(self.names), dtype=torch.float64, device=self._device)
