"""The Transformer block: attention inside each sequence, then an MLP or a mixture of experts over all tokens."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig, RouterConfig
from model.experts import ExpertLayer
from model.mlp import MLP
from model.peers import Peers
from model.routing import Assignment
from model.stream import TEXT, Segment, TokenStream


class Attention(nn.Module):
    """Multi-head self-attention. A token sees the valid tokens of its own image or text and no other.

    text_mask: as ModelConfig's; "causal" leaves pads to come after what they must not be seen by.
    """

    def __init__(self, width: int, heads: int, text_mask: str = "pads") -> None:
        super().__init__()
        self.heads = heads
        self.text_mask = text_mask
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_nd: Tensor, valid_n: Tensor, segments: tuple[Segment, ...]) -> Tensor:
        """`[N, D]` -> `[N, D]`; one fused attention call per segment."""
        sizes = [segment.tokens for segment in segments]
        pieces = []
        for segment, qkv, valid in zip(segments, self.qkv(x_nd).split(sizes), valid_n.split(sizes), strict=True):
            q, k, v = qkv.view(segment.count, segment.length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            mask = None
            text_mask = self.text_mask if segment.modality == TEXT else "none"
            if text_mask == "pads":
                mask = valid.view(segment.count, 1, 1, segment.length)
                mask = mask | ~mask.any(-1, keepdim=True)  # a softmax over nothing is NaN: a row of pads may see its pads
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=text_mask == "causal")
            pieces.append(y.transpose(1, 2).flatten(2).flatten(0, 1))
        return self.out(torch.cat(pieces))


class Block(nn.Module):
    """Pre-LayerNorm block. Takes and returns plain tensors, so that activation checkpointing can wrap it directly.

    It changes only the assignment, which tells a recomputation how the first pass routed.
    """

    def __init__(self, config: ModelConfig, router: RouterConfig, peers: Peers, has_experts: bool) -> None:
        super().__init__()
        width, activation = config.width, config.activation
        self.norm1 = nn.LayerNorm(width, config.norm_eps)
        self.attention = Attention(width, config.heads, config.text_mask)
        self.norm2 = nn.LayerNorm(width, config.norm_eps)
        self.mlp: ExpertLayer | MLP = (
            ExpertLayer(width, config.expert_width, config.routed_experts, router, peers, config.shared_experts, activation)
            if has_experts
            else MLP(width, config.mlp, activation)
        )

    def forward(
        self,
        x_nd: Tensor,
        modality_n: Tensor,
        valid_n: Tensor,
        segments: tuple[Segment, ...],
        assignment: Assignment | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """`[N, D]` -> `[N, D]` and, of an expert layer, the packed routing sums (model.auxiliary).

        assignment: of an expert layer, as in ExpertLayer.forward.
        """
        x_nd = x_nd + self.attention(self.norm1(x_nd), valid_n, segments)
        normed = self.norm2(x_nd)
        if isinstance(self.mlp, MLP):
            return x_nd + self.mlp(normed), None
        y_nd, sums = self.mlp(TokenStream(normed, modality_n, valid_n, segments), assignment)
        return x_nd + y_nd, sums


class Encoder(nn.Module):
    """A tower: blocks and a final LayerNorm. Except for the statistics, nothing in it knows a token's modality."""

    def __init__(self, config: ModelConfig, router: RouterConfig, peers: Peers) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(config, router, peers, has_experts=index in config.expert_layers) for index in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width, config.norm_eps)

    def forward(
        self, stream: TokenStream, assignments: Mapping[int, Assignment] | None = None
    ) -> tuple[TokenStream, dict[int, Tensor], dict[int, Assignment]]:
        """The stream after all blocks; for each expert layer, by index, the packed routing sums and the assignment.

        assignments: those of an earlier pass over the same batch, to repeat; None: new ones.
        """
        sums: dict[int, Tensor] = {}
        used: dict[int, Assignment] = {}
        x_nd = stream.x_nd
        for index, block in enumerate(self.blocks):
            layer = block.mlp
            if isinstance(layer, ExpertLayer):
                used[index] = layer.draw(stream.segments) if assignments is None else assignments[index]
            x_nd, layer_sums = block(x_nd, stream.modality_n, stream.valid_n, stream.segments, used.get(index))
            if layer_sums is not None:
                sums[index] = layer_sums
        return stream.with_x(self.norm(x_nd)), sums, used
