"""The model's definitions once more, slowly: loops over tokens, experts and choices, differentiable, nothing shared with model/.

Tensors appear only as vectors of one token and as scalars, so that autograd can check gradients. Axis letters as in
model.stream.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor


def capacity(tokens: int, experts: int, top_k: int, factor: str) -> int:
    """`round_up(factor * K * n / E)` in exact arithmetic; at least 1, and no more than there are tokens."""
    exact = Fraction(factor) * top_k * tokens / experts
    return min(tokens, max(1, math.ceil(exact)))


def gates(logits_e: Tensor) -> list[Tensor]:
    """Softmax of one token's logits."""
    largest = max(logit.item() for logit in logits_e)
    powers = [torch.exp(logit - largest) for logit in logits_e]
    total = sum(powers[1:], powers[0])
    return [power / total for power in powers]


def sigmoids(logits_e: Tensor) -> list[Tensor]:
    """Of one token's logits, each by itself."""
    return [1 / (1 + torch.exp(-logit)) for logit in logits_e]


def best(values: Sequence[float], top_k: int) -> list[int]:
    """Indices of the `top_k` largest values, largest first, ties to the lower index."""
    return sorted(range(len(values)), key=lambda index: (-values[index], index))[:top_k]


def assign(
    expert_nk: list[list[int]],
    gate_nk: list[list[float]],
    valid_n: list[bool],
    group_n: list[int],
    groups: int,
    experts: int,
    places: int,
    priority: str,
) -> list[list[int]]:
    """Each choice's slot, `(expert * groups + group) * places + place`, or -1: claimants are served one at a time."""
    tokens, top_k = len(expert_nk), len(expert_nk[0])
    slot_nk = [[-1] * top_k for _ in range(tokens)]
    filled = {(expert, group): 0 for expert in range(experts) for group in range(groups)}
    for k in range(top_k):
        queue = [token for token in range(tokens) if valid_n[token]]
        if priority == "gate":
            queue.sort(key=lambda token: (-gate_nk[token][k], token))
        if priority == "token":
            queue.sort(key=lambda token: (-max(gate_nk[token]), token))
        for token in queue:
            buffer = (expert_nk[token][k], group_n[token])
            if filled[buffer] < places:
                slot_nk[token][k] = (buffer[0] * groups + buffer[1]) * places + filled[buffer]
                filled[buffer] += 1
    return slot_nk


def gelu(x: Tensor) -> Tensor:
    """The exact GELU."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


@dataclass
class Layer:
    """The weights of an expert layer: router `[E, D]`, up `[E, D, H]`, down `[E, H, D]` and their biases `[E, 1, *]`."""

    router: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor

    def expert(self, index: int, x_d: Tensor) -> Tensor:
        """One token through one expert."""
        hidden = gelu(x_d @ self.up[index] + self.up_bias[index, 0])
        return hidden @ self.down[index] + self.down_bias[index, 0]

    def logits(self, x_d: Tensor) -> Tensor:
        """One token's router logits `[E]`."""
        return torch.stack([row @ x_d for row in self.router])


def expert_layer(
    layer: Layer,
    x_nd: Tensor,
    noise_ne: Tensor,
    valid_n: list[bool],
    group_n: list[int],
    groups: int,
    top_k: int,
    places: int,
    priority: str,
    bias_ne: Sequence[Sequence[float]] | None = None,
    kind: str = "softmax",
    normalise: bool = False,
) -> tuple[Tensor, list[list[int]]]:
    """The output `[N, D]` token by token, and each choice's slot. noise_ne: what is added to the logits that route; bias_ne: to

    the gates, for the choice alone; normalise: whether the gates of the experts that take a token are divided by their sum."""
    experts = layer.router.shape[0]
    gates_of = gates if kind == "softmax" else sigmoids
    gate_ne = [gates_of(layer.logits(x_d) + noise_e) for x_d, noise_e in zip(x_nd, noise_ne, strict=True)]
    bias_ne = bias_ne or [[0.0] * experts] * len(x_nd)
    wanted_ne = [[gate.item() + bias for gate, bias in zip(*row, strict=True)] for row in zip(gate_ne, bias_ne, strict=True)]
    expert_nk = [best(wanted_e, top_k) for wanted_e in wanted_ne]
    gate_nk = [[gate_ne[token][e].item() for e in chosen] for token, chosen in enumerate(expert_nk)]
    slot_nk = assign(expert_nk, gate_nk, valid_n, group_n, groups, experts, places, priority)
    outputs = []
    for token, x_d in enumerate(x_nd):
        taken_by = [expert for k, expert in enumerate(expert_nk[token]) if slot_nk[token][k] >= 0]
        outputs.append(combined(layer, x_d, gate_ne[token], taken_by, normalise))
    return torch.stack(outputs), slot_nk


def combined(layer: Layer, x_d: Tensor, gate_e: list[Tensor], taken_by: list[int], normalise: bool) -> Tensor:
    """The outputs of the experts that took a token, times their gates."""
    total = sum(gate_e[expert] for expert in taken_by) if normalise else 1.0
    y_d = torch.zeros_like(x_d)
    for expert in taken_by:
        y_d = y_d + gate_e[expert] / total * layer.expert(expert, x_d)
    return y_d


