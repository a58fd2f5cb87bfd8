"""Auxiliary losses and routing statistics (LIMoE, section 3.1 and appendix; V-MoE, appendix A).

Everything is a function of a few sums over tokens. The layers give the sums of this process; adding them over all processes
makes losses and statistics those of the global batch, whatever the parallel layout, with one collective for all layers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.config import AuxiliaryConfig
from model.routing import Gates, gate_scores
from model.stream import IMAGE, MODALITIES, TEXT, TokenStream

M = len(MODALITIES)
DEAD = 0.01
"""An expert is dead in a step if fewer tokens want it than this share of an even one."""


@dataclass(frozen=True)
class RoutingSums:
    """Sums over the valid tokens of one expert layer, float32 (M modalities, E experts)."""

    tokens_m: Tensor
    """Tokens of each modality."""
    kept_m: Tensor
    """Those of them that got a slot for at least one choice."""
    entropy_m: Tensor
    """Sum of the entropies of their gates, in nats."""
    z: Tensor
    """Sum of logsumexp(logits)^2, a scalar."""
    chance_e: Tensor
    """Sum of the probabilities that the expert is among a token's top K if the noise is drawn again."""
    gate_me: Tensor
    """Sum of the gates (without noise) by modality."""
    load_me: Tensor
    """How many choices fell on each expert, before capacity."""

    def __add__(self, other: "RoutingSums") -> "RoutingSums":
        """The sums over both sets of tokens."""
        return RoutingSums(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def detach(self) -> "RoutingSums":
        """The same sums without their graph."""
        return RoutingSums(*(getattr(self, field.name).detach() for field in fields(self)))

    @staticmethod
    def unpack(packed: Tensor, experts: int) -> "RoutingSums":
        """The sums of one layer from the vector that `routing_sums` packed."""
        tokens, kept, entropy, z, chance, gate, load = packed.split([M, M, M, 1, experts, M * experts, M * experts])
        return RoutingSums(tokens, kept, entropy, z[0], chance, gate.view(M, experts), load.view(M, experts))


def sum_over(passes: Sequence[Mapping[int, RoutingSums]]) -> dict[int, RoutingSums]:
    """The sums over several passes, such as the micro-batches of a step, by layer."""
    return {layer: reduce(add, [routing[layer] for routing in passes]) for layer in passes[0]}


class _GateSums(torch.autograd.Function):
    """Sums over tokens, whose gates are `softmax(scores)`: of the entropies `[M]`, the squared logsumexp, the gates `[M, E]`.

    With its gradient written out: an expert layer has few experts and many tokens, so that each pass over `[N, E]` counts.
    """

    @staticmethod
    def forward(ctx: Any, scores_ne: Tensor, member_mn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        lse_n1 = scores_ne.logsumexp(-1, keepdim=True)
        log_gate_ne = scores_ne - lse_n1
        gate_ne = log_gate_ne.exp()
        ctx.save_for_backward(log_gate_ne, gate_ne, lse_n1, member_mn)
        entropy_n = -(gate_ne * log_gate_ne).sum(-1)
        return member_mn @ entropy_n, (lse_n1.square().squeeze(1) * member_mn.sum(0)).sum(), member_mn @ gate_ne

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_entropy_m: Tensor, grad_z: Tensor, grad_gate_me: Tensor) -> tuple[Tensor, None]:
        log_gate_ne, gate_ne, lse_n1, member_mn = ctx.saved_tensors
        # At the gates; what is the same for all experts of a token has no effect through a softmax.
        grad_ne = member_mn.T @ grad_gate_me
        grad_ne.addcmul_(log_gate_ne, (grad_entropy_m @ member_mn).unsqueeze(1), value=-1)
        mean_n1 = (gate_ne * grad_ne).sum(-1, keepdim=True)
        from_z_n1 = 2 * grad_z * member_mn.sum(0).unsqueeze(1) * lse_n1
        return grad_ne.sub_(mean_n1 - from_z_n1).mul_(gate_ne), None


class _ChanceSum(torch.autograd.Function):
    """Sum over the valid tokens of the probability that noise lifts an expert's logit above the token's threshold: `[E]`."""

    @staticmethod
    def forward(ctx: Any, logits_ne: Tensor, threshold_n1: Tensor, valid_n: Tensor, noise_std: float) -> Tensor:
        distance_ne = (logits_ne - threshold_n1).div_(noise_std)
        ctx.save_for_backward(distance_ne, valid_n)
        ctx.noise_std = noise_std
        return valid_n @ torch.special.ndtr(distance_ne)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_e: Tensor) -> tuple[Tensor, Tensor, None, None]:
        distance_ne, valid_n = ctx.saved_tensors
        grad_ne = distance_ne.square().mul_(-0.5).exp_().mul_(grad_e)
        grad_ne.mul_((valid_n / (ctx.noise_std * math.sqrt(2 * math.pi))).unsqueeze(1))
        return grad_ne, -grad_ne.sum(-1, keepdim=True), None, None


