"""The model as the evaluators see it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.preprocess import normalise
from trainer.config import DataConfig


class ModelEncoder:
    """trainer.evaluation.encoder.Encoder over a LIMoE module, whose experts may lie on several ranks."""

    def __init__(
        self, model: nn.Module, data: DataConfig, dtype: torch.dtype, before_each: Callable[[], None] = lambda: None
    ) -> None:
        """`before_each` is called before each batch, on all ranks equally often; it may raise to end the evaluation."""
        self._before_each = before_each
        self._model = model
        self._data = data
        self._dtype = dtype

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """uint8 `[b, 3, H, W]` -> float32 `[b, D]`."""
        self._before_each()
        return self._model(images=normalise(images, self._data.mean, self._data.std, self._dtype)).images

    @torch.no_grad()
    def texts(self, tokens: Tensor) -> Tensor:
        """int64 `[b, T]` -> float32 `[b, D]`."""
        self._before_each()
        return self._model(texts=tokens).texts


def dtype_of(precision: str) -> torch.dtype:
    """The dtype that activations and forward weights have under `train.precision`."""
    return torch.bfloat16 if precision == "bf16" else torch.float32
