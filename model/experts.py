"""The expert layer: route -> dispatch -> exchange -> experts -> exchange -> combine."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.auxiliary import routing_sums
from model.config import RouterConfig
from model.dispatch import combine, dispatch
from model.mlp import ACTIVATIONS, MLP
from model.peers import Peers
from model.precision import Float32Module
from model.regions import region
from model.routing import (
    Assignment,
    Gates,
    Slots,
    all_experts,
    assign_slots,
    capacity,
    choose_experts,
    largest_load,
    normalised_gates,
)
from model.stream import MODALITIES, Segment, TokenStream

BIAS_ROWS = {"none": 0, "shared": 1, "modality": len(MODALITIES)}
"""Rows of the loss-free bias by its kind."""


class Experts(nn.Module):
    """This process's experts: MLPs of one shape, their weights stacked so that one batched product serves all."""

    def __init__(self, local_experts: int, width: int, hidden: int, activation: str = "gelu") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.up = nn.Parameter(torch.empty(local_experts, width, hidden))
        self.up_bias = nn.Parameter(torch.empty(local_experts, 1, hidden))
        self.down = nn.Parameter(torch.empty(local_experts, hidden, width))
        self.down_bias = nn.Parameter(torch.empty(local_experts, 1, width))

    def forward(self, x_ecd: Tensor) -> Tensor:
        """`[e, C, D]` -> `[e, C, D]`, row e of the buffers through expert e."""
        hidden = self.activation(torch.baddbmm(self.up_bias, x_ecd, self.up))
        return torch.baddbmm(self.down_bias, hidden, self.down)


class Router(Float32Module):
    """Linear map to one logit per expert, no additive term, computed in float32 whatever the model's precision.

    bias: the loss-free one (model.balance), `[1, E]` for all tokens or `[M, E]` by modality, None without. It is no parameter:
    no gradient reaches it, and the logits do not contain it.
    """

    bias: Tensor | None

    def __init__(self, width: int, experts: int, bias_rows: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, width))
        self.register_buffer("bias", torch.zeros(bias_rows, experts) if bias_rows else None)

    def forward(self, x_nd: Tensor) -> Tensor:
        """`[N, D]` -> logits `[N, E]` in float32 (float64 stays)."""
        dtype = torch.promote_types(x_nd.dtype, torch.float32)
        with torch.autocast(x_nd.device.type, enabled=False):
            return F.linear(x_nd.to(dtype), self.weight.to(dtype))

    def bias_of(self, modality_n: Tensor) -> Tensor | None:
        """What each token's choice is biased by, `[N, E]` or what broadcasts to it; None without a bias."""
        if self.bias is None or len(self.bias) == 1:
            return self.bias
        return self.bias[modality_n]