def routing_sums(
    gates: Gates,
    kept_nk: Tensor,
    stream: TokenStream,
    noise_std: float,
    kind: str = "softmax",
    by_experts: bool = False,
    chances: bool = True,
) -> Tensor:
    """This process's RoutingSums of one layer, packed into one vector: `[3M + 1 + E + 2ME]`.

    noise_std: sigma of the noise that the load loss imagines drawn again; kind: of the gates, which losses and statistics take
    normalised; by_experts: whether experts chose their tokens, so that their load is what they took; chances: whether to compute
    `chance_e`, which nothing but the load loss needs; else it is 0.
    """
    logits_ne = gates.logits_ne
    top_k = gates.expert_nk.shape[1]
    member_mn = torch.stack([(stream.modality_n == m) & stream.valid_n for m in range(M)]).to(logits_ne.dtype)
    valid_n = member_mn.sum(0)
    scores_ne = gate_scores(logits_ne, kind)
    entropy_m, z, gate_me = _GateSums.apply(scores_ne, member_mn)
    if scores_ne is not logits_ne:
        z = (logits_ne.logsumexp(-1).square() * valid_n).sum()
    if chances:
        # eta_K: what noise must lift an expert's logit above, for it to be among the top K.
        noisy_ne = gates.noisy_ne
        threshold_n1 = noisy_ne.max(-1, keepdim=True).values if top_k == 1 else noisy_ne.topk(top_k).values[:, -1:]
        chance_e = _ChanceSum.apply(logits_ne, threshold_n1, valid_n, noise_std)
    else:
        chance_e = logits_ne.new_zeros(logits_ne.shape[1])
    load_ne = kept_nk.to(logits_ne.dtype) if by_experts else torch.zeros_like(logits_ne).scatter_(1, gates.expert_nk, 1.0)
    return torch.cat(
        [
            member_mn.sum(1),
            member_mn @ kept_nk.any(1).to(logits_ne.dtype),
            entropy_m,
            z.view(1),
            chance_e,
            gate_me.flatten(),
            (member_mn @ load_ne).flatten(),
        ]
    )


def _squared_variation(values_e: Tensor) -> Tensor:
    """(std / mean)^2 with the population std."""
    return values_e.var(unbiased=False) / values_e.mean().square()


def _entropy(mass_me: Tensor) -> Tensor:
    """Entropy `[M]` of each row, normalised to a distribution; 0 for an empty row."""
    share = mass_me / mass_me.sum(-1, keepdim=True).clamp(min=1e-9)
    # The clamp stops the infinite slope of -p log p at 0 from becoming NaN where nothing flows back.
    return torch.special.entr(share.clamp(min=torch.finfo(share.dtype).tiny)).sum(-1)


