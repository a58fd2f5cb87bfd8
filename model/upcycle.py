"""Sparse upcycling: a model with experts starts where a dense one ended, each expert a copy of the MLP that was in its place.

Komatsuzaki et al. 2022, "Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints", arXiv 2212.05055, section 3.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from model.experts import ExpertLayer
from model.initialise import generator_of
from model.limoe import LIMoE

EXPERTS_OF_MLP = {"up.weight": "up", "up.bias": "up_bias", "down.weight": "down", "down.bias": "down_bias"}
"""The parameters of `Experts` by those of the `MLP` that they copy."""


def copies(model: nn.Module) -> dict[str, str]:
    """The parameters of experts, by the name that the MLP's parameter has in the dense twin."""
    layers = [name for name, module in model.named_modules() if isinstance(module, ExpertLayer)]
    return {f"{layer}.{of_mlp}": f"{layer}.experts.{name}" for layer in layers for of_mlp, name in EXPERTS_OF_MLP.items()}


@torch.no_grad()
def upcycle(model: LIMoE, dense: Iterable[tuple[str, Tensor]], noise: float, seed: int) -> None:
    """Fill an initialised model from the parameters of its dense twin, by name; what the twin lacks (the routers) stays.

    Its function is the twin's if no noise is added, every token gets a slot and gates are normalised
    (`RouterConfig.normalise_gates`), without shared or finer experts.

    noise: added to each expert's copy of each matrix, normal, in standard deviations of the matrix; drawn from the seed and the
    expert's number, so that an expert starts the same wherever it is.
    """
    tensors, copy_of = dict(model.named_parameters()) | dict(model.named_buffers()), copies(model)
    for name, value in dense:
        if name not in copy_of:
            tensors[name].copy_(value)
            continue
        # A linear map has its weight as `[out, in]`, experts as `[E, in, out]`, and biases as `[E, 1, out]`.
        of_experts, one = copy_of[name], value.T if value.dim() == 2 else value.unsqueeze(0)
        for local, expert in enumerate(tensors[of_experts]):
            expert.copy_(one)
            if noise and value.dim() == 2:
                own = generator_of(seed, f"{of_experts}/{model.first_expert + local}/noise")
                expert.add_(torch.randn(expert.shape, generator=own).to(expert), alpha=noise * value.std().item())
