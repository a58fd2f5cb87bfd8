"""How large a model is: all parameters, and those applied to a token."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from model.config import ModelConfig, RouterConfig
from model.experts import Experts
from model.limoe import LIMoE


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters.

    applied: with top_k of the E experts of each layer and the first of the towers; the embedding tables count as applied.
    towers: of each tower, with all experts.
    """

    total: int
    applied: int
    experts: int
    towers: tuple[int, ...]


def expert_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The stacked parameters of all expert layers."""
    for module in model.modules():
        if isinstance(module, Experts):
            yield from module.parameters()


def count_parameters(config: ModelConfig, router: RouterConfig) -> ParameterCount:
    """Counts of the whole model, whatever the parallel layout; builds it without memory, on the meta device."""
    model = LIMoE.without_values(config, router)
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = sum(parameter.numel() for parameter in expert_parameters(model))
    towers = tuple(sum(parameter.numel() for parameter in tower.parameters()) for tower in model.towers)
    applied = total - sum(towers[1:]) - experts + experts * router.top_k // max(1, config.experts)
    return ParameterCount(total, applied, experts, towers)


def step_flops(model: ModelConfig, router: RouterConfig, pairs: int) -> float:
    """FLOPs of forward and backward over `pairs` pairs: 6 per applied weight and token, plus attention's two products.

    The embedding tables multiply nothing; pads are computed, so they count; recomputation does not (the usual model FLOPs).
    """
    counts, texts = count_parameters(model, router), model.text_tower
    tables = model.image_tokens * model.width + (model.vocabulary + model.text_length) * texts.width
    of_image = counts.applied - tables
    of_text = of_image - counts.towers[0] + counts.towers[-1]
    attention = 12 * (model.layers * model.width * model.image_tokens**2 + texts.layers * texts.width * model.text_length**2)
    return pairs * (6.0 * (of_image * model.image_tokens + of_text * model.text_length) + attention)
