"""Whether a right answer is among the k best, with fair treatment of ties.

Candidates with equal scores count as randomly ordered, and a query counts by its probability of a hit. So the result is
deterministic, does not depend on the candidates' order, and an encoder that gives everything the same embedding scores exactly at
chance. Without ties this is the usual count. Legend: q queries, m candidates, k places.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def similarity(queries_qd: Tensor, candidates_md: Tensor) -> Tensor:
    """Dot products of the rows, float32 `[q, m]`.

    Computed in double and rounded: a matrix product's last bits depend on the kernel and the chunk, and would break true ties.
    """
    return (queries_qd.double() @ candidates_md.double().T).float()


def hits(scores_qm: Tensor, right_qm: Tensor, ks: Sequence[int]) -> Tensor:
    """The probability that at least one right candidate is among the k best, float64 `[len(ks), q]`.

    right_qm: bool, at least one per row. A candidate whose score is not a number ranks above the right ones, never below.
    """
    best_q1 = scores_qm.masked_fill(~right_qm, -torch.inf).amax(dim=1, keepdim=True)
    above_q = (~(scores_qm <= best_q1) & ~right_qm).sum(dim=1)
    level_qm = scores_qm == best_q1
    wrong_q = (level_qm & ~right_qm).sum(dim=1)
    right_q = (level_qm & right_qm).sum(dim=1)
    return torch.stack([_hit_probability(k - above_q, wrong_q, right_q) for k in ks])


def chance(right_q: Tensor, candidates: int, k: int) -> float:
    """The mean of `hits` when every score is equal; right_q: number of right candidates of each query."""
    return _hit_probability(torch.full_like(right_q, k), candidates - right_q, right_q).mean().item()


def _hit_probability(places_q: Tensor, wrong_q: Tensor, right_q: Tensor) -> Tensor:
    """The probability that one of `right` is drawn when `places` are filled from `wrong + right` without replacement."""
    miss_q = torch.ones(places_q.shape, dtype=torch.float64, device=places_q.device)
    for drawn in range(int(places_q.clamp(min=0).max()) if places_q.numel() else 0):
        all_wrong_q = (wrong_q - drawn).clamp(min=0) / (wrong_q + right_q - drawn).clamp(min=1).double()
        miss_q = torch.where(places_q > drawn, miss_q * all_wrong_q, miss_q)
    return 1 - miss_q
