"""Files of weights from elsewhere that a run can start from: CLIP and SigLIP, as open_clip, OpenAI and Hugging Face keep them."""

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.config import ModelConfig, RouterConfig
from model.hub_tokenizer import canonical
from model.limoe import LIMoE
from model.outside import CLIP, SIGLIP, Translation, as_asked, sizes_of, translate
from model.peers import Peers
from trainer.engine.state import named_tensors
from trainer.errors import UserError, reason

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
IN_FOLDERS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
"""What a folder as on the Hub may have, what is read first being first."""
SETTINGS, SETTINGS_OF_HUB, TOKENIZER = "open_clip_config.json", "config.json", "tokenizer.json"
SHOWN = 3
LFS_POINTER = b"version https://git-lfs"

CLIP_PIXELS = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
"""What CLIP's images are normalised with, by OpenAI and, unless its file says otherwise, by open_clip."""
SIGLIP_PIXELS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}

SIGLIP_PIECES, SIGLIP_END = 32_000, 1
"""The first SigLIP's tokenizer, of so many pieces, pads texts with its end-of-text token."""

PLAIN: dict[str, dict[str, tuple[Any, ...]]] = {
    "vision_cfg": {
        "pool_type": ("tok",),
        "pos_embed_type": ("learnable",),
        "timm_pool": ("map",),
        "timm_proj": ("none", "", None),
    },
    "text_cfg": {"pool_type": ("argmax", "last"), "proj_type": ("linear",)},
}
"""Settings of open_clip of which our model has these alone; absent, a setting is one of them."""
SWITCHES = ("attentional_pool", "no_ln_pre", "final_ln_after_pool", "embed_cls", "qk_norm", "scaled_cosine_attn", "hf_model_name")
"""Settings that it does not have at all."""


@dataclass(frozen=True)
class Outside:
    """A file of weights. source: the model that they are of, in our words; what the file does not say is as the run has it.

    kind: CLIP or SIGLIP; pixels: mean and std, as of DataConfig; assumed: the fields of the model that the file does not say;
    tokenizer: the file with the model's own tokenizer, if there is one; canonical: whether texts lose their punctuation before;
    pad: the token id that texts were padded with.
    """

    path: Path
    kind: str
    source: ModelConfig
    pixels: Mapping[str, list[float]]
    assumed: tuple[str, ...]
    tokenizer: Path | None
    canonical: bool
    pad: int

    tokenizer_name = TOKENIZER

    def tensors(self, peers: Peers | None = None) -> Iterator[tuple[str, Tensor]]:
        """Ours, one after another, in float32. Raises UserError where the file cannot be read."""
        file = _open(self.path)
        for name, part in _translation(self.path, file, self.pad).parts.items():
            yield name, part.make(*(file.get(source).float() for source in part.sources)).contiguous()

    def tokenizer_model(self) -> bytes | None:
        """The tokenizer of the model as `model.tokenizer.Tokenizer` takes it, None if the folder has none."""
        if self.tokenizer is None:
            return None
        try:
            model = self.tokenizer.read_bytes()
        except OSError as problem:
            raise UserError(
                f"{self.tokenizer} cannot be read ({reason(problem)}): copy it again, or set data.tokenizer"
            ) from None
        return canonical(model) if self.canonical else model


def find_outside(where: Path) -> Path | None:
    """The file of weights that `where` is, or that is in it; None for anything else."""
    if where.is_file():
        return where
    found = [where / name for name in IN_FOLDERS if (where / name).is_file()]
    of_hub = any((where / name).is_file() for name in (SETTINGS, SETTINGS_OF_HUB))
    return found[0] if found and (of_hub or found[0].name.startswith("open_clip")) else None


