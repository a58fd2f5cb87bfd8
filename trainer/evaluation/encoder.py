"""The model as the evaluators see it: pixels or tokens in, unit vectors out, all ranks in step."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model.preprocess import normalise
from model.stream import IMAGE
from trainer.config.schema import DataConfig
from trainer.distributed.processes import Processes

# A batch of texts and a length T to int64 tokens [n, T]; 0 is padding. `model.tokenizer.Tokenizer` is one.
Tokenize = Callable[[list[str], int], Tensor]


class Encoder(Protocol):
    """Embeds a batch. Experts on other ranks take part: all ranks call it equally often, in the same order, with equal shapes."""

    def images(self, images: Tensor) -> Tensor:
        """uint8 `[b, 3, H, W]` on the run's device to float32 `[b, D]` there; L2-normalised, without gradient."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """uint8 `[b, 3, H, W]` to the images' features before the projection, float32 `[b, width]`; otherwise like `images`."""
        ...

    def texts(self, tokens: Tensor) -> Tensor:
        """int64 `[b, T]` (0 is padding) on the run's device to float32 `[b, D]` there; L2-normalised, without gradient."""
        ...


def encode_texts(
    encoder: Encoder, tokenizer: Tokenize, texts: Sequence[str], length: int, batch_size: int, processes: Processes
) -> Tensor:
    """Embed the texts, which are the same on all ranks, each rank an equal share; every rank gets all rows, in the texts' order.

    length: tokens per text; batch_size: most texts per call on this rank. Returns float32 `[len(texts), D]` on the run's device.
    A collective. Raises ValueError when there are no texts.
    """
    if not texts:
        raise ValueError("no texts to encode")
    share = -(-len(texts) // processes.world)
    calls = -(-share // batch_size)
    size = -(-share // calls)
    start = processes.rank * share
    rows = []
    for offset in range(start, start + calls * size, size):
        # After the end it starts again from the first text: real texts are padding that is certain to be encodable.
        batch = [texts[index % len(texts)] for index in range(offset, offset + size)]
        rows.append(encoder.texts(tokenizer(batch, length).to(processes.device)).float())
    return processes.gather_rows(torch.cat(rows)[:share])[: len(texts)]


class ModelEncoder:
    """trainer.evaluation.encoder.Encoder over a LIMoE module, whose experts may be on several ranks."""

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
        return self._images(images).images

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """uint8 `[b, 3, H, W]` -> float32 `[b, width]`."""
        return self._images(images).features[IMAGE].float()

    def _images(self, images: Tensor) -> Any:
        self._before_each()
        return self._model(images=normalise(images, self._data.mean, self._data.std, self._dtype))

    @torch.no_grad()
    def texts(self, tokens: Tensor) -> Tensor:
        """int64 `[b, T]` -> float32 `[b, D]`."""
        self._before_each()
        return self._model(texts=tokens).texts
