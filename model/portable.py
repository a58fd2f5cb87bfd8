"""The encoders of images and texts as programs for other software: torch.export and, from there, ONNX.

They compute what the model does in evaluation, where no token is dropped, for any batch. Only the expert layers are written anew.
Their buffers are as long as the busiest expert's load in the batch, as in PyTorch, so that an unbalanced batch costs memory and
time but no token. A token's slot comes from a cumulative sum where training sorts: ONNX has no search in sorted values.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from model.block import Encoder
from model.experts import ExpertLayer
from model.limoe import LIMoE
from model.routing import Gates, all_experts, capacity, choose_experts, normalised_gates
from model.stream import MODALITIES, TokenStream
from model.trim import Trim, has, trim

INPUTS = {"image": "pixel_values", "text": "input_ids"}
OUTPUTS = {"image": "image_embeds", "text": "text_embeds"}
"""Names of what a program takes and gives, as transformers' CLIP calls them, by modality."""


class ImageEncoder(nn.Module):
    """Normalised images float32 `[B, 3, H, W]` to unit vectors float32 `[B, embedding]`."""

    def __init__(self, model: LIMoE) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """See the class."""
        return self.model(images=pixel_values).images


class TextEncoder(nn.Module):
    """Token ids int64 `[B, text_length]`, 0 for padding, to unit vectors float32 `[B, embedding]`."""

    def __init__(self, model: LIMoE) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        """See the class."""
        return self.model(texts=input_ids).texts


def portable_encoder(model: LIMoE, modality: str) -> ImageEncoder | TextEncoder:
    """The encoder of one modality, with the weights of the model, which stays as it is."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    if all(has(copied, name) for name in MODALITIES):
        trim(copied, Trim(modality))
    for tower in copied.towers:
        if isinstance(tower, Encoder):  # not one that was left out
            for block in tower.blocks:
                if isinstance(block.mlp, ExpertLayer):
                    block.mlp = PortableExperts(block.mlp)
    return (ImageEncoder if modality == "image" else TextEncoder)(copied.eval().requires_grad_(False))


class PortableExperts(nn.Module):
    """An expert layer in evaluation, in operators that ONNX has, and without the statistics."""

    def __init__(self, layer: ExpertLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, stream: TokenStream, assignment: object = None) -> tuple[Tensor, None]:
        """A stream of N tokens -> outputs `[N, D]`, and no routing sums."""
        layer = self.layer
        gates = self._gates(stream)
        expert_nk = gates.expert_nk if layer.row_of_expert is None else layer.row_of_expert[gates.expert_nk]
        if layer.config.choice == "expert":
            choice_of_slot, slot_nk = self._slots_of_experts(gates, stream)
        else:
            choice_of_slot, slot_nk = self._slots_of_tokens(expert_nk, stream.valid_n)
        n, k = slot_nk.shape
        kept_nk = slot_nk >= 0
        # Empty slots hold some token, whose output nobody asks for.
        token_of_slot = choice_of_slot.clamp(min=0) // k
        buffers = layer.experts(stream.x_nd.index_select(0, token_of_slot.flatten()).view(*choice_of_slot.shape, -1))
        gate_nk = normalised_gates(gates, kept_nk, layer.config.gates) if layer.config.normalise_gates else gates.gate_nk
        y_nkd = buffers.flatten(0, 1).index_select(0, slot_nk.clamp(min=0).flatten()).view(n, k, -1)
        gate_nk = gate_nk.masked_fill(~kept_nk, 0).to(y_nkd.dtype)
        y_nd = (y_nkd * gate_nk.unsqueeze(-1)).sum(1)
        return y_nd if layer.shared is None else y_nd + layer.shared(stream.x_nd), None

    def _gates(self, stream: TokenStream) -> Gates:
        layer, config = self.layer, self.layer.config
        everyone = all_experts(stream.x_nd.shape[0], layer.num_experts, stream.x_nd.device) if config.choice == "expert" else None
        kept_e = None if layer.row_of_expert is None else layer.row_of_expert >= 0
        bias_ne = layer.router.bias_of(stream.modality_n)
        return choose_experts(layer.router(stream.x_nd), config.top_k, None, everyone, bias_ne, config.gates, kept_e)

    def _slots_of_tokens(self, expert_nk: Tensor, valid_n: Tensor) -> tuple[Tensor, Tensor]:
        """`choice_of_slot [E, C]` and `slot_of_choice [N, K]` (model.dispatch): every choice of a valid token gets a slot."""
        n, k = expert_nk.shape
        experts = len(self.layer.experts.up)
        valid_c = valid_n.unsqueeze(1).expand(n, k).reshape(-1)
        claims_ce = ((expert_nk.reshape(-1, 1) == torch.arange(experts, device=expert_nk.device)) & valid_c.unsqueeze(1)).long()
        place_c = (claims_ce.cumsum(0) * claims_ce).sum(1) - 1
        slots: Any = claims_ce.sum(0).max().clamp(min=1).item()
        torch._check(slots >= 1)
        spare = experts * slots  # the place of all that claim nothing, cut off again
        slot_c = torch.where(valid_c, expert_nk.reshape(-1) * slots + place_c, spare)
        choice_of_slot = torch.zeros(spare + 1, dtype=torch.int64, device=slot_c.device)
        choice_of_slot = choice_of_slot.scatter(0, slot_c, torch.arange(n * k, device=slot_c.device))[:spare]
        return choice_of_slot.view(experts, slots), torch.where(valid_c, slot_c, -1).view(n, k)

    def _slots_of_experts(self, gates: Gates, stream: TokenStream) -> tuple[Tensor, Tensor]:
        """The same where each expert takes its best tokens of each image or text: the N tokens are B sequences of L."""
        (segment,) = stream.segments
        layer, config = self.layer, self.layer.config
        b, length, experts = segment.count, segment.length, layer.num_experts
        slots = capacity(length, experts, config.top_k, config.eval_capacity_factor or config.capacity_factor)
        valid_b1l = stream.valid_n.view(b, 1, length)
        gate_bel = gates.gate_nk.view(b, length, experts).transpose(1, 2).masked_fill(~valid_b1l, -1)
        best = gate_bel.sort(dim=-1, descending=True, stable=True)
        token_bec, taken_bec = best.indices[..., :slots], best.values[..., :slots] >= 0
        # Slots are numbered by expert, then by sequence: e * (B * C) + b * C + c.
        first_b = torch.arange(b, device=token_bec.device) * slots
        first_e = torch.arange(experts, device=token_bec.device) * (b * slots)
        slot_bec = first_e.view(1, -1, 1) + first_b.view(-1, 1, 1) + torch.arange(slots, device=token_bec.device)
        slot_bel = torch.full_like(gate_bel, -1, dtype=torch.int64).scatter(2, token_bec, torch.where(taken_bec, slot_bec, -1))
        row_b = torch.arange(b, device=token_bec.device).view(-1, 1, 1) * length
        choice_bec = (row_b + token_bec) * experts + torch.arange(experts, device=token_bec.device).view(1, -1, 1)
        choice_of_slot = choice_bec.transpose(0, 1).reshape(experts, b * slots)
        return choice_of_slot, slot_bel.transpose(1, 2).reshape(b * length, experts)
