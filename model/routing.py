"""Which expert takes which token: logits, gates, capacity and priority (LIMoE, section 2; V-MoE, section 3 and appendix C)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Gates:
    """The router's scores for each token.

    logits_ne: without noise, float32 [N, E]; noisy_ne: the logits that route; expert_nk: the K experts with the largest noisy
    gates (plus a bias, if there is one), largest first; gate_nk: their noisy gates, without the bias.
    """

    logits_ne: Tensor
    noisy_ne: Tensor
    gate_nk: Tensor
    expert_nk: Tensor


@dataclass(frozen=True)
class Slots:
    """Who got a slot; see model.dispatch for the two index tensors. kept_nk: bool [N, K]."""

    choice_of_slot: Tensor
    slot_of_choice: Tensor

    @property
    def kept_nk(self) -> Tensor:
        return self.slot_of_choice >= 0


@dataclass
class Assignment:
    """How one expert layer routes one batch: the noise it gets, and the decisions of the first pass over the batch.

    Every later pass over the same batch that gets the same object repeats these decisions: it may compute the same logits by
    other kernels, and where two are near, their last bits would send a token elsewhere than in the pass whose gradient is wanted.
    So activation checkpointing, and whoever runs a batch twice, hands the object on.

    noise_ne: standard normal [N, E], in the dtype of the logits; None: none, as in evaluation. expert_nk as in Gates, and slots:
    None before the first pass.
    """

    noise_ne: Tensor | None = None
    expert_nk: Tensor | None = None
    slots: Slots | None = None

    def decisions(self) -> "Decisions":
        """What the first pass decided, without the noise. Raises ValueError before it."""
        if self.expert_nk is None or self.slots is None:
            raise ValueError("nothing is decided before the first pass")
        expert_nk, choice_of_slot = self.expert_nk, self.slots.choice_of_slot
        # Experts that choose ask every token alike: a row broadcast to all, of which one is enough.
        rows = expert_nk[:1] if expert_nk.stride(0) == 0 else expert_nk
        return Decisions(
            rows.to(torch.int16),
            choice_of_slot.to(torch.int32 if expert_nk.numel() < 2**31 else torch.int64),
            tokens=len(expert_nk),
        )


@dataclass(frozen=True)
class Decisions:
    """The decisions of an Assignment in few bytes, to keep until a later pass: 2 for each choice of a token, and 4 for each slot.

    expert_nk: as in Gates, int16, or one row [1, K] that is all tokens' (expert choice); choice_of_slot: as in Slots, int32 where
    that holds all choices. tokens: N.
    """

    expert_nk: Tensor
    choice_of_slot: Tensor
    tokens: int

    def assignment(self, noise_ne: Tensor | None) -> Assignment:
        """The assignment that decided so, for another pass over the batch with the same noise."""
        expert_nk = self.expert_nk.to(torch.int64).expand(self.tokens, -1)
        return Assignment(noise_ne, expert_nk, _slots(self.choice_of_slot.to(torch.int64), self.tokens, expert_nk.shape[1]))


def _slots(choice_of_slot: Tensor, tokens: int, top_k: int) -> Slots:
    """The slots of all choices, from the choices of all slots: `[E, C]` -> `[N, K]`."""
    choices = tokens * top_k
    target = torch.where(choice_of_slot < 0, choices, choice_of_slot).flatten()  # empty slots share a place that is cut off
    slot_of_choice = target.new_full((choices + 1,), -1).scatter_(0, target, torch.arange(len(target), device=target.device))
    return Slots(choice_of_slot, slot_of_choice[:choices].view(tokens, top_k))


def capacity(tokens: int, experts: int, top_k: int, factor: float) -> int:
    """Slots of one expert's buffer for one routing group, `ceil(factor * K * n / E)`, at least 1 and at most n."""
    # Rounded first: 1.1 * 100 / 10 is a little more than 11 in floating point, and must not become 12.
    return min(tokens, max(1, math.ceil(round(factor * top_k * tokens / experts, 6))))


def gate_scores(logits_ne: Tensor, kind: str) -> Tensor:
    """What the gates, normalised over the experts, are the softmax of: sigmoids are so of their logarithms."""
    return F.logsigmoid(logits_ne) if kind == "sigmoid" else logits_ne


def all_experts(tokens: int, experts: int, device: torch.device) -> Tensor:
    """The `expert_nk` of expert choice, `[N, E]`: every token asks every expert, each of which takes the largest gates."""
    return torch.arange(experts, device=device).expand(tokens, experts)


def choose_experts(
    logits_ne: Tensor,
    top_k: int,
    noise_ne: Tensor | None = None,
    expert_nk: Tensor | None = None,
    bias_ne: Tensor | None = None,
    kind: str = "softmax",
    kept_e: Tensor | None = None,
) -> Gates:
    """Gates of the noisy logits, then the K experts with the largest, ties to the lower index.

    kind: softmax over the experts, or sigmoid of each logit.

    The gate value is the combine weight (K=1: output = p_e * expert_e(x)), if it is not normalised afterwards.

    noise_ne: what is added to the logits that route; expert_nk: experts that are chosen already, whose gates alone are wanted;
    bias_ne: what is added to the gates (broadcast to [N, E]) for the choice alone; kept_e: bool [E], the experts to choose among,
    at least K; None: all.
    """
    noisy_ne = logits_ne if noise_ne is None else logits_ne + noise_ne
    gates_ne = noisy_ne.sigmoid() if kind == "sigmoid" else noisy_ne.softmax(-1)
    if expert_nk is None:
        # By logits, as gates may underflow to ties; a stable sort and max, unlike topk, have a defined order among equal ones.
        wanted_ne = noisy_ne.detach() if bias_ne is None else gates_ne.detach() + bias_ne
        if kept_e is not None:
            wanted_ne = wanted_ne.masked_fill(~kept_e, -torch.inf)
        if top_k == 1:
            expert_nk = wanted_ne.max(dim=-1, keepdim=True).indices
        else:
            expert_nk = wanted_ne.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    return Gates(logits_ne, noisy_ne, gates_ne.gather(1, expert_nk), expert_nk)


