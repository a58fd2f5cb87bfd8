"""What the router decided about every token of a batch, and what the model makes of the batch without one of its experts.

Both are asked of a model in evaluation mode through hooks that last as long as the question: the model is not changed.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from model.experts import ExpertLayer, Experts
from model.limoe import LIMoE, Output, expert_layers
from model.routing import Assignment, choose_experts
from model.stream import Segment, TokenStream


@dataclass(frozen=True)
class LayerTrace:
    """The tokens of one batch in one expert layer, on the model's device. N tokens, the images' first, pads too; K choices each.

    modality_n, sample_n, position_n: int64; which modality, which image or text of the batch, and which of its tokens: patches
    from left to right and top to bottom, pieces of a text in their order. valid_n: False for pads.
    expert_nk: int64, the experts that were asked, largest gate first (with expert choice all, in their order); gate_nk: their
    gates, which multiply their outputs; kept_nk: whether the token got a slot there.
    """

    modality_n: Tensor
    sample_n: Tensor
    position_n: Tensor
    valid_n: Tensor
    expert_nk: Tensor
    gate_nk: Tensor
    kept_nk: Tensor

    def taken_nk(self, modality: int) -> Tensor:
        """Bool `[N, K]`: the choices of a modality's tokens that an expert took."""
        return self.kept_nk & (self.valid_n & (self.modality_n == modality)).unsqueeze(1)

    def first(self, samples: int) -> "LayerTrace":
        """The same of the first images and texts of the batch alone; tokens of the others count as pads."""
        return replace(self, valid_n=self.valid_n & (self.sample_n < samples))

    def patch(self, token: int, columns: int) -> tuple[int, int]:
        """Row and column of an image token, from the upper left; columns: patches in a row."""
        return divmod(int(self.position_n[token]), columns)


@torch.no_grad()
def trace(model: LIMoE, images: Tensor | None = None, texts: Tensor | None = None) -> tuple[Output, dict[int, LayerTrace]]:
    """A forward pass of a model in evaluation mode, and how each expert layer, by its index, routed it.

    images, texts: as `LIMoE.forward` takes them. With experts on several ranks a collective.
    Raises ValueError for a model in training mode, whose noise would decide.
    """
    if model.training:
        raise ValueError("routing is traced in evaluation mode: call model.eval() first")
    found: dict[int, LayerTrace] = {}

    def watch(index: int) -> Any:
        def hook(layer: ExpertLayer, given: tuple[TokenStream, Assignment], _: Any) -> None:
            found[index] = _read(layer, *given)

        return hook

    with ExitStack() as hooks:
        for index, layer in expert_layers(model).items():
            hooks.callback(layer.register_forward_hook(watch(index)).remove)
        return model(images=images, texts=texts), found


@contextmanager
def knocked_out(layer: ExpertLayer, expert: int) -> Iterator[None]:
    """While this lasts, the expert's output is zero: its tokens pass by the residual (and shared experts), the others as ever.

    No other token gets its slots. With experts on several ranks, all of them enter.
    """
    own = expert - layer.peers.expert_rank * (layer.num_experts // layer.peers.expert_parallel)

    def silence(experts: Experts, _: tuple[Tensor], outputs_ecd: Tensor) -> Tensor:
        if not 0 <= own < len(outputs_ecd):  # another rank's
            return outputs_ecd
        return outputs_ecd.index_fill(0, torch.tensor([own], device=outputs_ecd.device), 0)

    handle = layer.experts.register_forward_hook(silence)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def slots_as_in_training(model: LIMoE) -> Iterator[None]:
    """While this lasts, experts have as many slots as in training, so that tokens can be dropped, in batches as given.

    The router's noise stays off: the same batch is routed the same way every time.
    """
    layers = expert_layers(model).values()
    before = [(layer.config, layer.training) for layer in layers]
    try:
        for layer in layers:
            layer.config, layer.training = replace(layer.config, noise=0.0), True
        yield
    finally:
        for layer, (config, training) in zip(layers, before, strict=True):
            layer.config, layer.training = config, training


def _read(layer: ExpertLayer, stream: TokenStream, assignment: Assignment) -> LayerTrace:
    assert assignment.expert_nk is not None and assignment.slots is not None  # the layer has just decided
    gates = choose_experts(layer.router(stream.x_nd), layer.config.top_k, expert_nk=assignment.expert_nk, kind=layer.config.gates)
    places = [_places(segment, stream.x_nd.device) for segment in stream.segments]
    return LayerTrace(
        modality_n=stream.modality_n,
        sample_n=torch.cat([sample for sample, _ in places]),
        position_n=torch.cat([position for _, position in places]),
        valid_n=stream.valid_n,
        expert_nk=assignment.expert_nk,
        gate_nk=gates.gate_nk,
        kept_nk=assignment.slots.kept_nk,
    )


def _places(segment: Segment, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each token of a segment, its sequence and its place there."""
    token = torch.arange(segment.tokens, device=device)
    return token // segment.length, token % segment.length
