"""A linear classifier of frozen features, by ridge regression in closed form, as in big_vision's `fewshot_lsr` evaluator.

Computed in float64 on the CPU, so that the result does not depend on the device. Legend: n samples, d features, c classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

BIAS = 100.0  # the value of the constant feature: so large that its weight is hardly regularised
RIDGE = 2.0**10
EPSILON = 1e-5  # added to the standard deviations


@dataclass(frozen=True)
class Probe:
    """mean, std: of the training features, float64 `[d]`; weight: float64 `[d + 1, c]`, the last row for the constant feature."""

    mean_d: Tensor
    std_d: Tensor
    weight_dc: Tensor

    def scores(self, features_nd: Tensor) -> Tensor:
        """Each class's regression to 1 (it is this class) or -1 (it is not), float32 `[n, c]`.

        Rounded from double: last bits, which depend on the batch, must not break ties.
        """
        return (_inputs(features_nd, self.mean_d, self.std_d) @ self.weight_dc).float()

    def to(self, device: torch.device) -> "Probe":
        """The same on another device."""
        return Probe(self.mean_d.to(device), self.std_d.to(device), self.weight_dc.to(device))


def fit_probe(features_nd: Tensor, labels_n: Tensor, classes: int) -> Probe:
    """The probe of features `[n, d]` and their classes int64 `[n]`, both on the CPU.

    Minimises `|x w - y|² + RIDGE |w|²` for whitened features x and targets y of 1 and -1, by the eigenvectors of the smaller Gram
    matrix. From features that are not finite comes a probe whose scores are not numbers.
    """
    features_nd = features_nd.double()
    mean_d = features_nd.mean(dim=0)
    std_d = features_nd.std(dim=0, correction=0) + EPSILON
    x_nd = _inputs(features_nd, mean_d, std_d)
    y_nc = 2.0 * one_hot(labels_n, classes).double() - 1.0
    if not x_nd.isfinite().all():
        return Probe(mean_d, std_d, x_nd.new_full((x_nd.shape[1], classes), torch.nan))
    if len(x_nd) >= x_nd.shape[1]:
        return Probe(mean_d, std_d, _solve(x_nd.T @ x_nd, x_nd.T @ y_nc))
    return Probe(mean_d, std_d, x_nd.T @ _solve(x_nd @ x_nd.T, y_nc))


def _inputs(features_nd: Tensor, mean_d: Tensor, std_d: Tensor) -> Tensor:
    """Whitened, with the constant feature, float64 `[n, d + 1]`."""
    return pad((features_nd.double() - mean_d) / std_d, (0, 1), value=BIAS)


def _solve(gram_kk: Tensor, right_kc: Tensor) -> Tensor:
    """(gram + RIDGE * identity)^-1 right."""
    eigenvalues_k, vectors_kk = torch.linalg.eigh(gram_kk)
    return vectors_kk @ ((vectors_kk.T @ right_kc) / (eigenvalues_k + RIDGE)[:, None])
