"""How far each parameter's learning rate is that of the schedule: factors by name, and less for layers near the input."""

import re
from collections.abc import Collection, Sequence

from torch import nn

from model.patterns import check_patterns, first_fitting
from trainer.config.schema import OptimConfig

_BLOCK = re.compile(r"towers\.(\d+)\.blocks\.(\d+)\.")
_EMBEDDINGS = ("patches.", "tokens.")


def rate_factors(model: nn.Module, optim: OptimConfig) -> dict[str, float]:
    """By parameter: the factor of the first pattern of optim.lr_factors that fits its name, times the layer's decay.

    Raises UserError for a pattern that fits no parameter.
    """
    names, factors = [name for name, _ in model.named_parameters()], optim.lr_factors or {}
    check_patterns("optim.lr_factors", factors, names)
    depths = _depths(names)
    return {name: _by_pattern(name, factors) * _by_layer(name, depths, optim.layer_decay) for name in names}


def _by_pattern(name: str, factors: dict[str, float]) -> float:
    pattern = first_fitting(name, factors)
    return 1.0 if pattern is None else factors[pattern]


def _depths(names: Collection[str]) -> list[int]:
    """The blocks of each tower."""
    blocks = {match.groups() for name in names if (match := _BLOCK.match(name))}
    return [sum(tower == of for tower, _ in blocks) for of in sorted({tower for tower, _ in blocks})]


def _by_layer(name: str, depths: Sequence[int], decay: float) -> float:
    """decay ** (layers above this one): 1 for what follows the blocks, least for the embeddings (BEiT, Bao et al. 2022)."""
    if name.startswith(_EMBEDDINGS):
        return float(decay ** ((depths[0] if name.startswith("patches.") else depths[-1]) + 1))
    if block := _BLOCK.match(name):
        tower, index = map(int, block.groups())
        return float(decay ** (depths[tower] - index))
    return 1.0
