"""The contrastive image-text model: one tower with or without experts (LIMoE), or two dense towers (CLIP)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.block import Encoder
from model.config import ModelConfig, RouterConfig
from model.embed import PatchEmbed, TextEmbed
from model.experts import ExpertLayer
from model.initialise import initialise
from model.peers import Peers, SingleProcess
from model.pool import AttentionPool, last_token, mean_token
from model.precision import Float32Module
from model.routing import Assignment
from model.stream import IMAGE, MODALITIES, TEXT, TokenStream, join

MAX_SCALE = 100.0
"""Largest logit scale with the softmax loss (CLIP, section 2.5); with the sigmoid loss it has no limit (SigLIP, algorithm 1)."""


class _ClampAtMaximum(torch.autograd.Function):
    """min(value, maximum); at the maximum only gradients that lower the value pass, so it neither grows nor sticks there."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, maximum: float) -> Tensor:
        ctx.save_for_backward(value >= maximum)
        return value.clamp(max=maximum)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (at_maximum,) = ctx.saved_tensors
        return torch.where(at_maximum & (grad < 0), torch.zeros_like(grad), grad), None


class LogitScale(Float32Module):
    """The learned scale of the logits, 1 / temperature. A module, so that ZeRO-3 fetches its parameter."""

    def __init__(self, maximum: float = MAX_SCALE) -> None:
        super().__init__()
        self.maximum = maximum
        self.log_scale = nn.Parameter(torch.empty(1))

    def forward(self) -> Tensor:
        """The scale, a float32 scalar (float64 stays)."""
        value = self.log_scale.to(torch.promote_types(self.log_scale.dtype, torch.float32))
        return _ClampAtMaximum.apply(value, math.log(self.maximum)).exp().squeeze(0)


