"""The contrastive losses against loops, alone, split over processes and in chunks."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.contrastive import contrastive_loss
from model.peers import Peers, SingleProcess
from tests.model import reference
from tests.model.build import ThreadPeers, assert_close, few, gradients, play

KINDS = st.sampled_from(["softmax", "sigmoid"])
CHUNKS = st.sampled_from([None, 1, 2, 3, 100])
WIDTH = 4


@dataclass(frozen=True)
class Case:
    """Raw images and texts `[rows, WIDTH]`, and scale and bias (None: softmax) of the logits, all wanting gradients."""

    images: Tensor
    texts: Tensor
    scale: Tensor
    bias: Tensor | None

    @property
    def inputs(self) -> list[Tensor]:
        return [self.images, self.texts, self.scale] + ([] if self.bias is None else [self.bias])

    def loss(
        self, peers: Peers | None = None, chunk: int | None = None, normalised: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        images, texts = normalised or self.normalised()
        return contrastive_loss(images, texts, self.scale, self.bias, peers or SingleProcess(), chunk)

    def normalised(self) -> tuple[Tensor, Tensor]:
        return F.normalize(self.images, dim=-1), F.normalize(self.texts, dim=-1)

    def expected(self) -> Tensor:
        if self.bias is None:
            return reference.contrastive(*self.normalised(), self.scale)
        return reference.sigmoid_contrastive(*self.normalised(), self.scale, self.bias)


def _case(kind: str, seed: int, rows: int, dtype: torch.dtype = torch.float64) -> Case:
    generator = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(2, rows, WIDTH, generator=generator).to(dtype)
    scale, bias = (torch.tensor(value, dtype=dtype, requires_grad=True) for value in (7.0, -3.0))
    return Case(images.clone().requires_grad_(), texts.clone().requires_grad_(), scale, bias if kind == "sigmoid" else None)


def _over_processes(case: Case, world: int, chunk: int | None) -> list[Tensor]:
    """Each process's loss."""
    parts = list(zip(*(values.chunk(world) for values in case.normalised()), strict=True))
    return play(world, lambda peers: case.loss(peers, chunk, parts[peers.rank]))


@few
@given(kind=KINDS, seed=st.integers(0, 10_000), rows=st.integers(1, 6), chunk=CHUNKS)
def test_value_and_gradients(kind: str, seed: int, rows: int, chunk: int | None) -> None:
    case = _case(kind, seed, rows)
    actual, expected = case.loss(chunk=chunk), case.expected()
    assert_close([actual], [expected])
    assert_close(gradients(3 * actual, case.inputs), gradients(3 * expected, case.inputs))


@few
@given(kind=KINDS, seed=st.integers(0, 10_000), rows=st.integers(1, 3), world=st.integers(2, 4), chunk=CHUNKS)
def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(
    kind: str, seed: int, rows: int, world: int, chunk: int | None
) -> None:
    case = _case(kind, seed, rows * world)
    losses, whole = _over_processes(case, world, chunk), case.expected()
    mean = torch.stack(losses).mean()
    assert_close([mean], [whole])
    assert_close(gradients(mean, case.inputs), gradients(whole, case.inputs))
    images, texts = case.normalised()
    logits = case.scale * images @ texts.T
    for rank in range(world):  # each process's part is its own rows' share, not the whole loss again
        share = slice(rank * rows, (rank + 1) * rows)
        if case.bias is None:
            own = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal())[share].mean() / 2
        else:
            labels = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
            own = -F.logsigmoid(labels * (logits + case.bias))[share].sum() / rows
        assert_close([losses[rank]], [own])


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("chunk", [None, 16])
def test_in_float32_it_is_the_loss_in_float64_to_rounding(kind: str, world: int, chunk: int | None) -> None:
    case, exact = (_case(kind, 0, 96, dtype) for dtype in (torch.float32, torch.float64))
    actual, expected = torch.stack(_over_processes(case, world, chunk)).mean(), exact.loss()
    assert_close([actual.double()], [expected], 1e-6)
    assert_close([grad.double() for grad in gradients(actual, case.inputs)], gradients(expected, exact.inputs), 1e-6)


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return made