def layer_losses(sums: RoutingSums, config: AuxiliaryConfig) -> dict[str, Tensor]:
    """The auxiliary losses of one layer that are switched on, unweighted, by name. A modality that is absent adds nothing.

    importance and load: over all modalities together; local: mean entropy, minimised; global: max(0, tau - entropy of the mean).
    """
    experts = sums.chance_e.shape[0]
    tokens = sums.tokens_m.clamp(min=1)
    losses = {}
    if config.importance:
        losses["importance"] = _squared_variation(sums.gate_me.sum(0))
    if config.load:
        losses["load"] = _squared_variation(sums.chance_e)
    if config.z:
        losses["z"] = sums.z / sums.tokens_m.sum().clamp(min=1)
    local_m = sums.entropy_m / tokens
    global_m = _entropy(sums.gate_me)
    for name, m, local, spread, share in (
        ("image", IMAGE, config.local_image, config.global_image, config.image_share),
        ("text", TEXT, config.local_text, config.global_text, config.text_share),
    ):
        if local:
            losses[f"local_{name}"] = local_m[m]
        if spread:
            tau = math.log(max(1.0, share * experts))
            losses[f"global_{name}"] = (tau - global_m[m]).clamp(min=0) * (sums.tokens_m[m] > 0)
    return losses


def auxiliary_loss(layers: list[RoutingSums], config: AuxiliaryConfig) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The scaled auxiliary loss, `scale * mean over layers of the mean of (weight * loss)`, and each loss's mean over layers.

    None when nothing is switched on or the model is dense.
    """
    by_layer = [layer_losses(sums, config) for sums in layers]
    if not by_layer or not by_layer[0]:
        return None, {}
    means = {name: torch.stack([losses[name] for losses in by_layer]).mean() for name in by_layer[0]}
    weighted = torch.stack([getattr(config, name) * loss for name, loss in means.items()])
    return config.scale * weighted.mean(), means


def relative_load(load_xe: Tensor) -> Tensor:
    """Choices for each expert, `[..., E]`, over an even share of them: 1 is balanced, 0 is for an expert that nobody wants."""
    return load_xe / load_xe.mean(-1, keepdim=True).clamp(min=1e-9)


@torch.no_grad()
def routing_metrics(layers: dict[int, RoutingSums]) -> dict[str, Tensor]:
    """What users watch, by layer and modality (scalars): success rate, entropy, experts used, load.

    success: share of the modality's tokens that got a slot; text_share: the texts' share of all tokens; entropy: mean entropy
    of a token's gates, nats; experts_used: exp(entropy of the mean gate); load/max: the most popular expert's share of all
    choices times E (1 is even), and the same for the choices of one modality (load/image, load/text); load/cv: standard
    deviation of the experts' loads over their mean; dead_experts: how many hardly any token wants (`DEAD`), and their sum over
    the layers.
    """
    metrics: dict[str, Tensor] = {}
    successes: dict[str, list[Tensor]] = {name: [] for name in MODALITIES}
    dead: list[Tensor] = []
    for index, sums in layers.items():
        prefix = f"routing/layer{index:02d}"
        tokens = sums.tokens_m.clamp(min=1)
        success, entropy, used = sums.kept_m / tokens, sums.entropy_m / tokens, _entropy(sums.gate_me).exp()
        for m, name in enumerate(MODALITIES):
            metrics |= {
                f"{prefix}/success/{name}": success[m],
                f"{prefix}/entropy/{name}": entropy[m],
                f"{prefix}/experts_used/{name}": used[m],
            }
            successes[name].append(success[m])
        load_e, load_me = relative_load(sums.load_me.sum(0)), relative_load(sums.load_me)
        dead.append((load_e < DEAD).sum())
        metrics |= {
            f"{prefix}/load/max": load_e.max(),
            f"{prefix}/load/cv": load_e.std(unbiased=False),  # their mean is 1
            f"{prefix}/dead_experts": dead[-1],
        }
        metrics |= {f"{prefix}/load/{name}": load_me[m].max() for m, name in enumerate(MODALITIES)}
    if not layers:
        return {}
    tokens = next(iter(layers.values())).tokens_m  # the same in every layer
    means = {f"routing/success/{name}": torch.stack(values).mean() for name, values in successes.items()}
    whole = {
        "routing/text_share": tokens[TEXT] / tokens.sum().clamp(min=1),
        "routing/dead_experts": torch.stack(dead).sum(),
    }
    return means | whole | metrics
