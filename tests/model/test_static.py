"""The training path never reads a value on the host, and no shape in it depends on the data."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.balance import update_biases
from model.config import BiasConfig, RouterConfig
from model.contrastive import contrastive_loss
from model.objective import training_losses
from model.peers import SingleProcess
from tests.model.build import expert_layer, model, pairs, tiny, token_stream

HOST_READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}


class Recorder(TorchDispatchMode):
    """Notes every operation with the shapes it gives; raises where one needs a value on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, tuple[torch.Size, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1]))
        by_counts = name == "repeat_interleave" and func._overloadname != "self_int"  # the sum of the counts is read
        if name in HOST_READS or by_mask or by_counts:
            raise AssertionError(f"aten.{name} reads a value on the host")
        result = func(*args, **(kwargs or {}))
        self.operations.append((name, tuple(leaf.shape for leaf in tree_leaves(result) if isinstance(leaf, Tensor))))
        return result


def _layer_operations(config: RouterConfig, seed: int, pads: bool) -> list[tuple[str, tuple[torch.Size, ...]]]:
    layer, stream = expert_layer(0, 4, config), token_stream(seed, 4, 3, 4, 5)
    if not pads:
        stream.valid_n.fill_(True)
    stream.x_nd.requires_grad_()
    with Recorder() as recorder:
        y_nd, sums = layer(stream)
        (y_nd.square().sum() + sums.sum()).backward()
    return recorder.operations


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("priority", ["gate", "token", "order"])
@pytest.mark.parametrize("group_size", [None, 2])
def test_the_expert_layer(top_k: int, priority: str, group_size: int | None) -> None:
    config = RouterConfig(top_k=top_k, priority=priority, group_size=group_size)
    first = _layer_operations(config, 0, pads=False)
    assert len(first) > 50
    assert _layer_operations(config, 1, pads=True) == first
    assert _layer_operations(config, 2, pads=True) == first


@pytest.mark.parametrize(
    "router",
    [
        RouterConfig(),
        RouterConfig(top_k=2),
        RouterConfig(gates="sigmoid", bias=BiasConfig("modality")),
        RouterConfig(bias=BiasConfig("shared", "zscore")),
        RouterConfig(choice="expert"),
    ],
    ids=["K=1", "K=2", "sigmoid, bias by modality", "shared bias", "expert choice"],
)
def test_the_whole_training_step(router: RouterConfig) -> None:
    config = tiny(layers=3, expert_layers=[0, 2], expert_granularity=2, shared_experts=1)
    recorded = []
    for seed in (0, 1):
        net = model(config, router)
        images, texts = pairs(5, config, seed)
        with Recorder() as recorder:
            losses = training_losses(net(images, texts), router.aux, config.routed_experts, SingleProcess())
            losses.total.backward()
            update_biases(net, losses.routing)
        recorded.append(recorder.operations)
    assert recorded[0] == recorded[1]


@pytest.mark.parametrize("bias", [None, torch.tensor(-3.0)], ids=["softmax", "sigmoid"])
def test_the_losses_in_chunks(bias: Tensor | None) -> None:
    rows = torch.eye(5).requires_grad_()
    with Recorder() as recorder:
        contrastive_loss(rows, rows, torch.tensor(7.0), bias, SingleProcess(), chunk=2).backward()
    assert len(recorder.operations) > 20


def test_the_recorder_notices_the_evaluation_path_which_does_read() -> None:
    layer, stream = expert_layer(0, 4, RouterConfig()).eval(), token_stream(0, 2, 3, 4, 5)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Recorder():
        layer(stream)
