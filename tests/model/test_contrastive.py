"""The contrastive loss against a loop, alone and split over processes."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.contrastive import contrastive_loss
from model.peers import SingleProcess
from tests.model import reference
from tests.model.build import ThreadPeers, assert_close, few, gradients, play


def _case(seed: int, rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Raw images and texts `[rows, 4]` (normalised by `_loss_inputs`) and a scale, all wanting gradients."""
    generator = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(2, rows, 4, dtype=dtype, generator=generator)
    return images.clone().requires_grad_(), texts.clone().requires_grad_(), torch.tensor(7.0, dtype=dtype, requires_grad=True)


def _normalised(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    return F.normalize(images, dim=-1), F.normalize(texts, dim=-1)


@few
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 6))
def test_value_and_gradients(seed: int, rows: int) -> None:
    images, texts, scale = inputs = _case(seed, rows)
    actual = contrastive_loss(*_normalised(images, texts), scale, SingleProcess())
    expected = reference.contrastive(*_normalised(images, texts), scale)
    assert_close([actual], [expected])
    assert_close(gradients(actual, list(inputs)), gradients(expected, list(inputs)))


@few
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 3), world=st.integers(2, 4))
def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(seed: int, rows: int, world: int) -> None:
    images, texts, scale = inputs = list(_case(seed, rows * world))
    whole = contrastive_loss(*_normalised(images, texts), scale, SingleProcess())
    parts = list(zip(*(values.chunk(world) for values in _normalised(images, texts)), strict=True))

    def on_one(peers: ThreadPeers) -> Tensor:
        images, texts = parts[peers.rank]
        return contrastive_loss(images, texts, scale, peers)

    losses = play(world, on_one)
    mean = torch.stack(losses).mean()
    assert_close([mean], [whole])
    assert_close(gradients(mean, inputs), gradients(whole, inputs))
    for rank in range(world):  # each process's part is its own rows' share, not the whole loss again
        share = slice(rank * rows, (rank + 1) * rows)
        logits = scale * _normalised(images, texts)[0] @ _normalised(images, texts)[1].T
        own = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal())[share].mean() / 2
        assert_close([losses[rank]], [own])


def test_known_values() -> None:
    eye = torch.eye(5)
    uniform = F.normalize(torch.ones(5, 5), dim=-1)
    assert contrastive_loss(uniform, uniform, torch.tensor(10.0), SingleProcess()).item() == pytest.approx(math.log(5))
    expected = math.log(1 + 4 * math.exp(-10.0))
    assert contrastive_loss(eye, eye, torch.tensor(10.0), SingleProcess()).item() == pytest.approx(expected, abs=1e-6)


def test_bf16_rows_are_compared_in_float32() -> None:
    images, texts, _ = _case(0, 6, torch.bfloat16)
    loss = contrastive_loss(images, texts, torch.tensor(7.0), SingleProcess())
    assert loss.dtype == torch.float32
    assert_close([loss.double()], [reference.contrastive(images.double(), texts.double(), torch.tensor(7.0).double())], 1e-5)
