"""What stays in float32 when the model around it runs in a smaller dtype."""

from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn


class Float32Module(nn.Module):
    """A module whose own parameters stay at least float32 when the model is cast.

    bfloat16 has eight significant bits: a logit scale near 100 would move in steps of half, a router's weight in steps of 0.4%.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def kept(tensor: Tensor) -> Tensor:
            moved: Any = fn(tensor)
            if moved.is_floating_point() and moved.dtype.itemsize < torch.float32.itemsize:
                return tensor.to(moved.device)
            return moved

        return super()._apply(kept, recurse)


def float32_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of all such modules, with their names in the model."""
    for module_name, module in model.named_modules():
        if isinstance(module, Float32Module):
            for name, parameter in module.named_parameters(recurse=False):
                yield f"{module_name}.{name}" if module_name else name, parameter