@contextmanager
def _largest() -> Iterator[Largest]:
    with Largest() as largest:
        yield largest


@pytest.mark.parametrize(
    ("kind", "chunk", "elements"),
    [
        ("softmax", None, 32 * 64),  # its own rows of the matrix
        ("softmax", 4, 2 * WIDTH * 64),  # all embeddings; the logits are half as many
        ("sigmoid", None, 32 * 32),  # a block: never the whole matrix, and never its rows
        ("sigmoid", 2, 4 * WIDTH * 32),  # texts, their gradients, and as much again on the way
    ],
)
def test_what_a_process_has_in_memory(kind: str, chunk: int | None, elements: int) -> None:
    images, texts = (part.detach() for part in _case(kind, 0, 64).normalised())
    scale = torch.tensor(7.0)

    def on_one(peers: ThreadPeers) -> int:
        own = slice(32 * peers.rank, 32 * (peers.rank + 1))
        leaves = [part[own].clone().requires_grad_() for part in (images, texts)]
        with _largest() as largest:
            loss = contrastive_loss(*leaves, scale, -scale if kind == "sigmoid" else None, peers, chunk)
        assert loss.requires_grad
        return largest.elements

    assert max(play(2, on_one)) <= elements


def test_known_values() -> None:
    eye, scale, none = torch.eye(5), torch.tensor(10.0), SingleProcess()
    uniform = F.normalize(torch.ones(5, 5), dim=-1)
    assert contrastive_loss(uniform, uniform, scale, None, none).item() == pytest.approx(math.log(5))
    expected = math.log(1 + 4 * math.exp(-10.0))
    assert contrastive_loss(eye, eye, scale, None, none).item() == pytest.approx(expected, abs=1e-6)
    # As SigLIP starts, with embeddings that have nothing to do with each other: a pair costs 10, another logit next to nothing.
    apart = contrastive_loss(eye, eye.roll(1, 0), scale, -scale, none)
    assert apart.item() == pytest.approx(10 + math.log(2) + 4 * math.log1p(math.exp(-10)), abs=1e-3)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_sigmoid_loss_of_large_logits_neither_overflows_nor_vanishes(sign: int) -> None:
    eye = torch.eye(2)
    scale, bias = torch.tensor(400.0, requires_grad=True), torch.tensor(-200.0, requires_grad=True)
    loss = contrastive_loss(eye * sign, eye, scale, bias, SingleProcess())
    # Right and sure by 200 (a positive logit of 200, a negative of -200), or a pair taken for none, by 600.
    assert loss.item() == pytest.approx(0.0 if sign == 1 else 600.0)
    at_scale, at_bias = gradients(loss, [scale, bias])
    assert (at_scale.item(), at_bias.item()) == pytest.approx((0.0, 0.0) if sign == 1 else (1.0, -1.0))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_bf16_rows_are_compared_in_float32(kind: str, chunk: int | None) -> None:
    images, texts = (rows.detach().bfloat16() for rows in _case(kind, 0, 6).normalised())
    scale, bias = torch.tensor(7.0), torch.tensor(-3.0) if kind == "sigmoid" else None
    leaves = [images.requires_grad_(), texts.requires_grad_()]
    loss = contrastive_loss(images, texts, scale, bias, SingleProcess(), chunk)
    wanted = [rows.detach().double().requires_grad_() for rows in leaves]
    exact = contrastive_loss(*wanted, scale.double(), None if bias is None else bias.double(), SingleProcess())
    assert loss.dtype == torch.float32
    assert_close([loss.double()], [exact], 1e-6)
    for actual, expected in zip(gradients(loss, leaves), gradients(exact, wanted), strict=True):
        assert (actual - expected).norm() < 4e-3 * expected.norm()  # rounded once, to bf16's eight bits