class ExpertLayer(nn.Module):
    """A sparse mixture of MLPs in place of a block's MLP.

    Tokens choose their experts, or experts their tokens (Zhou et al. 2022, "Mixture-of-Experts with Expert Choice Routing", arXiv
    2202.09368): then every token asks every expert, and each expert's slots go to the largest gates. In evaluation each pair, or
    each image or text that is embedded alone, is then a routing group of its own, so that an embedding does not depend on its
    batch.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int,
        config: RouterConfig,
        peers: Peers,
        shared: int = 0,
        activation: str = "gelu",
    ) -> None:
        """shared: experts that every token passes, in one MLP of as many times the hidden width."""
        super().__init__()
        self.num_experts = experts
        self.config = config
        self.peers = peers
        self.router = Router(width, experts, BIAS_ROWS[config.bias.kind])
        self.experts = Experts(experts // peers.expert_parallel, width, hidden, activation)
        self.shared = MLP(width, shared * hidden, activation) if shared else None
        # Of a trimmed layer: each expert's row in the stacked weights, int64 [E], -1 for one that was left out.
        self.row_of_expert: Tensor | None
        self.register_buffer("row_of_expert", None, persistent=False)

    def keep(self, kept: Sequence[int]) -> None:
        """Leave out the weights of all experts but these, in place; they keep their numbers, and tokens choose among them.

        The router keeps its rows for all: a token whose expert was kept gets the same gate as before, to the last bit, and one
        whose expert was left out goes to the best of those that were kept, with the gate it always had for that one.
        Raises ValueError for numbers that are not ascending experts of this layer, or too few for a token's choices, and where
        experts choose their tokens: there, each of them serves every image and text.
        """
        if self._by_experts:
            raise ValueError("experts that choose their tokens all serve every image and text: none can be left out")
        if sorted(set(kept)) != list(kept) or not set(kept) <= set(range(self.num_experts)):
            raise ValueError(f"{list(kept)} are not different experts in ascending order, from 0 to {self.num_experts - 1}")
        if len(kept) < self.config.top_k:
            raise ValueError(f"{len(kept)} kept experts are fewer than the {self.config.top_k} that a token chooses")
        rows = torch.tensor(list(kept))
        row_of_expert = torch.full((self.num_experts,), -1)
        row_of_expert[rows] = torch.arange(len(rows))
        for name, weight in list(self.experts.named_parameters(recurse=False)):
            left = weight.detach().index_select(0, rows.to(weight.device))
            setattr(self.experts, name, nn.Parameter(left, requires_grad=weight.requires_grad))
        device = self.experts.up.device
        self.row_of_expert = row_of_expert if device.type == "meta" else row_of_expert.to(device)

    def draw(self, segments: Sequence[Segment], generators: Sequence[torch.Generator | None] = (None,)) -> Assignment:
        """A new assignment for a batch of these segments, with noise in training unless the router is frozen.

        generators: one for each routing group, None for torch's own. The tokens of a group, its images' before its texts', draw
        one after another: the same numbers, whatever else is in the batch.

        The noise is drawn here, not where it is used: a compiled region would draw other numbers from the same seed.
        """
        weight = self.router.weight
        if not self.training or self.config.noise == 0 or not weight.requires_grad:
            return Assignment()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        group_size = -(-max(segment.count for segment in segments) // len(generators))
        by_segment: list[list[Tensor]] = [[] for _ in segments]
        for group, generator in enumerate(generators):
            tokens = [s.length * min(group_size, max(0, s.count - group * group_size)) for s in segments]
            noise_ne = torch.randn(sum(tokens), self.num_experts, dtype=dtype, device=weight.device, generator=generator)
            for of_segment, part_ne in zip(by_segment, noise_ne.split(tokens), strict=True):
                of_segment.append(part_ne)
        return Assignment(torch.cat([part_ne for of_segment in by_segment for part_ne in of_segment]))

    def forward(self, stream: TokenStream, assignment: Assignment | None = None) -> tuple[Tensor, Tensor]:
        """A stream of N tokens -> outputs `[N, D]` and packed routing sums (model.auxiliary).

        A token that no expert took gets zeros, or the output of the shared experts alone.

        assignment: filled by the first pass over a batch and followed by later ones; None: a new one.
        """
        assignment = assignment or self.draw(stream.segments)
        config = self.config
        with region("route"):
            gates = self._choose(stream, assignment)
            slots = assignment.slots or self._assign(self._by_rows(gates), stream)
            assignment.expert_nk, assignment.slots = gates.expert_nk, slots
        with region("dispatch"):
            buffers = dispatch(stream.x_nd, slots.choice_of_slot, slots.slot_of_choice)
        with region("exchange"):
            buffers = self.peers.to_experts(buffers)
        with region("experts"):
            buffers = self.experts(buffers)
        with region("exchange"):
            buffers = self.peers.from_experts(buffers)
        with region("combine"):
            gate_nk = normalised_gates(gates, slots.kept_nk, config.gates) if config.normalise_gates else gates.gate_nk
            y_nd = combine(buffers, gate_nk, slots.choice_of_slot, slots.slot_of_choice)
        if self.shared is not None:
            y_nd = y_nd + self.shared(stream.x_nd)
        sigma = (config.noise or 1.0) / self.num_experts
        with region("statistics"):
            sums = routing_sums(gates, slots.kept_nk, stream, sigma, config.gates, self._by_experts, bool(config.aux.load))
        return y_nd, sums

    @property
    def _by_experts(self) -> bool:
        return self.config.choice == "expert"

    def _choose(self, stream: TokenStream, assignment: Assignment) -> Gates:
        config, expert_nk = self.config, assignment.expert_nk
        if self._by_experts:
            expert_nk = all_experts(len(stream.x_nd), self.num_experts, stream.x_nd.device)
        noise_ne = None if assignment.noise_ne is None else config.noise / self.num_experts * assignment.noise_ne
        bias_ne = self.router.bias_of(stream.modality_n)
        kept_e = None if self.row_of_expert is None else self.row_of_expert >= 0
        return choose_experts(self.router(stream.x_nd), config.top_k, noise_ne, expert_nk, bias_ne, config.gates, kept_e)

    def _by_rows(self, gates: Gates) -> Gates:
        """The gates with the experts numbered as the rows of their weights, and so of the buffers."""
        return gates if self.row_of_expert is None else replace(gates, expert_nk=self.row_of_expert[gates.expert_nk])

    @property
    def _buffer_count(self) -> int:
        """Experts, of all peers, that have a buffer."""
        return self.num_experts if self.row_of_expert is None else len(self.experts.up)

    def _assign(self, gates: Gates, stream: TokenStream) -> Slots:
        config = self.config
        factor = config.capacity_factor if self.training else config.eval_capacity_factor
        group_size, priority = config.group_size, config.priority
        if self._by_experts:
            priority = "gate"
            if not self.training:
                factor, group_size = factor or config.capacity_factor, 1
        if factor is None:
            return self._assign_all(gates, stream)
        group_n, groups, tokens = _routing_groups(stream, group_size)
        slots = capacity(tokens, self.num_experts, config.top_k, factor)
        return assign_slots(gates, stream.valid_n, group_n, groups, self._buffer_count, slots, priority)

    def _assign_all(self, gates: Gates, stream: TokenStream) -> Slots:
        """Drop nothing: buffers as large as the largest load among the peers. Reads it on the host, so only for evaluation."""
        load = self.peers.max_over_experts(largest_load(gates, stream.valid_n, self._buffer_count))
        return assign_slots(gates, stream.valid_n, None, 1, self._buffer_count, max(1, int(load.item())), self.config.priority)


def _routing_groups(stream: TokenStream, group_size: int | None) -> tuple[Tensor | None, int, int]:
    """Each token's routing group `[N]`, the number of groups, and the tokens of a full one.

    A group is `group_size` sequences of every modality, the last one what is left. None: all tokens are one group.
    """
    count = max(segment.count for segment in stream.segments)
    if group_size is None or group_size >= count:
        return None, 1, stream.x_nd.shape[0]
    pieces = [
        (torch.arange(s.count, device=stream.valid_n.device) // group_size).repeat_interleave(s.length) for s in stream.segments
    ]
    return torch.cat(pieces), -(-count // group_size), group_size * sum(segment.length for segment in stream.segments)
