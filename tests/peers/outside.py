"""Small models of open_clip, random, as the start of ours: how far apart their embeddings are, as JSON.

`start.py tests.peers.outside FOLDER`. Weights go to FOLDER/NAME, what was found to FOLDER/found.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import open_clip
import timm
import tokenizers
import torch
import transformers
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file
from timm.models.vision_transformer import _create_vision_transformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from model.config import ModelConfig
from model.limoe import LIMoE
from trainer.checkpoint.outside import Outside, read_outside
from trainer.checkpoint.start import start_from_outside
from trainer.config.schema import Config
from trainer.data.tokenizer import Tokenizer, given_tokenizer

TEXTS = [
    "a photo of a cat.",
    "A Photo, of the DOG's house!!",
    "l’été à Zürich – 12,345 €",
    "日本語のテキスト と 絵文字 😀🚀",
    "don't we'll they're it's",
    "a &amp; b &lt;i&gt; &amp;amp;",
    "",
    "!",
    "x" * 300,
    "naïve café ﬁne ½ “quoted”",
    "हिन्दी में\ttab\nline",
]
CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 2},
}
SIGLIP = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 32, "timm_model_name": "vit_small_siglip_of_tests", "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {
        "context_length": 12,
        "vocab_size": 32000,
        "width": 64,
        "heads": 4,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}
MODELS: dict[str, dict[str, Any]] = {
    "clip": CLIP,
    "openai": CLIP | {"quick_gelu": True},
    "custom_text": CLIP | {"custom_text": True},
    "siglip": SIGLIP,
    "siglip2": SIGLIP | {"text_cfg": SIGLIP["text_cfg"] | {"act_kwargs": {"approximate": "tanh"}}},
}


@timm.models.register_model
def vit_small_siglip_of_tests(pretrained: bool = False, **others: Any) -> nn.Module:
    """As timm's vit_base_patch16_siglip_224, but small."""
    sizes = {
        "patch_size": 8,
        "embed_dim": 64,
        "depth": 3,
        "num_heads": 4,
        "class_token": False,
        "global_pool": "map",
        "img_size": 32,
    }
    return _create_vision_transformer("vit_base_patch16_siglip_224", pretrained=pretrained, **sizes | others)


def written(name: str, folder: Path) -> nn.Module:
    """A model with random weights, also those that are made as zeros and ones, in a folder as on the Hub."""
    folder.mkdir()
    torch.manual_seed(len(name))
    settings = {key: value for key, value in MODELS[name].items() if key != "custom_text"}
    model = (CustomTextCLIP if "custom_text" in MODELS[name] else open_clip.CLIP)(**settings).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODELS[name], "preprocess_cfg": {}}))
    if "siglip" in name:
        made_tokenizer(32000).save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "</s>"}))
    return model


def made_tokenizer(count: int) -> tokenizers.Tokenizer:
    """Words for pieces, and, as in SigLIP's, an end-of-text token that pads too."""
    pieces = ["<pad>", "</s>", "<unk>", "a", "photo", "of", "cat", "snake", "its"]
    pieces += [f"word{number}" for number in range(count - len(pieces))]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({name: place for place, name in enumerate(pieces)}, unk_token="<unk>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return made


def written_by_hugging_face(name: str, folder: Path) -> nn.Module:
    """The same of transformers, which names tensors differently."""
    vision = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32}
    text = vision | {"num_attention_heads": 2, "max_position_embeddings": 12, "vocab_size": 60}
    if name == "clip":
        ends = {"eos_token_id": 59, "bos_token_id": 58, "pad_token_id": 0}
        config = transformers.CLIPConfig(vision_config=vision | {"patch_size": 8}, text_config=text | ends, projection_dim=20)
    else:
        config = transformers.SiglipConfig(vision_config=vision | {"patch_size": 8}, text_config=text)
    model = (transformers.CLIPModel if name == "clip" else transformers.SiglipModel)(config).eval().requires_grad_(False)
    torch.manual_seed(len(name))
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def apart_from_hugging_face(name: str, folder: Path) -> dict[str, float]:
    """As apart."""
    model = written_by_hugging_face(name, folder)
    outside = read_outside(folder / "model.safetensors", ModelConfig(), Config().router)
    images, (theirs, tokens) = torch.randn(8, 3, 32, 32), random_tokens(outside)
    found = ours(outside)(images, tokens)
    wanted = model(input_ids=theirs, pixel_values=images)
    return {
        "images": (found.images - normalize(wanted.image_embeds, dim=-1)).abs().max().item(),
        "texts": (found.texts - normalize(wanted.text_embeds, dim=-1)).abs().max().item(),
        "scale": (found.scale / model.logit_scale.exp() - 1).abs().item(),
    }


