"""Initial values of the parameters: the same for every parallel layout, because each tensor (and expert) has its own seed."""

import math
import zlib

import torch
from torch import Tensor, nn

from model.experts import Experts

TRUNCATION = 2.0
"""Normals are cut at this many standard deviations, which shrinks their std by TRUNCATED_STD."""
TRUNCATED_STD = 0.8796


def generator_of(seed: int, name: str) -> torch.Generator:
    """A generator on the CPU for one tensor, or one expert of it."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))


def _draw(shape: torch.Size, std: float, seed: int, name: str) -> Tensor:
    """Truncated normals of the given std on the CPU, determined by seed and name alone."""
    sigma = std / TRUNCATED_STD
    limit = TRUNCATION * sigma
    return nn.init.trunc_normal_(torch.empty(shape), std=sigma, a=-limit, b=limit, generator=generator_of(seed, name))


@torch.no_grad()
def initialise(model: nn.Module, seed: int, first_expert: int, initial_scale: float, initial_bias: float) -> None:
    """Fill every parameter: matrices with std 1/sqrt(fan-in), tables with 0.02, norms with ones, biases with zeros.

    first_expert: the global index of the first expert this process owns, so that expert e starts the same wherever it is.
    initial_scale, initial_bias: of the logits.
    """
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        module = modules[owner]
        if isinstance(module, Experts) and leaf in ("up", "down"):
            for local, weight in enumerate(parameter):
                weight.copy_(_draw(weight.shape, 1 / math.sqrt(weight.shape[0]), seed, f"{name}/{first_expert + local}"))
        elif leaf == "log_scale":
            parameter.fill_(math.log(initial_scale))
        elif leaf == "logit_bias":
            parameter.fill_(initial_bias)
        elif isinstance(module, nn.LayerNorm):
            parameter.fill_(1.0 if leaf == "weight" else 0.0)
        elif leaf.endswith("bias"):
            parameter.zero_()
        elif isinstance(module, nn.Embedding) or leaf in ("position", "class_token", "query"):
            parameter.copy_(_draw(parameter.shape, 0.02, seed, name))
        else:  # linear maps `[out, in]`, the router among them
            parameter.copy_(_draw(parameter.shape, 1 / math.sqrt(parameter.shape[1]), seed, name))