def read_outside(path: Path, model: ModelConfig, router: RouterConfig) -> Outside:
    """What a file of weights is, without its values. model: that of the run, for what the file does not say.

    Raises UserError for a file of anything else, and for a model that ours cannot be.
    """
    file, settings = _open(path), _json(path.parent / SETTINGS)
    pad = _pad(path.parent, file)
    translation = _translation(path, file, pad)
    shapes = translation.shapes(file.shapes)
    try:
        facts = sizes_of(translation.kind, shapes)
    except KeyError as missing:
        raise UserError(f"{path} has no {missing.args[0]} of a {translation.kind}: it is not a whole model") from None
    said = _facts_of(path, settings, facts["width"], facts["text_width"])
    unsaid = {"heads", "text_heads", "activation"} - said.keys()
    # Heads of a width of 64 are the rule, but no shape shows them: as the run has them.
    source = replace(model, **as_asked(facts | said, model), name=path.stem)
    _check_whole(path, translation.kind, source, router, shapes)
    pixels = settings.get("preprocess_cfg", {})
    usual = CLIP_PIXELS if translation.kind == CLIP else SIGLIP_PIXELS
    return Outside(
        path=path,
        kind=translation.kind,
        source=source,
        pixels={name: list(pixels.get(name, usual[name])) for name in usual},
        assumed=tuple(sorted(unsaid)),
        canonical=_reads_canonically(settings, translation.kind),
        tokenizer=path.parent / TOKENIZER if (path.parent / TOKENIZER).is_file() else None,
        pad=pad,
    )