def normalised_gates(gates: Gates, kept_nk: Tensor, kind: str = "softmax") -> Tensor:
    """The gates of the choices that got a slot, divided by their sum: `[N, K]`, rows that add up to 1, zeros where nothing did.

    kept_nk: as in Slots. Whatever K is, copies of one MLP then give the MLP's own output (Komatsuzaki et al. 2022, "Sparse
    Upcycling", arXiv 2212.05055, section 3.1). With one choice a token, the gate is the constant 1, through which no gradient
    reaches the router.
    """
    logits_nk = gates.noisy_ne.gather(1, gates.expert_nk)
    # From logarithms: gates that underflow still have a ratio. Not -inf, which would make NaN of a row without any slot.
    shares_nk = gate_scores(logits_nk, kind).masked_fill(~kept_nk, torch.finfo(logits_nk.dtype).min).softmax(-1)
    return shares_nk.masked_fill(~kept_nk, 0)


_KEYS = 2**32
"""The keys of `_descending_keys` are less."""


def _descending_keys(gate: Tensor) -> Tensor:
    """Keys from 0 to 2^32 - 1 that ascend as the gates (at least 0) descend, equal for equal gates: `[n]` -> int64 `[n]`."""
    if gate.dtype == torch.float32:  # the bits of numbers that are not negative are in the numbers' order
        return torch.iinfo(torch.int32).max - gate.view(torch.int32).to(torch.int64)
    descending = torch.sort(gate, descending=True, stable=True)
    steps = torch.zeros_like(descending.indices)
    steps[1:] = descending.values[1:] != descending.values[:-1]
    return torch.empty_like(steps).scatter_(0, descending.indices, steps.cumsum(0))


@torch.no_grad()
def assign_slots(
    gates: Gates, valid_n: Tensor, group_n: Tensor | None, groups: int, experts: int, slots: int, priority: str
) -> Slots:
    """Give each expert's `slots` places (of each group) to its claimants.

    priority "gate": the largest gates first, each choice by its own (Batch Priority Routing); "token": all choices of a token by
    its largest gate, as V-MoE does (the same for K=1); "order": in the order of the stream. All first choices go before all
    second ones. Pads claim nothing. group_n: int64 [N], each token's routing group; None: all in one. Buffers come as
    `[E, groups * slots]`, a group's places side by side. Shapes depend on nothing but the arguments.
    """
    n, top_k = gates.expert_nk.shape
    choices = n * top_k
    device = gates.expert_nk.device
    # Choice-major order (first choices of all tokens, then second ones): a stable sort keeps it among equal keys.
    expert = gates.expert_nk.T.reshape(-1)
    buffer = expert if group_n is None else expert * groups + group_n.repeat(top_k)
    buffers = experts * groups
    buffer = torch.where(valid_n.repeat(top_k), buffer, buffers)  # pads sort behind every buffer
    if priority == "order":
        sorted_buffer, order = torch.sort(buffer, stable=True)
    else:
        rank_nk = gates.gate_nk if priority == "gate" else gates.gate_nk.amax(1, keepdim=True).expand(n, top_k)
        # One sort of whole numbers by (buffer, which choice, gate).
        claim = buffer * top_k + torch.arange(top_k, device=device).repeat_interleave(n)
        sorted_key, order = torch.sort(claim * _KEYS + _descending_keys(rank_nk.T.reshape(-1)), stable=True)
        sorted_buffer = sorted_key // (_KEYS * top_k)

    # In `order` the claimants of a buffer are adjacent, best first; their place is the distance from the first of them.
    starts = torch.searchsorted(sorted_buffer, torch.arange(buffers + 1, device=device))
    place = torch.arange(choices, device=device) - starts[sorted_buffer]
    kept = (place < slots) & (sorted_buffer < buffers)
    slot = torch.where(kept, sorted_buffer * slots + place, -1)

    choice = order if top_k == 1 else order % n * top_k + order // n  # back to `token * K + choice`
    slot_of_choice = torch.empty(choices, dtype=torch.int64, device=device).scatter_(0, choice, slot)
    # The claimant at each place of each buffer, read straight from the sorted list: again a gather.
    position = starts[:-1, None] + torch.arange(slots, device=device)
    taken = position < starts[1:, None]
    choice_of_slot = torch.where(taken, choice[position.clamp(max=choices - 1)], -1)
    return Slots(choice_of_slot.view(experts, groups * slots), slot_of_choice.view(n, top_k))


def largest_load(gates: Gates, valid_n: Tensor, experts: int) -> Tensor:
    """The number of choices for the most popular expert, int64 scalar."""
    counts = torch.zeros(experts, dtype=torch.int64, device=valid_n.device)
    counts.index_add_(0, gates.expert_nk.reshape(-1), valid_n.to(torch.int64).repeat_interleave(gates.expert_nk.shape[1]))
    return counts.max()
