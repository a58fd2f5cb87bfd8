"""Attention: what each token may see."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.block import Attention, Encoder
from model.config import RouterConfig
from model.peers import SingleProcess
from model.stream import TEXT, TokenStream
from tests.model.build import assert_close, few, gradients, randomise, tiny, token_stream

WIDTH, HEADS = 8, 2


def _attention(seed: int) -> Attention:
    attention = Attention(WIDTH, HEADS).double()
    randomise(attention, seed)
    return attention


def _encoder(seed: int) -> Encoder:
    encoder = Encoder(tiny(expert_layers=[]), RouterConfig(), SingleProcess()).double()
    randomise(encoder, seed)
    return encoder


def _sequences(stream: TokenStream) -> list[list[int]]:
    """The token indices of each image and text."""
    starts, sequences = 0, []
    for segment in stream.segments:
        for _ in range(segment.count):
            sequences.append(list(range(starts, starts + segment.length)))
            starts += segment.length
    return sequences


def _loop(attention: Attention, stream: TokenStream) -> list[tuple[int, Tensor]]:
    """Token by token, head by head: the output of each valid token."""
    size = WIDTH // HEADS
    rows = [attention.qkv.weight @ x_d + attention.qkv.bias for x_d in stream.x_nd]
    outputs = []
    for sequence in _sequences(stream):
        seen = [token for token in sequence if stream.valid_n[token]]
        for token in seen:
            heads = []
            for head in range(HEADS):
                q, k, v = (slice(part * WIDTH + head * size, part * WIDTH + (head + 1) * size) for part in range(3))
                powers = [torch.exp(rows[token][q] @ rows[other][k] / math.sqrt(size)) for other in seen]
                heads.append(sum(p * rows[other][v] for p, other in zip(powers, seen, strict=True)) / sum(powers))
            outputs.append((token, attention.out.weight @ torch.cat(heads) + attention.out.bias))
    return outputs


@few
@given(seed=st.integers(0, 10_000), count=st.integers(1, 3))
def test_values_and_gradients_against_a_loop(seed: int, count: int) -> None:
    attention, stream = _attention(seed), token_stream(seed, count, 3, 4, WIDTH)
    x_nd = stream.x_nd.requires_grad_()
    actual_nd = attention(x_nd, stream.valid_n, stream.segments)
    tokens, outputs = zip(*_loop(attention, stream), strict=True)
    actual, expected = actual_nd[list(tokens)], torch.stack(outputs)
    assert_close([actual], [expected])
    weight = torch.randn(actual.shape, dtype=actual.dtype, generator=torch.Generator().manual_seed(1))
    inputs = [x_nd, *attention.parameters()]
    assert_close(gradients((actual * weight).sum(), inputs), gradients((expected * weight).sum(), inputs))


@few
@given(seed=st.integers(0, 10_000), count=st.integers(1, 4), changed=st.integers(0, 7))
def test_a_change_in_one_sequence_stays_there(seed: int, count: int, changed: int) -> None:
    encoder, stream = _encoder(seed), token_stream(seed, count, 3, 4, WIDTH)
    sequences = _sequences(stream)
    inside = torch.zeros(len(stream.x_nd), dtype=torch.bool)
    inside[sequences[changed % len(sequences)]] = True
    before = encoder(stream)[0].x_nd
    after = encoder(stream.with_x(torch.where(inside.unsqueeze(1), stream.x_nd + 1 + stream.x_nd**2, stream.x_nd)))[0].x_nd
    assert_close([after[~inside]], [before[~inside]], tolerance=1e-12)
    assert not torch.allclose(after[inside], before[inside])


@few
@given(seed=st.integers(0, 10_000), count=st.integers(1, 4))
def test_pads_are_not_seen(seed: int, count: int) -> None:
    encoder, stream = _encoder(seed), token_stream(seed, count, 3, 4, WIDTH)
    valid_n = stream.valid_n
    x_nd = stream.x_nd.requires_grad_()
    before = encoder(stream)[0].x_nd
    after = encoder(stream.with_x(torch.where(valid_n.unsqueeze(1), x_nd, 50 * torch.randn_like(x_nd))))[0].x_nd
    assert_close([after[valid_n]], [before[valid_n]], tolerance=1e-12)
    (grad_nd,) = gradients((before[valid_n] ** 2 * torch.arange(WIDTH)).sum(), [x_nd])
    assert (grad_nd[~valid_n] == 0).all() and (grad_nd[valid_n] != 0).any(1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_pads_only_is_finite_and_so_are_its_gradients(dtype: torch.dtype) -> None:
    stream = token_stream(0, 3, 3, 4, WIDTH)
    stream.valid_n[[n for n in range(9, 21) if n // 4 != 4]] = True
    stream.valid_n[13:17] = False  # the second text
    assert stream.modality_n[13] == TEXT
    encoder = _encoder(0).to(dtype)
    x_nd = stream.x_nd.to(dtype).requires_grad_()
    y_nd = encoder(stream.with_x(x_nd))[0].x_nd
    assert y_nd.isfinite().all()
    for grad in gradients(y_nd.square().sum(), [x_nd, *encoder.parameters()]):
        assert grad.isfinite().all()