def ours(outside: Outside) -> LIMoE:
    """The model that starts from the file."""
    config = Config()
    config.model, config.data.tokenizer = outside.source, None
    if outside.tokenizer is None:  # whichever it is: tokens are compared as numbers
        config.data.tokenizer = str(outside.path.with_name("made.json"))
        made_tokenizer(outside.source.vocabulary - 1).save(config.data.tokenizer)
    config.data.mean, config.data.std = outside.pixels["mean"], outside.pixels["std"]
    model = LIMoE(config.model, config.router).initialise(1).eval()
    start_from_outside(outside.path, config, "").load(model, None)
    return model


def random_tokens(outside: Outside) -> tuple[Tensor, Tensor]:
    """Token ids `[8, L]` as the model takes them and as ours does: an end, then pads."""
    length, pieces = outside.source.text_length, outside.source.vocabulary - 1
    end, pad = (pieces - 1, 0) if outside.kind == "CLIP" else (1, outside.pad)
    place, ends = torch.arange(length), torch.randint(0, length, (8, 1))
    tokens = torch.where(place < ends, torch.randint(2, pieces - 1, (8, length)), torch.where(place == ends, end, pad))
    return tokens, torch.where(place <= ends, tokens + 1, 0)


@torch.no_grad()
def apart(name: str, folder: Path) -> dict[str, float]:
    """The largest distance between the embeddings of the model and of ours."""
    model = written(name, folder)
    file = folder / "open_clip_model.safetensors"
    heads = {"heads": 4} if "siglip" in name else {}  # timm's names do not say
    outside = read_outside(file, ModelConfig(**heads), Config().router)
    images, (theirs, tokens) = torch.randn(8, 3, 32, 32), random_tokens(outside)
    found = ours(outside)(images, tokens)
    return {
        "images": (found.images - model.encode_image(images, normalize=True)).abs().max().item(),
        "texts": (found.texts - model.encode_text(theirs, normalize=True)).abs().max().item(),
        "scale": (found.scale / model.logit_scale.exp() - 1).abs().item(),
    }


def tokens_apart() -> list[str]:
    """The texts that CLIP's tokenizer and ours read differently."""
    theirs, found = open_clip.SimpleTokenizer()(TEXTS), given_tokenizer("clip")(TEXTS, 77)
    ends = theirs.argmax(1, keepdim=True)
    same = (torch.where(torch.arange(77) <= ends, theirs + 1, 0) == found).all(1)
    return [text for text, is_same in zip(TEXTS, same, strict=True) if not is_same]


def siglip_reads(text: str, folder: Path) -> list[str]:
    """The pieces of a text by the tokenizer that a run gets from a folder."""
    outside = read_outside(folder / "open_clip_model.safetensors", ModelConfig(heads=4), Config().router)
    return Tokenizer(outside.tokenizer_model() or b"").pieces(text, 12)


def main() -> None:
    """Compare."""
    folder = Path(sys.argv[1])
    tokenizer = given_tokenizer("clip")
    found = {
        "apart": {name: apart(name, folder / name) for name in MODELS}
        | {f"{name} of transformers": apart_from_hugging_face(name, folder / f"hub_{name}") for name in ("clip", "siglip")},
        "tokens": tokens_apart(),
        "decoded": tokenizer.decode(tokenizer(["A photo of 2 cats"], 77)[0].tolist()),
        "pieces": tokenizer.pieces("A photo of cats'", 77),
        "words": [piece.word for piece in tokenizer.words("A photo, cats", 77)],
        "counts": tokenizer.encode(["a photo of a cat", ""], 77).counts,
        "siglip": siglip_reads("A photo, of a_cat: (its) Snake!", folder / "siglip"),
    }
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
