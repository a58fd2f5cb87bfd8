"""Weights of CLIP and SigLIP for our two towers, from the names that open_clip, OpenAI and Hugging Face give them.

https://github.com/mlfoundations/open_clip (OpenAI's own files have its names; SigLIP's image tower has those of timm), and
https://github.com/huggingface/transformers (CLIPModel, SiglipModel).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from model.adapt import TABLE
from model.config import ModelConfig

CLIP, SIGLIP = "CLIP", "SigLIP"
Make = Callable[..., Tensor]


@dataclass(frozen=True)
class Part:
    """What one of our tensors is made of: others, by their names, and how."""

    sources: tuple[str, ...]
    make: Make


@dataclass(frozen=True)
class Translation:
    """How a file's tensors become ours. parts: by our names; unknown: names in the file that have no place in our model."""

    kind: str
    parts: Mapping[str, Part]
    unknown: tuple[str, ...]

    def shapes(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """Of our tensors, from those of the file; of no tensor that the file lacks. Takes no memory."""
        found = {}
        for name, part in self.parts.items():
            if all(source in shapes for source in part.sources):
                like = [torch.empty(tuple(shapes[source]), device="meta") for source in part.sources]
                found[name] = tuple(part.make(*like).shape)
        return found


def _same(value: Tensor) -> Tensor:
    return value


def _turned(value: Tensor) -> Tensor:
    return value.T


def _flat(value: Tensor) -> Tensor:
    return value.flatten(1)


def _without_batch(value: Tensor) -> Tensor:
    return value.flatten(0, -2)


def _joined(*values: Tensor) -> Tensor:
    return torch.cat(values)


def _zeros(like: Tensor) -> Tensor:
    return like.new_zeros(len(like))


def _identity(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)


def _class_token(own: Tensor, position: Tensor) -> Tensor:
    # Its position is always the same, and is added to it: one vector does for both.
    return own.view(-1) + position[0]


def _after_class(position: Tensor) -> Tensor:
    return position[1:]


# (pattern of a name, ours, how it is made, what else it is made of): the whole name must fit, and what is in ours is filled in.
_Rule = tuple[str, str, Make, tuple[str, ...]]

_OF_BLOCK = {
    r"ln_1\.(weight|bias)": r"norm1.{}",
    r"ln_2\.(weight|bias)": r"norm2.{}",
    r"attn\.in_proj_(weight|bias)": r"attention.qkv.{}",
    r"attn\.out_proj\.(weight|bias)": r"attention.out.{}",
    r"mlp\.c_fc\.(weight|bias)": r"mlp.up.{}",
    r"mlp\.c_proj\.(weight|bias)": r"mlp.down.{}",
}
_OF_TIMM_BLOCK = {
    r"norm1\.(weight|bias)": r"norm1.{}",
    r"norm2\.(weight|bias)": r"norm2.{}",
    r"attn\.qkv\.(weight|bias)": r"attention.qkv.{}",
    r"attn\.proj\.(weight|bias)": r"attention.out.{}",
    r"mlp\.fc1\.(weight|bias)": r"mlp.up.{}",
    r"mlp\.fc2\.(weight|bias)": r"mlp.down.{}",
}
_OF_HUB_BLOCK = {
    r"layer_norm1\.(weight|bias)": r"norm1.{}",
    r"layer_norm2\.(weight|bias)": r"norm2.{}",
    r"self_attn\.out_proj\.(weight|bias)": r"attention.out.{}",
    r"mlp\.fc1\.(weight|bias)": r"mlp.up.{}",
    r"mlp\.fc2\.(weight|bias)": r"mlp.down.{}",
}


def _blocks(before: str, tower: int, of_block: Mapping[str, str]) -> list[_Rule]:
    return [(rf"{before}\.(\d+)\.{theirs}", f"towers.{tower}.blocks.{{}}.{ours}", _same, ()) for theirs, ours in of_block.items()]


def _hub_blocks(before: str, tower: int) -> list[_Rule]:
    keys = before.replace("\\", "")
    others = tuple(f"{keys}.{{0}}.self_attn.{name}_proj.{{1}}" for name in "kv")
    ours = f"towers.{tower}.blocks.{{}}.attention.qkv.{{}}"
    return [
        (rf"{before}\.(\d+)\.self_attn\.q_proj\.(weight|bias)", ours, _joined, others),
        *_blocks(before, tower, _OF_HUB_BLOCK),
    ]


_OPEN_CLIP: list[_Rule] = [
    (r"visual\.conv1\.weight", "patches.project.weight", _flat, ()),
    (r"visual\.conv1\.weight", "patches.project.bias", _zeros, ()),
    (r"visual\.class_embedding", "patches.class_token", _class_token, ("visual.positional_embedding",)),
    (r"visual\.positional_embedding", "patches.position", _after_class, ()),
    (r"visual\.ln_pre\.(weight|bias)", "patches.norm.{}", _same, ()),
    *_blocks(r"visual\.transformer\.resblocks", 0, _OF_BLOCK),
    (r"visual\.ln_post\.(weight|bias)", "towers.0.norm.{}", _same, ()),
    (r"visual\.proj", "heads.image.weight", _turned, ()),
]
_OPEN_CLIP_TEXT: list[_Rule] = [
    (r"(?:text\.)?token_embedding\.weight", "tokens.table.weight", _same, ()),
    (r"(?:text\.)?positional_embedding", "tokens.position", _same, ()),
    *_blocks(r"(?:text\.)?transformer\.resblocks", 1, _OF_BLOCK),
    (r"(?:text\.)?ln_final\.(weight|bias)", "towers.1.norm.{}", _same, ()),
    (r"(?:text\.)?text_projection", "heads.text.weight", _turned, ()),
    (r"(?:text\.)?text_projection\.(weight|bias)", "heads.text.{}", _same, ()),
]
_TIMM: list[_Rule] = [
    (r"visual\.trunk\.patch_embed\.proj\.weight", "patches.project.weight", _flat, ()),
    (r"visual\.trunk\.patch_embed\.proj\.bias", "patches.project.bias", _same, ()),
    (r"visual\.trunk\.pos_embed", "patches.position", _without_batch, ()),
    *_blocks(r"visual\.trunk\.blocks", 0, _OF_TIMM_BLOCK),
    (r"visual\.trunk\.norm\.(weight|bias)", "towers.0.norm.{}", _same, ()),
    (r"visual\.trunk\.attn_pool\.latent", "pool.query", torch.flatten, ()),
    (r"visual\.trunk\.attn_pool\.(q|kv|norm)\.(weight|bias)", "pool.{}.{}", _same, ()),
    (r"visual\.trunk\.attn_pool\.proj\.(weight|bias)", "pool.out.{}", _same, ()),
    (r"visual\.trunk\.attn_pool\.mlp\.fc1\.(weight|bias)", "pool.mlp.up.{}", _same, ()),
    (r"visual\.trunk\.attn_pool\.mlp\.fc2\.(weight|bias)", "pool.mlp.down.{}", _same, ()),
    (r"visual\.trunk\.norm\.weight", "heads.image.weight", _identity, ()),  # what is pooled is the embedding
    (r"visual\.trunk\.norm\.bias", "heads.image.bias", torch.zeros_like, ()),
]
_HUB_TEXT: list[_Rule] = [
    (r"text_model\.embeddings\.token_embedding\.weight", "tokens.table.weight", _same, ()),
    (r"text_model\.embeddings\.position_embedding\.weight", "tokens.position", _same, ()),
    *_hub_blocks(r"text_model\.encoder\.layers", 1),
    (r"text_model\.final_layer_norm\.(weight|bias)", "towers.1.norm.{}", _same, ()),
    *_hub_blocks(r"vision_model\.encoder\.layers", 0),
    (r"vision_model\.post_layernorm\.(weight|bias)", "towers.0.norm.{}", _same, ()),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "patches.project.weight", _flat, ()),
]
_POSITION = "vision_model.embeddings.position_embedding.weight"
_HUB_CLIP: list[_Rule] = [
    (r"vision_model\.embeddings\.patch_embedding\.weight", "patches.project.bias", _zeros, ()),
    (r"vision_model\.embeddings\.class_embedding", "patches.class_token", _class_token, (_POSITION,)),
    (re.escape(_POSITION), "patches.position", _after_class, ()),
    (r"vision_model\.pre_layrnorm\.(weight|bias)", "patches.norm.{}", _same, ()),  # so it is spelt there
    (r"visual_projection\.weight", "heads.image.weight", _same, ()),
    (r"text_projection\.weight", "heads.text.weight", _same, ()),
]
_HUB_SIGLIP: list[_Rule] = [
    (r"vision_model\.embeddings\.patch_embedding\.bias", "patches.project.bias", _same, ()),
    (re.escape(_POSITION), "patches.position", _same, ()),
    (r"vision_model\.head\.probe", "pool.query", torch.flatten, ()),
    (r"vision_model\.head\.attention\.in_proj_(weight|bias)", "pool.q.{}", lambda qkv: qkv[: len(qkv) // 3], ()),
    (r"vision_model\.head\.attention\.in_proj_(weight|bias)", "pool.kv.{}", lambda qkv: qkv[len(qkv) // 3 :], ()),
    (r"vision_model\.head\.attention\.out_proj\.(weight|bias)", "pool.out.{}", _same, ()),
    (r"vision_model\.head\.layernorm\.(weight|bias)", "pool.norm.{}", _same, ()),
    (r"vision_model\.head\.mlp\.fc1\.(weight|bias)", "pool.mlp.up.{}", _same, ()),
    (r"vision_model\.head\.mlp\.fc2\.(weight|bias)", "pool.mlp.down.{}", _same, ()),
    (r"vision_model\.post_layernorm\.weight", "heads.image.weight", _identity, ()),  # what is pooled is the embedding
    (r"vision_model\.post_layernorm\.bias", "heads.image.bias", torch.zeros_like, ()),
    (r"text_model\.head\.(weight|bias)", "heads.text.{}", _same, ()),
]
_LOGITS: list[_Rule] = [
    (r"logit_scale", "scale.log_scale", lambda value: value.view(1), ()),
    (r"logit_bias", "bias.logit_bias", lambda value: value.view(1), ()),
]

FAMILIES: Mapping[str, tuple[str, list[_Rule]]] = {
    "visual.conv1.weight": (CLIP, [*_OPEN_CLIP, *_OPEN_CLIP_TEXT, *_LOGITS]),
    "visual.trunk.attn_pool.latent": (SIGLIP, [*_TIMM, *_OPEN_CLIP_TEXT, *_LOGITS]),
    "vision_model.embeddings.class_embedding": (CLIP, [*_HUB_TEXT, *_HUB_CLIP, *_LOGITS]),
    "vision_model.head.probe": (SIGLIP, [*_HUB_TEXT, *_HUB_SIGLIP, *_LOGITS]),
}
"""What is in a file, and how it is translated, by a name that only such a file has."""

ASIDES = re.compile(r"input_resolution|context_length|vocab_size|(.*\.)?attn_mask|.*position_ids")
"""What files have besides weights."""


def translate(names: Iterable[str], pad: int) -> Translation | None:
    """How the tensors of a file become ours, by the names in it; None for a file of another kind.

    pad: the token id that the model's texts were padded with. Our own is 0, and no token: all others move up by one.
    """
    present = set(names)
    family = next((FAMILIES[mark] for mark in FAMILIES if mark in present), None)
    if family is None:
        return None
    kind, rules = family
    parts: dict[str, Part] = {}
    used: set[str] = set()
    for name in sorted(present):
        for pattern, ours, make, others in rules:
            if found := re.fullmatch(pattern, name):
                filled = tuple(other.format(*found.groups()) for other in others)
                parts[ours.format(*found.groups())] = Part((name, *filled), make)
                used |= {name, *filled}
    if table := parts.get(TABLE):
        parts[TABLE] = replace(table, make=lambda value: torch.cat([value[pad : pad + 1], value]))
    unknown = tuple(sorted(name for name in present - used if not ASIDES.fullmatch(name)))
    return Translation(kind, parts, unknown)


def sizes_of(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The fields of ModelConfig that the shapes of our tensors determine, and what models of this kind have in common.

    What no shape shows is not among them: heads, and for CLIP the activation.
    """
    width, kernel = shapes["patches.project.weight"]
    patch = round((kernel / 3) ** 0.5)
    sizes: dict[str, Any] = {
        "towers": 2,
        "width": width,
        "mlp": shapes["towers.0.blocks.0.mlp.up.weight"][0],
        "layers": _blocks_in(shapes, 0),
        "text_width": shapes["tokens.table.weight"][1],
        "text_mlp": shapes["towers.1.blocks.0.mlp.up.weight"][0],
        "text_layers": _blocks_in(shapes, 1),
        "expert_layers": [],
        "image_size": patch * round(shapes["patches.position"][0] ** 0.5),
        "patch": patch,
        "text_length": shapes["tokens.position"][0],
        "vocabulary": shapes["tokens.table.weight"][0],
        "embedding": shapes["heads.text.weight"][0],
        "image_norm": "patches.norm.weight" in shapes,
        "head_bias": "heads.text.bias" in shapes,
        "loss": "sigmoid" if "bias.logit_bias" in shapes else "softmax",
    }
    if kind == SIGLIP:
        return sizes | {"pool": "attention", "text_mask": "none", "norm_eps": 1e-6}
    return sizes | {"pool": "token", "text_mask": "causal", "norm_eps": 1e-5}


def _blocks_in(shapes: Iterable[str], tower: int) -> int:
    return len({name.split(".")[3] for name in shapes if name.startswith(f"towers.{tower}.blocks.")})


def as_asked(sizes: Mapping[str, Any], asked: ModelConfig) -> dict[str, Any]:
    """Sizes of a text tower in the words of a configuration: null where they are the image tower's, unless it spells them out."""
    said = dict(sizes)
    for name in ("text_width", "text_mlp", "text_heads", "text_layers", "text_activation"):
        own = name.removeprefix("text_")
        if name in said and getattr(asked, name) != said[name] and said[name] == said.get(own, getattr(asked, own)):
            said[name] = None
    return said
