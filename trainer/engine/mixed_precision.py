"""DeepSpeed (0.19.8) with a model of two dtypes and with float32 gradients: it has the parts, but no option for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from torch import Tensor

from model.precision import float32_parameters


@contextmanager
def mixed_precision(deepspeed: Any) -> Iterator[None]:
    """Let `deepspeed.initialize` make an engine that keeps the precise modules in float32 (model.precision).

    ZeRO accepts an optimizer group of float32 parameters next to groups of bfloat16: such a group is its own master.
    """
    from deepspeed.runtime.zero import stage3

    engine, defragment = deepspeed.DeepSpeedEngine, stage3.defragment
    deepspeed.DeepSpeedEngine = _engine_class(engine)
    stage3.defragment = lambda tensors: _Buffers(
        [defragment(list(run)) for _, run in groupby(tensors, key=lambda tensor: tensor.dtype)]
    )
    try:
        yield
    finally:
        deepspeed.DeepSpeedEngine, stage3.defragment = engine, defragment


def _engine_class(base: Any) -> Any:
    from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION

    class Engine(base):
        """DeepSpeed's engine with two changes."""

        def _cast_module_mixed_precision(self, *args: Any) -> None:
            """Cast everything that does not stay in float32."""
            kept = [(parameter, parameter.data) for _, parameter in float32_parameters(self.module)]
            super()._cast_module_mixed_precision(*args)
            for parameter, data in kept:
                parameter.data = data

        def _do_optimizer_sanity_check(self, basic_optimizer: Any) -> Any:
            """ZeRO's optimizer in stage 1 with float32 gradients too, and not BF16_Optimizer, which keeps its state elsewhere."""
            super()._do_optimizer_sanity_check(basic_optimizer)
            return ZERO_OPTIMIZATION

    return Engine


class _Buffers:
    """Stage 3's parameters: DeepSpeed's single flat buffer as one piece per run of equal dtypes."""

    def __init__(self, buffers: list[Tensor]) -> None:
        self._buffers = buffers

    def narrow(self, dim: int, start: int, length: int) -> Tensor:
        """Like torch.Tensor.narrow of the single buffer; a parameter is never in two pieces."""
        for buffer in self._buffers:
            if start < buffer.numel():
                return buffer.narrow(dim, start, length)
            start -= buffer.numel()
        return self._buffers[-1].narrow(dim, self._buffers[-1].numel(), length)
