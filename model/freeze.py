"""Parameters that are not trained: which, and how much of the backward pass they spare.

`requires_grad` tells them from the others, here as everywhere in PyTorch. A router that is frozen draws no noise (it explores
nothing), and its loss-free bias stays: what it decides is what it decides in evaluation, but for the slots that run out.
"""

from collections.abc import Sequence

from torch import nn

from model.block import Encoder
from model.errors import UserError
from model.limoe import LIMoE
from model.patterns import check_patterns, first_fitting


def freeze(model: LIMoE, patterns: Sequence[str]) -> LIMoE:
    """Let no parameter be trained, in place, whose name fits one of the patterns, such as `towers.0.*`.

    Raises UserError for a pattern that fits none, and when they fit all.
    """
    parameters = dict(model.named_parameters())
    check_patterns("train.freeze", patterns, parameters)
    for name, parameter in parameters.items():
        if first_fitting(name, patterns) is not None:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError(f"train.freeze=[{','.join(patterns)}] fits every parameter, so nothing would be trained: name fewer")
    return model


def blocks_passed_back(model: LIMoE) -> list[list[int]]:
    """By tower, the blocks that a gradient has to pass: those with anything trained in them, or below them."""
    passed = []
    for number, tower in enumerate(model.towers):
        embeddings = (model.patches, model.tokens)
        below = embeddings if len(model.towers) == 1 else embeddings[number : number + 1]
        reached = any(_is_trained(part) for part in below)
        mine = []
        assert isinstance(tower, Encoder)
        for index, block in enumerate(tower.blocks):
            reached = reached or _is_trained(block)
            if reached:
                mine.append(index)
        passed.append(mine)
    return passed


def _is_trained(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())
