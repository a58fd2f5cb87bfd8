"""How far each parameter's learning rate is that of the schedule: factors by name, and less for layers near the input."""

import re

from torch import nn

from model.patterns import check_patterns, first_fitting
from trainer.config.schema import OptimConfig

_BLOCK = re.compile(r"towers\.\d+\.blocks\.(\d+)\.")
_EMBEDDINGS = ("patches.", "tokens.")


def rate_factors(model: nn.Module, layers: int, optim: OptimConfig) -> dict[str, float]:
    """By parameter: the factor of the first pattern of optim.lr_factors that fits its name, times the layer's decay.

    layers: blocks of a tower. Raises UserError for a pattern that fits no parameter.
    """
    names, factors = [name for name, _ in model.named_parameters()], optim.lr_factors or {}
    check_patterns("optim.lr_factors", factors, names)
    return {name: _by_pattern(name, factors) * _by_layer(name, layers, optim.layer_decay) for name in names}


def _by_pattern(name: str, factors: dict[str, float]) -> float:
    pattern = first_fitting(name, factors)
    return 1.0 if pattern is None else factors[pattern]


def _by_layer(name: str, layers: int, decay: float) -> float:
    """decay ** (layers above this one): 1 for what follows the blocks, least for the embeddings (BEiT, Bao et al. 2022)."""
    if name.startswith(_EMBEDDINGS):
        return float(decay ** (layers + 1))
    block = _BLOCK.match(name)
    return float(decay ** (layers - int(block[1]))) if block else 1.0