def expert_choice_layer(
    layer: Layer, x_nd: Tensor, valid_n: list[bool], group_n: list[int], groups: int, places: int, normalise: bool = False
) -> tuple[Tensor, list[list[int]]]:
    """The output `[N, D]`, and the experts that took each token: expert by expert, each takes its best tokens of a group."""
    gate_ne = [gates(layer.logits(x_d)) for x_d in x_nd]
    taken_by: list[list[int]] = [[] for _ in x_nd]
    for expert in range(layer.router.shape[0]):
        for group in range(groups):
            members = [token for token in range(len(x_nd)) if valid_n[token] and group_n[token] == group]
            members.sort(key=lambda token: (-gate_ne[token][expert].item(), token))
            for token in members[:places]:
                taken_by[token].append(expert)
    outputs = [combined(layer, x_d, *of_token, normalise) for x_d, *of_token in zip(x_nd, gate_ne, taken_by, strict=True)]
    return torch.stack(outputs), taken_by


def bias_step(load_e: Sequence[float], update: str) -> list[float]:
    """How the loss-free bias of each expert moves at a rate of 1."""
    even = sum(load_e) / len(load_e)
    if update == "sign":
        return [float(load < even) - float(load > even) for load in load_e]
    deviation = math.sqrt(sum((load - even) ** 2 for load in load_e) / len(load_e))
    return [(even - load) / deviation if deviation else 0.0 for load in load_e]


def entropy(shares: Sequence[Tensor]) -> Tensor:
    """-sum p log p, in nats, with 0 log 0 = 0."""
    total = torch.zeros((), dtype=shares[0].dtype)
    for share in shares:
        if share.item() > 0:
            total = total - share * torch.log(share)
    return total


def mean(values: Sequence[Tensor]) -> Tensor:
    """The average of at least one value."""
    return sum(values[1:], values[0]) / len(values)


def squared_variation(values: Sequence[Tensor]) -> Tensor:
    """(std / mean)^2 with the population std."""
    centre = mean(values)
    return mean([(value - centre) ** 2 for value in values]) / centre**2


def importance(logits_ne: Tensor, valid_n: list[bool]) -> Tensor:
    """(std / mean)^2 over experts of each expert's summed gates."""
    gate_ne = [gates(logits_e) for logits_e, valid in zip(logits_ne, valid_n, strict=True) if valid]
    return squared_variation([sum(column[1:], column[0]) for column in zip(*gate_ne, strict=True)])


def load(logits_ne: Tensor, noisy_ne: Tensor, valid_n: list[bool], top_k: int, sigma: float) -> Tensor:
    """(std / mean)^2 over experts of the summed chances `1 - Phi((eta_K - l_e) / sigma)`."""
    chance_e = [torch.zeros((), dtype=logits_ne.dtype) for _ in range(logits_ne.shape[1])]
    for logits_e, noisy_e, valid in zip(logits_ne, noisy_ne, valid_n, strict=True):
        if not valid:
            continue
        threshold = noisy_e[best(noisy_e.tolist(), top_k)[-1]]
        for expert, logit in enumerate(logits_e):
            phi = 0.5 * (1 + torch.erf((threshold - logit) / sigma / math.sqrt(2)))
            chance_e[expert] = chance_e[expert] + 1 - phi
    return squared_variation(chance_e)


def z(logits_ne: Tensor, valid_n: list[bool]) -> Tensor:
    """Mean of log(sum exp l)^2 over valid tokens."""
    return mean([torch.log(torch.exp(logits_e).sum()) ** 2 for logits_e, valid in zip(logits_ne, valid_n, strict=True) if valid])


def _members(logits_ne: Tensor, modality_n: list[int], valid_n: list[bool], modality: int) -> list[list[Tensor]]:
    rows = zip(logits_ne, modality_n, valid_n, strict=True)
    return [gates(logits_e) for logits_e, m, valid in rows if valid and m == modality]


def local_entropy(logits_ne: Tensor, modality_n: list[int], valid_n: list[bool], modality: int) -> Tensor:
    """Mean entropy of the gates of a modality's tokens; 0 without any."""
    members = _members(logits_ne, modality_n, valid_n, modality)
    return mean([entropy(gate_e) for gate_e in members]) if members else torch.zeros((), dtype=logits_ne.dtype)


def mean_gates(logits_ne: Tensor, modality_n: list[int], valid_n: list[bool], modality: int) -> list[Tensor]:
    """The average gates `[E]` of a modality that is there."""
    members = _members(logits_ne, modality_n, valid_n, modality)
    return [mean(column) for column in zip(*members, strict=True)]


def global_entropy(logits_ne: Tensor, modality_n: list[int], valid_n: list[bool], modality: int, tau: float) -> Tensor:
    """max(0, tau - entropy of a modality's average gates); 0 without any token."""
    if not _members(logits_ne, modality_n, valid_n, modality):
        return torch.zeros((), dtype=logits_ne.dtype)
    gap = tau - entropy(mean_gates(logits_ne, modality_n, valid_n, modality))
    return gap if gap.item() > 0 else 0 * gap


def contrastive(image_bd: Tensor, text_bd: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE of all pairs: minus the mean log probability of the right partner, both ways, averaged."""
    terms = []
    for ours, theirs in ((image_bd, text_bd), (text_bd, image_bd)):
        for index, row_d in enumerate(ours):
            logits = [scale * (row_d * other_d).sum() for other_d in theirs]
            terms.append(-torch.log(gates(torch.stack(logits))[index]))
    return mean(terms)


def sigmoid_contrastive(image_bd: Tensor, text_bd: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Algorithm 1 of SigLIP: minus the log-likelihood of all images and texts, over the number of images."""
    total = torch.zeros_like(scale)
    for image, image_d in enumerate(image_bd):
        for text, text_d in enumerate(text_bd):
            label = 1 if image == text else -1
            total = total - torch.log(sigmoids((label * (scale * (image_d * text_d).sum() + bias)).unsqueeze(0))[0])
    return total / len(image_bd)
