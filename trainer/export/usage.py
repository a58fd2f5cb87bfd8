"""Which experts the tokens of a set choose, and which of them to keep."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from model.auxiliary import RoutingSums
from model.limoe import LIMoE, expert_layers


@torch.no_grad()
def count_choices(model: LIMoE, batches: Iterable[Mapping[str, Tensor]], device: torch.device) -> dict[int, Tensor]:
    """By expert layer, how many choices of the tokens fall on each expert, int64 `[E]` on the CPU. Padding chooses nothing."""
    counts = {layer: torch.zeros(module.num_experts, dtype=torch.int64) for layer, module in expert_layers(model).items()}
    for batch in batches:
        output = model(**{name: values.to(device) for name, values in batch.items()})
        for layer, packed in output.routing.items():
            # Of a single batch: sums in float32 are exact only up to 2^24.
            counts[layer] += RoutingSums.unpack(packed, len(counts[layer])).load_me.sum(0).round().long().cpu()
    return counts


def most_used(counts: Mapping[int, Tensor], number: int | None) -> dict[int, tuple[int, ...]]:
    """By layer, the experts to keep: all that were chosen (None), or so many that were chosen most, ties to the lower index.

    A layer that loses none is left out.
    """
    kept = {}
    for layer, count_e in counts.items():
        wanted = int((count_e > 0).sum()) if number is None else number
        best = count_e.sort(descending=True, stable=True).indices[:wanted]
        if len(best) < len(count_e):
            kept[layer] = tuple(sorted(best.tolist()))
    return kept


def choices_lost(counts: Mapping[int, Tensor], kept: Mapping[int, tuple[int, ...]]) -> dict[int, int]:
    """By layer that lost experts, how many of the counted choices fell on those."""
    return {layer: int(counts[layer].sum() - counts[layer][list(experts)].sum()) for layer, experts in kept.items()}
