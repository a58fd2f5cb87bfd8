"""Auxiliary losses and routing statistics (LIMoE, section 3.1 and appendix; V-MoE, appendix A).

Everything is a function of a few sums over tokens. The layers give the sums of this process; adding them over all processes
makes losses and statistics those of the global batch, whatever the parallel layout, with one collective for all layers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import add

import torch
from torch import Tensor

from model.config import AuxiliaryConfig
from model.routing import Gates, log_gates
from model.stream import IMAGE, MODALITIES, TEXT, TokenStream

M = len(MODALITIES)


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

    @staticmethod
    def unpack(packed: Tensor, experts: int) -> "RoutingSums":
        """The sums of one layer from the vector that `routing_sums` packed."""
        tokens, kept, entropy, z, chance, gate, load = packed.split([M, M, M, 1, experts, M * experts, M * experts])
        return RoutingSums(tokens, kept, entropy, z[0], chance, gate.view(M, experts), load.view(M, experts))


def sum_over(passes: Sequence[Mapping[int, RoutingSums]]) -> dict[int, RoutingSums]:
    """The sums over several passes, such as the micro-batches of a step, by layer."""
    return {layer: reduce(add, [routing[layer] for routing in passes]) for layer in passes[0]}


def routing_sums(
    gates: Gates, kept_nk: Tensor, stream: TokenStream, noise_std: float, kind: str = "softmax", by_experts: bool = False
) -> Tensor:
    """This process's RoutingSums of one layer, packed into one vector: `[3M + 1 + E + 2ME]`.

    noise_std: sigma of the noise that the load loss imagines drawn again; kind: of the gates, which losses and statistics take
    normalised; by_experts: whether experts chose their tokens, so that their load is what they took.
    """
    logits_ne = gates.logits_ne
    top_k = gates.expert_nk.shape[1]
    member_mn = torch.stack([(stream.modality_n == m) & stream.valid_n for m in range(M)]).to(logits_ne.dtype)
    valid_n = member_mn.sum(0)
    log_gate_ne = log_gates(logits_ne, kind)
    gate_ne = log_gate_ne.exp()
    entropy_n = -(gate_ne * log_gate_ne).sum(-1)
    one_hot_ne = torch.zeros_like(logits_ne)
    if by_experts:
        one_hot_ne.copy_(kept_nk)
    else:
        one_hot_ne.scatter_(1, gates.expert_nk, 1.0)
    # eta_K - l_e, in units of the noise: how far redrawn noise must lift expert e into the top K.
    threshold_n1 = gates.noisy_ne.topk(top_k, dim=-1).values[:, -1:]
    chance_ne = torch.special.ndtr((logits_ne - threshold_n1) / noise_std)
    return torch.cat(
        [
            member_mn.sum(1),
            member_mn @ kept_nk.any(1).to(logits_ne.dtype),
            member_mn @ entropy_n,
            (logits_ne.logsumexp(-1).square() * valid_n).sum().view(1),
            valid_n @ chance_ne,
            (member_mn @ gate_ne).flatten(),
            (member_mn @ one_hot_ne).flatten(),
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
    """What users watch, by layer and modality (scalars): success rate, entropy, experts used, largest load.

    success: share of the modality's tokens that got a slot; text_share: the texts' share of all tokens; entropy: mean entropy
    of a token's gates, nats; experts_used: exp(entropy of the mean gate); load/max: the most popular expert's share of all
    choices times E (1 is even), and the same for the choices of one modality (load/image, load/text).
    """
    metrics: dict[str, Tensor] = {}
    successes: dict[str, list[Tensor]] = {name: [] for name in MODALITIES}
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
        metrics[f"{prefix}/load/max"] = load_e.max()
        metrics |= {f"{prefix}/load/{name}": load_me[m].max() for m, name in enumerate(MODALITIES)}
    if not layers:
        return {}
    tokens = next(iter(layers.values())).tokens_m  # the same in every layer
    means = {f"routing/success/{name}": torch.stack(values).mean() for name, values in successes.items()}
    return means | {"routing/text_share": tokens[TEXT] / tokens.sum().clamp(min=1)} | metrics
