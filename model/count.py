"""How large a model is: all parameters, and those applied to a token."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from model.block import Encoder
from model.config import ModelConfig, RouterConfig
from model.experts import Experts
from model.freeze import blocks_passed_back, freeze
from model.limoe import LIMoE
from model.stream import IMAGE, TEXT


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters.

    applied: with top_k of the E experts of each layer and the first of the towers; the embedding tables count as applied.
    towers: of each tower, with all experts. trained, trained_experts: those of all, and of the experts, that are not frozen.
    """

    total: int
    applied: int
    experts: int
    towers: tuple[int, ...]
    trained: int
    trained_experts: int


def expert_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The stacked parameters of all expert layers."""
    for module in model.modules():
        if isinstance(module, Experts):
            yield from module.parameters()


def count_parameters(config: ModelConfig, router: RouterConfig, frozen: Sequence[str] = ()) -> ParameterCount:
    """Counts of the whole model, whatever the parallel layout; builds it without memory, on the meta device.

    frozen: patterns, as of model.freeze. Raises UserError for those that cannot be.
    """
    model = freeze(LIMoE.without_values(config, router), frozen)
    total, trained = _elements(model.parameters())
    experts, trained_experts = _elements(expert_parameters(model))
    towers = tuple(_elements(tower.parameters())[0] for tower in model.towers)
    applied = total - sum(towers[1:]) - experts + experts * router.top_k // max(1, config.experts)
    return ParameterCount(total, applied, experts, towers, trained, trained_experts)


def _elements(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    """All elements, and those of parameters that are trained."""
    total = trained = 0
    for parameter in parameters:
        total += parameter.numel()
        trained += parameter.numel() if parameter.requires_grad else 0
    return total, trained


def step_flops(
    model: ModelConfig, router: RouterConfig, pairs: int, frozen: Sequence[str] = (), image_tokens: int | None = None
) -> float:
    """FLOPs of forward and backward over `pairs` pairs: 6 per applied weight and token, plus attention's two products.

    The embedding tables multiply nothing; pads are computed, so they count; recomputation does not (the usual model FLOPs).

    frozen: patterns, as of model.freeze. A frozen weight takes 4, for it has no gradient, or 2 if nothing below it has one.
    image_tokens: of an image, if some of its patches are dropped.
    """
    counts, texts = count_parameters(model, router), model.text_tower
    tables = model.image_tokens * model.width + (model.vocabulary + model.text_length) * texts.width
    of_image = counts.applied - tables
    of_text = of_image - counts.towers[0] + counts.towers[-1]
    lengths = {IMAGE: image_tokens or model.image_tokens, TEXT: model.text_length}
    products = 6.0 * (of_image * lengths[IMAGE] + of_text * lengths[TEXT])
    squares = {IMAGE: model.layers * model.width * lengths[IMAGE] ** 2, TEXT: texts.layers * texts.width * lengths[TEXT] ** 2}
    saved = _saved_flops(model, router, frozen, lengths) if frozen else 0.0
    return pairs * (products + 12 * sum(squares.values()) - saved)


def _saved_flops(config: ModelConfig, router: RouterConfig, frozen: Sequence[str], lengths: Mapping[int, int]) -> float:
    """FLOPs of a pair's backward pass that frozen blocks spare; lengths: tokens of a pair by modality.

    What is outside the blocks is too little to count.
    """
    model = freeze(LIMoE.without_values(config, router), frozen)
    experts = {id(parameter) for parameter in expert_parameters(model)}
    widths = (config.width, config.text_tower.width)
    saved = 0.0
    for number, (tower, passed) in enumerate(zip(model.towers, blocks_passed_back(model), strict=True)):
        assert isinstance(tower, Encoder)
        read = list(lengths.values()) if config.towers == 1 else [lengths[number]]
        for index, block in enumerate(tower.blocks):
            for parameter in block.parameters():
                applied = parameter.numel() * (router.top_k / config.experts if id(parameter) in experts else 1)
                products = (not parameter.requires_grad) + (index not in passed)
                saved += 2 * products * applied * sum(read)
            if index not in passed:
                saved += 8 * widths[number] * sum(length**2 for length in read)
    return saved
