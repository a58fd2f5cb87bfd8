"""The experts one after another, against one batched product for all."""

import pytest
import torch
from torch import Tensor

from model import products
from tests.model.build import assert_close, gradients

SHAPES = {"up": (3, 5, 7), "up_bias": (3, 1, 7), "down": (3, 7, 5), "down_bias": (3, 1, 5)}


def _normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


def _weights(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [_normal(*shape, dtype=dtype) for shape in SHAPES.values()]


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LARGE", 0)


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("frozen", [[], ["x"], ["up", "down"], ["x", "up", "up_bias"]])
def test_it_is_the_batched_product(frozen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = dict(zip(("x", *SHAPES), (_normal(3, 4, 5), *_weights()), strict=True))
    for name in frozen:
        inputs[name].requires_grad_(False)
    learned = [value for value in inputs.values() if value.requires_grad]
    actual = products.expert_mlps(*inputs.values())
    assert "OneByOne" in type(actual.grad_fn).__name__
    monkeypatch.setattr(products, "LARGE", 2**60)
    expected = products.expert_mlps(*inputs.values())
    assert "OneByOne" not in type(expected.grad_fn).__name__
    weight_ecd = _normal(3, 4, 5).detach().square()
    assert_close([actual], [expected])
    assert_close(gradients((actual * weight_ecd).sum(), learned), gradients((expected * weight_ecd).sum(), learned))


@pytest.mark.usefixtures("one_by_one")
def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(products.expert_mlps, (_normal(3, 2, 5), *_weights()))


@pytest.mark.usefixtures("one_by_one")
def test_without_a_backward_pass_it_keeps_no_hidden_rows() -> None:
    x_ecd, weights = _normal(3, 4, 5), _weights()
    with torch.no_grad():
        alone = products.expert_mlps(x_ecd, *weights)
    assert not alone.requires_grad
    assert torch.equal(alone, products.expert_mlps(x_ecd, *weights))


@pytest.mark.usefixtures("one_by_one")
def test_autocast_reaches_the_products() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y_ecd = products.expert_mlps(_normal(3, 4, 5, dtype=torch.float32), *_weights(torch.float32))
    assert y_ecd.dtype == torch.bfloat16


def test_large_products_go_one_by_one_and_small_ones_together() -> None:
    x_ecd, weights = _normal(3, 4, 5), _weights()
    assert "OneByOne" not in type(products.expert_mlps(x_ecd, *weights).grad_fn).__name__
    rows, width, hidden = 64, 64, products.LARGE // 64**2
    large = [torch.empty(shape, device="meta").expand(1, *shape) for shape in ((rows, width), (width, hidden))]
    assert not products._one_by_one(*large)  # not on a CPU
    assert products._one_by_one(torch.empty(1).expand(1, rows, width), torch.empty(1).expand(1, width, hidden))
    assert not products._one_by_one(torch.empty(1).expand(1, rows - 1, width), torch.empty(1).expand(1, width, hidden))
