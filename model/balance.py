"""Balance without an auxiliary loss: a bias on each expert's gate that follows the load.

The bias is added to the gates where a token's experts are chosen, and nowhere else: the gate that an output is multiplied with,
and so every gradient, is the same function of the logits as without. After each applied step it moves against the load that the
step has put on each expert, over all ranks and micro-batches and before capacity, so that it is the same on every rank and in
every layout.

`shared`: one bias for each expert, for all tokens (Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing Strategy for
Mixture-of-Experts", arXiv 2408.15664, algorithm 1).

`modality`: one for each expert and modality, each row with a rate of its own. A row looks at the tokens of its modality alone,
and its target is their own even share: n_m * K / E of the modality's n_m tokens on each expert.
What that does: where images are many and texts few, a shared bias is satisfied as soon as the sums are even, though all texts
may want one expert; a row for texts sees them, however few they are, and spreads them. Evenness of each modality is also evenness
of the whole, so that no buffer overflows for want of balance. The row of a minority is counted from few tokens and is noisier:
that is what its own rate is for.
What it does not do: it pushes no modality towards experts of its own, nor away from them; at its target every expert serves the
same mixture, so an expert that would see one modality alone is pulled back. (The entropy losses of LIMoE differ there: they ask
for *at least* S_m experts a modality.) It makes no token surer of its expert, which the local entropy loss does. And it tells the
choice, though not the gates or the experts, which modality a token is; LIMoE's router is not told.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from model.auxiliary import RoutingSums
from model.config import BiasConfig
from model.experts import ExpertLayer
from model.limoe import LIMoE, expert_layers
from model.stream import IMAGE, MODALITIES, TEXT


def step_against(load_re: Tensor, update: str) -> Tensor:
    """How a bias moves at a rate of 1: down where the load of a row is above its mean, up where below. `[R, E]` -> `[R, E]`.

    sign: by 1, and 0 at the mean; zscore: by the distance in population standard deviations of the row (MoE-ViE). A row without
    tokens, or an even one, does not move.
    """
    short_re = load_re.mean(-1, keepdim=True) - load_re
    if update == "sign":
        return short_re.sign()
    deviation_r1 = load_re.std(-1, unbiased=False, keepdim=True)
    return torch.where(deviation_r1 > 0, short_re / deviation_r1, 0.0)


@torch.no_grad()
def update_bias(bias_re: Tensor, load_me: Tensor, config: BiasConfig) -> None:
    """Move one layer's bias, in place, after a step that put `load_me` choices on its experts."""
    if config.kind == "shared":
        bias_re += config.rate * step_against(load_me.sum(0, keepdim=True), config.update)
        return
    rates = {IMAGE: config.image_rate, TEXT: config.text_rate}
    for m, row_e in enumerate(step_against(load_me, config.update)):
        rate = rates[m]
        bias_re[m] += (config.rate if rate is None else rate) * row_e


def update_biases(model: LIMoE, routing: Mapping[int, RoutingSums]) -> None:
    """Move the biases of all routers, but of frozen ones; routing: the sums of the whole step over all ranks, by layer."""
    for index, layer, bias_re in _biased_layers(model):
        if layer.router.weight.requires_grad:
            update_bias(bias_re, routing[index].load_me, layer.config.bias)


@torch.no_grad()
def bias_metrics(model: LIMoE) -> dict[str, Tensor]:
    """The spread of each layer's bias, largest minus smallest: of all tokens (bias/all), or by modality. Scalars."""
    return {
        f"routing/layer{index:02d}/bias/{name}": row_e.max() - row_e.min()
        for index, _, bias_re in _biased_layers(model)
        for name, row_e in zip(MODALITIES if len(bias_re) > 1 else ("all",), bias_re, strict=True)
    }


def _biased_layers(model: LIMoE) -> Iterator[tuple[int, ExpertLayer, Tensor]]:
    """Index, layer and bias of each expert layer that has one."""
    for index, layer in expert_layers(model).items():
        if layer.router.bias is not None:
            yield index, layer, layer.router.bias