def _check_whole(path: Path, kind: str, source: ModelConfig, router: RouterConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UserError unless the file has every tensor of the model that it seems to be, in its shape."""
    if source.width % source.heads or source.text_tower.width % source.text_tower.heads:
        return  # whose heads the run has wrong: the check of what is asked says so
    wanted = {name: tuple(value.shape) for name, value in named_tensors(LIMoE.without_values(source, router)).items()}
    different = sorted(name for name in wanted.keys() | shapes.keys() if wanted.get(name) != shapes.get(name))
    if different:
        name = different[0]
        raise UserError(
            f"{path} is not a whole {kind} ({len(different)} tensors differ, such as what becomes {name}: "
            f"{shapes.get(name, 'missing')} in the file, {wanted.get(name, 'missing')} in a model of its sizes)"
        )


def _translation(path: Path, file: "_File", pad: int) -> Translation:
    found = translate(file.shapes, pad)
    if found is None:
        shown = ", ".join(sorted(file.shapes)[:SHOWN]) or "nothing"
        raise UserError(
            f"{path} has no weights of a CLIP with a ViT, or of a SigLIP, as open_clip, OpenAI or Hugging Face name them (it has "
            f"{shown}, …): give such a file, its folder, or a run of ours"
        )
    if found.unknown:
        shown = ", ".join(found.unknown[:SHOWN])
        raise UserError(
            f"{path} is a {found.kind} with {len(found.unknown)} tensors that our model has no place for, such as {shown}: only "
            f"the plain ViT of CLIP, and that of SigLIP, can be a start"
        )
    return found


# What the folder says.


def _reads_canonically(settings: Mapping[str, Any], kind: str) -> bool:
    text = settings.get("model_cfg", {}).get("text_cfg", {})
    return bool(text.get("tokenizer_kwargs", {}).get("clean", "canonicalize" if kind == SIGLIP else "") == "canonicalize")


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file has, nothing if there is none."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        raise UserError(f"{path} cannot be read ({reason(problem)}): copy it again, or give the file of weights alone") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a model's settings: copy it again, or give the file of weights alone")
    return values


def _pad(folder: Path, file: "_File") -> int:
    """The token id that texts were padded with, as the tokenizer beside the weights says it."""
    named = _json(folder / "tokenizer_config.json").get("pad_token")
    text = named.get("content") if isinstance(named, dict) else named
    for token in _json(folder / TOKENIZER).get("added_tokens", []):
        if text is not None and token.get("content") == text:
            return int(token["id"])
    of_siglip = any(shape[:1] == (SIGLIP_PIECES,) for shape in file.shapes.values())
    return SIGLIP_END if of_siglip else 0


def _facts_of(path: Path, settings: Mapping[str, Any], width: int, text_width: int) -> dict[str, Any]:
    """The fields of ModelConfig that no shape shows, from the settings beside the weights."""
    model = settings.get("model_cfg", {})
    if not model and _is_program(path):  # only OpenAI's are
        return {"heads": max(1, width // 64), "text_heads": max(1, text_width // 64), "activation": "quick_gelu"}
    if not model:
        return _facts_of_hub(_json(path.parent / SETTINGS_OF_HUB))
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    for name, allowed in PLAIN.items():
        for key, values in allowed.items():
            if key in model.get(name, {}) and model[name][key] not in values:
                raise UserError(f"{path.parent / SETTINGS}: our model cannot be one with {name}.{key}={model[name][key]}")
    for section in (vision, text):
        for key in SWITCHES:
            if section.get(key):
                raise UserError(f"{path.parent / SETTINGS}: our model cannot be one with {key}={section[key]}")
    facts: dict[str, Any] = {"text_heads": text.get("heads", 8), "text_mask": "none" if text.get("no_causal_mask") else "causal"}
    if "timm_model_name" not in vision:
        facts["heads"] = width // vision.get("head_width", 64)
    usual = "quick_gelu" if model.get("quick_gelu") else "gelu"
    facts["activation"], facts["text_activation"] = (
        "gelu_tanh" if (section.get("act_kwargs") or {}).get("approximate") == "tanh" else usual for section in (vision, text)
    )
    return facts


def _facts_of_hub(settings: Mapping[str, Any]) -> dict[str, Any]:
    vision, text = settings.get("vision_config") or {}, settings.get("text_config") or {}
    if "vision_config" not in settings:
        return {}
    ours = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
    usual = "quick_gelu" if settings.get("model_type") == "clip" else "gelu_pytorch_tanh"
    heads = {"clip": (12, 8), "siglip": (12, 12)}.get(str(settings.get("model_type")), (12, 12))
    return {
        "heads": vision.get("num_attention_heads", heads[0]),
        "text_heads": text.get("num_attention_heads", heads[1]),
        "activation": ours.get(vision.get("hidden_act", usual), "gelu"),
        "text_activation": ours.get(text.get("hidden_act", usual), "gelu"),
    }


# The file itself.


@dataclass(frozen=True)
class _File:
    """shapes: of its tensors, by name; get: one of them."""

    shapes: Mapping[str, tuple[int, ...]]
    get: Callable[[str], Tensor]


def _open(path: Path) -> _File:
    """A file of weights of any format. Raises UserError for one that cannot be read."""
    try:
        if path.suffix == ".safetensors":
            content = safe_open(path, "pt")
            names = content.keys()
            return _File({name: tuple(content.get_slice(name).get_shape()) for name in names}, content.get_tensor)
        tensors = _unpickled(path)
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, AttributeError) as problem:
        # torch's own line would have the file run whatever it contains.
        why = "not a file of weights alone" if isinstance(problem, pickle.UnpicklingError) else reason(problem)
        if _begins(path, LFS_POINTER):
            why = "a pointer of Git LFS, whose file `git lfs pull` fetches"
        raise UserError(f"{path} cannot be read ({why}): give the weights of a CLIP or SigLIP, or a run of ours") from None
    return _File({name: tuple(value.shape) for name, value in tensors.items()}, tensors.__getitem__)


def _begins(path: Path, mark: bytes) -> bool:
    try:
        with path.open("rb") as content:
            return content.read(len(mark)) == mark
    except OSError:
        return False


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch: a state_dict, a checkpoint of open_clip's training, or OpenAI's own, which are programs."""
    if _is_program(path):
        return dict(torch.jit.load(path, map_location="cpu").state_dict())
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    content = content.get("state_dict", content)
    return {name.removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}


def _is_program(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())
