"""How far each parameter's learning rate is that of the schedule: factors by name, and less for layers near the input."""

import re
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from torch import nn

from trainer.config.schema import OptimConfig
from trainer.errors import UserError

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


def check_patterns(key: str, patterns: Collection[str], names: Collection[str]) -> None:
    """Raise UserError for a pattern that fits no parameter's name."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(dict.fromkeys(re.sub(r"\d+\..*|(?<=\.).*", "*", name) for name in names))
            raise UserError(f"{key}: no parameter has a name like '{pattern}'; there are {shown}, such as {max(names, key=len)}")


def _by_pattern(name: str, factors: dict[str, float]) -> float:
    return next((factor for pattern, factor in factors.items() if fnmatchcase(name, pattern)), 1.0)


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