class LogitBias(Float32Module):
    """What is added to the scaled cosines of the sigmoid loss: it learns how rare pairs are (SigLIP, section 3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_bias = nn.Parameter(torch.empty(1))

    def forward(self) -> Tensor:
        """The bias, a float32 scalar (float64 stays)."""
        # A tensor of its own: the optimizer changes the parameter's memory, and ZeRO-3 takes it away.
        return self.logit_bias.to(torch.promote_types(self.logit_bias.dtype, torch.float32)).squeeze(0).clone()


@dataclass(frozen=True)
class Output:
    """The result of a forward pass. images, texts: L2-normalised `[B, embedding]`, None for a modality that was not given.

    features: what was projected to these, by modality (IMAGE, TEXT): its tokens after the last block, pooled to `[B, width]`;
    scale: the logit scale, bias: what is added to the scaled cosines, scalars; no bias (None) with the softmax loss; routing:
    packed routing sums of this process by expert layer (model.auxiliary); assignments: what the expert layers decided, by layer,
    for another pass over the same batch.
    """

    images: Tensor | None
    texts: Tensor | None
    features: dict[int, Tensor]
    scale: Tensor
    bias: Tensor | None
    routing: dict[int, Tensor]
    assignments: dict[int, Assignment]


class LIMoE(nn.Module):
    """Embeds images and texts in one space. `ModelConfig.towers` and `expert_layers` decide which member of the family it is."""

    def __init__(self, config: ModelConfig, router: RouterConfig, peers: Peers | None = None) -> None:
        super().__init__()
        peers = peers or SingleProcess()
        if config.towers == 2 and config.expert_layers:
            raise ValueError("two towers are the dense baseline: expert layers need towers=1")
        router = replace(router, top_k=router.top_k * config.expert_granularity)
        of_modality = (config, config.text_tower)
        self.config = config
        self.patches = PatchEmbed(config)
        self.tokens = TextEmbed(config.text_tower)
        self.towers = nn.ModuleList(Encoder(of_modality[index], router, peers) for index in range(config.towers))
        self.pool = AttentionPool(config) if config.pool == "attention" else None
        self.heads = nn.ModuleDict(
            {
                name: nn.Linear(sizes.width, config.embedding, bias=config.head_bias)
                for name, sizes in zip(MODALITIES, of_modality, strict=True)
            }
        )
        by_itself = config.loss == "sigmoid"
        self.scale = LogitScale(math.inf if by_itself else MAX_SCALE)
        self.bias = LogitBias() if by_itself else None
        self.first_expert = peers.expert_rank * (config.routed_experts // peers.expert_parallel)

    @classmethod
    def without_values(cls, config: ModelConfig, router: RouterConfig, peers: Peers | None = None) -> "LIMoE":
        """A model of names and shapes alone, which takes no memory (on the meta device)."""
        with torch.device("meta"):
            return cls(config, router, peers)

    def initialise(self, seed: int) -> "LIMoE":
        """Fill the parameters from the seed; see model.initialise."""
        initialise(self, seed, self.first_expert, self.config.initial_scale, self.config.initial_bias)
        return self

    def forward(
        self,
        images: Tensor | None = None,
        texts: Tensor | None = None,
        assignments: Mapping[int, Assignment] | None = None,
        kept_patches: Tensor | None = None,
    ) -> Output:
        """Normalised images `[B, 3, H, W]` and/or token ids int64 `[B, L]` (0 pads) -> Output.

        assignments: those of an earlier Output, to send the same tokens to the same experts; None: the layers decide, in training
        with noise from torch's generator of the device. kept_patches: int64 `[B, k]`, those of each image that the model sees
        (model.patch_dropout); None: all.
        """
        sequences = []
        if images is not None:
            sequences.append((IMAGE, *self.patches(images, kept_patches)))
        if texts is not None:
            sequences.append((TEXT, *self.tokens(texts)))
        features: dict[int, Tensor] = {}
        routing: dict[int, Tensor] = {}
        used: dict[int, Assignment] = {}
        for tower, stream in self._streams(sequences):
            encoded, sums, tower_used = tower(stream, assignments)
            features |= self._pooled(encoded)
            routing |= sums
            used |= tower_used
        embeddings = {modality: self._project(modality, pooled_bd) for modality, pooled_bd in features.items()}
        bias = None if self.bias is None else self.bias()
        return Output(embeddings.get(IMAGE), embeddings.get(TEXT), features, self.scale(), bias, routing, used)

    def _streams(self, sequences: list[tuple[int, Tensor, Tensor]]) -> list[tuple[nn.Module, TokenStream]]:
        """Which tower reads what: one takes both modalities, two take one each."""
        if len(self.towers) == 1:
            return [(self.towers[0], join(sequences))]
        return [(self.towers[sequence[0]], join([sequence])) for sequence in sequences]

    def _pooled(self, stream: TokenStream) -> dict[int, Tensor]:
        """By modality: one vector of each image or text, `[B, width]`."""
        pooled = {}
        for (segment, x_bld), (_, valid_bl) in zip(stream.sequences(stream.x_nd), stream.sequences(stream.valid_n), strict=True):
            if self.pool is not None and segment.modality == IMAGE:
                pooled[segment.modality] = self.pool(x_bld)
            else:
                pool = mean_token if self.config.pool == "mean" else last_token
                pooled[segment.modality] = pool(x_bld, valid_bl)
        return pooled

    def _project(self, modality: int, pooled_bd: Tensor) -> Tensor:
        """Features to embeddings, L2-normalised in float32 at least."""
        projected = self.heads[MODALITIES[modality]](pooled_bd)
        return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=-1)


def expert_layers(model: LIMoE) -> dict[int, ExpertLayer]:
    """The expert layers of a model by the index of their block; only a model of one tower has any."""
    return {
        index: block.mlp
        for tower in model.towers
        if isinstance(tower, Encoder)  # not one that an export left out
        for index, block in enumerate(tower.blocks)
        if isinstance(block.mlp, ExpertLayer)
    }
