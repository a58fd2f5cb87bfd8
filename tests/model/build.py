"""Small models, streams and peers for the tests."""

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from hypothesis import settings
from torch import Tensor, nn

from model.config import ModelConfig, RouterConfig
from model.experts import ExpertLayer
from model.limoe import LIMoE
from model.peers import Peers, SingleProcess
from model.stream import IMAGE, TEXT, Segment, TokenStream

few = settings(deadline=None, max_examples=25, derandomize=True)
many = settings(deadline=None, max_examples=100, derandomize=True)


def tiny(**changes: Any) -> ModelConfig:
    """Two blocks, the second a mixture of four experts; 4 patches an image, 5 tokens a text."""
    shape: dict[str, Any] = {
        "width": 8,
        "mlp": 12,
        "heads": 2,
        "layers": 2,
        "expert_layers": [1],
        "experts": 4,
        "image_size": 4,
        "patch": 2,
        "text_length": 5,
        "vocabulary": 20,
        "embedding": 6,
    }
    return ModelConfig(**(shape | changes))


def model(config: ModelConfig, router: RouterConfig | None = None, peers: Peers | None = None, seed: int = 0) -> LIMoE:
    """A float64 model in training mode."""
    return LIMoE(config, router or RouterConfig(), peers).initialise(seed).double()


def pairs(count: int, config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images `[B, 3, H, W]` and texts `[B, L]` of 1 to L tokens, padded with 0."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, config.image_size, config.image_size, dtype=dtype, generator=generator)
    texts = torch.randint(1, config.vocabulary, (count, config.text_length), generator=generator)
    lengths = torch.randint(1, config.text_length + 1, (count, 1), generator=generator)
    return images, texts * (torch.arange(config.text_length) < lengths)


def token_stream(seed: int, count: int, image_length: int, text_length: int, width: int) -> TokenStream:
    """Random float64 tokens of `count` images and texts; about a third of the text tokens are pads, anywhere."""
    generator = torch.Generator().manual_seed(seed)
    segments = (Segment(IMAGE, count, image_length), Segment(TEXT, count, text_length))
    images, texts = (segment.tokens for segment in segments)
    return TokenStream(
        x_nd=torch.randn(images + texts, width, dtype=torch.float64, generator=generator),
        modality_n=torch.tensor([IMAGE] * images + [TEXT] * texts),
        valid_n=torch.cat([torch.ones(images, dtype=torch.bool), torch.rand(texts, generator=generator) > 0.33]),
        segments=segments,
    )


def expert_layer(seed: int, experts: int, config: RouterConfig, width: int = 5, hidden: int = 7) -> ExpertLayer:
    """A float64 expert layer in training mode, every parameter (biases too) a random normal."""
    layer = ExpertLayer(width, hidden, experts, config, SingleProcess()).double()
    randomise(layer, seed)
    return layer


def randomise(module: nn.Module, seed: int) -> None:
    """Fill all parameters with normals, so that no bias or norm is at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / math.sqrt(2))


def gradients(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the loss, zeros where it does not depend on an input."""
    return [
        torch.zeros_like(value) if grad is None else grad
        for value, grad in zip(inputs, torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True), strict=True)
    ]


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-9) -> None:
    """Every tensor of the first list near its fellow in the second."""
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@dataclass
class Meeting:
    """Where threads that play processes hand their tensors to one another. The autograd graph runs through it."""

    world: int
    barrier: threading.Barrier = field(init=False)
    table: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.world, timeout=60)
        self.table = [None] * self.world

    def share(self, rank: int, value: Tensor) -> list[Tensor]:
        """Every rank's value, in rank order."""
        self.table[rank] = value
        self.barrier.wait()
        values = list(self.table)
        self.barrier.wait()
        return values


class ThreadPeers:
    """Peers of a thread that plays one of `world` processes, all of which share one set of experts."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting = meeting
        self.world = self.expert_parallel = meeting.world
        self.rank = self.expert_rank = rank

    def to_experts(self, buffers: Tensor) -> Tensor:
        """The slots for this rank's experts, sender after sender."""
        return torch.cat([sent.chunk(self.world)[self.rank] for sent in self.meeting.share(self.rank, buffers)], dim=1)

    def from_experts(self, buffers: Tensor) -> Tensor:
        """This rank's slots, owner after owner."""
        return torch.cat([sent.chunk(self.world, dim=1)[self.rank] for sent in self.meeting.share(self.rank, buffers)])

    def gather_rows(self, rows: Tensor) -> Tensor:
        """All rows in rank order."""
        return torch.cat(self.meeting.share(self.rank, rows))

    def pass_on(self, values: Tensor) -> Tensor:
        """The values of the rank before."""
        return self.meeting.share(self.rank, values)[self.rank - 1]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks."""
        return torch.stack(self.meeting.share(self.rank, values)).sum(0)

    def max_over_experts(self, value: Tensor) -> Tensor:
        """The largest value."""
        return torch.stack(self.meeting.share(self.rank, value)).max()


T = TypeVar("T")


def play(world: int, part: Callable[[ThreadPeers], T]) -> list[T]:
    """`part` once for each rank, in a thread each; the results in rank order."""
    meeting = Meeting(world)

    def guarded(rank: int) -> T:
        try:
            return part(ThreadPeers(meeting, rank))
        except BaseException:
            meeting.barrier.abort()  # else the others would wait for this rank
            raise

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(guarded, range(world)))
