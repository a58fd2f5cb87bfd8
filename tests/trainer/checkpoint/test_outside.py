"""Weights of CLIP from elsewhere: the same function, what is said about them, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.config import ModelConfig, RouterConfig
from model.limoe import LIMoE
from tests.model.clip import SIZES, VOCABULARY, QuickGELU, random_clip, random_texts
from trainer.checkpoint import start
from trainer.checkpoint.outside import find_outside, read_outside
from trainer.checkpoint.start import start_from_outside
from trainer.config.schema import Config
from trainer.errors import UserError
from trainer.training.directory import NEW_WEIGHTS

VISION = {"image_size": 12, "layers": 3, "width": 32, "patch_size": 4, "head_width": 8}
TEXT = {"context_length": 7, "vocab_size": VOCABULARY, "width": 24, "heads": 3, "layers": 2}


def written(folder: Path, tensors: dict[str, Tensor], settings: dict[str, Any] | None = None) -> Path:
    """A folder as on the Hub."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, folder / "open_clip_model.safetensors")
    if settings is not None:
        model = {"embed_dim": 20, "vision_cfg": VISION, "text_cfg": TEXT} | settings
        (folder / "open_clip_config.json").write_text(
            json.dumps({"model_cfg": model, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}})
        )
    return folder / "open_clip_model.safetensors"


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    """That of a run with the model of tests.model.clip, and with its tokenizer."""

    class Given:
        vocabulary = VOCABULARY + 1

    monkeypatch.setattr(start, "given_tokenizer", lambda asked: Given())
    config = Config()
    config.model, config.data.tokenizer = ModelConfig(**SIZES), "clip"
    config.data.mean, config.data.std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    return config


def started(path: Path, config: Config) -> LIMoE:
    """The model of the configuration as it starts, dropping nothing."""
    model = LIMoE(config.model, config.router.without_drops()).initialise(1)
    start_from_outside(path, config, NEW_WEIGHTS).load(model, None)
    return model.eval().requires_grad_(False)


class Holds(nn.Module):
    """A module with the tensors of another under the same names, which torch can make a program of."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        for name, value in other.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(value.detach(), requires_grad=False))
        for name, child in other.named_children():
            self.add_module(name, Holds(child))

    def forward(self) -> int:
        return 0


def as_saved_by_hugging_face(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same under the names of transformers' CLIPModel."""
    names = {
        "visual.transformer.resblocks": "vision_model.encoder.layers",
        "transformer.resblocks": "text_model.encoder.layers",
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1": "vision_model.embeddings.patch_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "visual.proj": "visual_projection.weight",
        "token_embedding": "text_model.embeddings.token_embedding",
        "ln_final": "text_model.final_layer_norm",
    }
    found = {}
    for name, value in tensors.items():
        for theirs, other in names.items():
            name = name.replace(theirs, other)
        name = {"positional_embedding": "text_model.embeddings.position_embedding.weight"}.get(name, name)
        if "attn.in_proj_" in name:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                found[name.replace("attn.in_proj_", f"self_attn.{letter}_proj.")] = part
        elif name == "text_projection":
            found["text_projection.weight"] = value.T
        else:
            found[name] = value.T if name == "visual_projection.weight" else value
    return found


@pytest.mark.parametrize("activation", [nn.GELU(), QuickGELU()])
@pytest.mark.parametrize("form", ["open_clip", "custom text", "pickle", "checkpoint", "hugging face"])
def test_two_towers_compute_what_clip_does(tmp_path: Path, config: Config, form: str, activation: nn.Module):
    clip = random_clip(activation=activation)
    config.model.activation = "quick_gelu" if isinstance(activation, QuickGELU) else "gelu"
    tensors = clip.state_dict()
    if form == "custom text":
        others = ("visual.", "logit_scale")
        tensors = {name if name.startswith(others) else f"text.{name}": value for name, value in tensors.items()}
    if form == "hugging face":
        tensors = as_saved_by_hugging_face(tensors)
    path = written(tmp_path, tensors)
    if form == "pickle":
        torch.save(tensors, path := tmp_path / "weights.pt")
    if form == "checkpoint":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in tensors.items()}}, path := tmp_path / "epoch_3.pt")
    images, (theirs, ours) = torch.randn(6, 3, 12, 12), random_texts(6)

    wanted, found = clip(images, theirs), started(path, config)(images, ours)

    assert (found.images - wanted[0]).abs().max() < 1e-5
    assert (found.texts - wanted[1]).abs().max() < 1e-5
    assert found.scale == pytest.approx(clip.logit_scale.exp().item(), rel=1e-6)


def test_an_embedding_of_a_text_does_not_depend_on_what_follows_its_end(config: Config):
    model, (_, texts) = LIMoE(config.model, RouterConfig()).initialise(0).eval(), random_texts(4)
    longer = torch.cat([texts[:, :5], torch.zeros(4, 2, dtype=torch.int64)], 1)
    ended = (texts[:, 5:] == 0).all(1)
    assert torch.allclose(model(texts=longer).texts[ended], model(texts=texts[:, :5]).texts[ended], atol=1e-6)


def test_images_of_an_upcycled_limoe_start_as_those_of_clip(tmp_path: Path, config: Config):
    clip, path = random_clip(), written(tmp_path, random_clip().state_dict())
    config.model = replace(
        config.model,
        towers=1,
        text_width=None,
        text_mlp=None,
        text_heads=None,
        text_layers=None,
        text_mask="pads",
        expert_layers=[1],
    )
    config.router.top_k, config.router.normalise_gates = 2, True
    images, (theirs, ours) = torch.randn(6, 3, 12, 12), random_texts(6)

    found, rows = started(path, config)(images, ours), dict(start_from_outside(path, config, NEW_WEIGHTS).rows())

    assert (found.images - clip(images, theirs)[0]).abs().max() < 1e-5
    assert rows["left out"].endswith("the texts' tower, its projection, and its tokens, 24 wide")
    assert rows["new"].endswith("the routers of blocks 1, and the projection of texts and their tokens; the optimizer")
    assert rows["texts"].startswith("pass the tower of the images")
    assert rows["copied into 8 experts each"].endswith("the MLPs of blocks 1")


def test_the_table_counts_every_parameter_and_names_what_was_assumed(tmp_path: Path, config: Config):
    clip = random_clip()
    rows = dict(start_from_outside(written(tmp_path, clip.state_dict()), config, NEW_WEIGHTS).rows())
    assert rows["read"] == "CLIP, from open_clip_model.safetensors"
    assert rows["as the run has it"] == "model.activation=gelu model.heads=4 model.text_heads=3: the file does not say"
    extra = 32 + 24 - 32  # a bias of the patches and the row of padding are new; a position is one with the class token
    assert rows["taken as it is"] == f"{sum(value.numel() for value in clip.parameters()) + extra:,} parameters"


def test_other_sizes_are_fitted(tmp_path: Path, config: Config):
    config.model = replace(config.model, image_size=24, text_length=5)
    rows = dict(start_from_outside(written(tmp_path, random_clip().state_dict()), config, NEW_WEIGHTS).rows())
    assert rows["positions of patches"] == "3 x 3 interpolated to 6 x 6"
    assert rows["positions of text"] == "the first 5 of 7"


def test_what_the_folder_says_counts(tmp_path: Path, config: Config, caplog: pytest.LogCaptureFixture):
    path = written(tmp_path, random_clip().state_dict(), {"quick_gelu": True})
    with pytest.raises(
        UserError, match=r"\(model.activation was quick_gelu, is gelu\): use model.activation=quick_gelu, or leave"
    ):
        start_from_outside(path, config, NEW_WEIGHTS)
    config.model.activation = "quick_gelu"
    begun = start_from_outside(path, config, NEW_WEIGHTS)
    assert "as the run has it" not in dict(begun.rows())
    assert "data.mean=[0.48145466, 0.4578275, 0.40821073], but" in caplog.text
    assert "was trained with [0.1, 0.2, 0.3]" in caplog.text
    assert find_outside(tmp_path) == path
    assert find_outside(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"width": 64, "mlp": 256, "text_width": None, "pool": "mean", "image_norm": False},
            "use model.width=32 model.mlp=40 model.text_width=24 model.pool=token model.image_norm=True, or leave out init_from",
        ),
        ({"layers": 4}, "(model.layers was 3, is 4): use model.layers=3, or"),
        ({"embedding": 24}, "(model.embedding was 20, is 24)"),
    ],
)
def test_another_model_is_refused_and_its_values_named(tmp_path: Path, config: Config, changes: dict[str, Any], told: str):
    config.model = replace(config.model, **changes)
    with pytest.raises(UserError) as caught:
        start_from_outside(written(tmp_path, random_clip().state_dict()), config, NEW_WEIGHTS)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def without(*names: str) -> dict[str, Tensor]:
    return {name: value for name, value in random_clip().state_dict().items() if name not in names}


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        (
            {"weight": torch.zeros(2)},
            "no weights of a CLIP with a ViT, or of a SigLIP, as open_clip, OpenAI or Hugging Face name them",
        ),
        (
            without("ln_final.bias"),
            "is not a whole CLIP (1 tensors differ, such as what becomes towers.1.norm.bias: missing in the",
        ),
        (without("token_embedding.weight"), "has no tokens.table.weight of a CLIP: it is not a whole model"),
        (without() | {"ln_final.bias": torch.zeros(5)}, "towers.1.norm.bias: (5,) in the file, (24,) in a model of its sizes"),
        (
            without() | {"visual.attn_pool.query": torch.zeros(5)},
            "that our model has no place for, such as visual.attn_pool.query: only",
        ),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, config: Config, tensors: dict[str, Tensor], told: str):
    with pytest.raises(UserError) as caught:
        read_outside(written(tmp_path, tensors), config.model, config.router)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_a_damaged_file_is_refused(tmp_path: Path, config: Config, name: str):
    (tmp_path / name).write_bytes(b"no weights at all, but long enough to be read as a header")
    with pytest.raises(UserError, match=rf"{name} cannot be read \(.*\): give the weights of a CLIP") as caught:
        read_outside(tmp_path / name, config.model, config.router)
    assert "\n" not in str(caught.value)


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, config: Config):
    (tmp_path / "open_clip_model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 605143316\n"
    )
    with pytest.raises(UserError, match="a pointer of Git LFS, whose file `git lfs pull` fetches"):
        read_outside(tmp_path / "open_clip_model.safetensors", config.model, config.router)


def test_a_program_as_openai_saves_it_is_read(tmp_path: Path, config: Config):
    clip = random_clip(activation=QuickGELU()).half()
    torch.jit.script(Holds(clip)).save(tmp_path / "ViT.pt")
    found = read_outside(tmp_path / "ViT.pt", config.model, config.router)
    assert (found.source.activation, found.source.heads, found.assumed) == ("quick_gelu", 1, ())
    tensors, table = dict(found.tensors()), clip.token_embedding.weight.float()
    assert torch.equal(tensors["tokens.table.weight"], torch.cat([table[:1], table]))
    assert torch.equal(tensors["heads.image.weight"], clip.visual.proj.float().T)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"vision_cfg": VISION | {"attentional_pool": True}}, "our model cannot be one with attentional_pool=True"),
        ({"text_cfg": TEXT | {"pool_type": "first"}}, "our model cannot be one with text_cfg.pool_type=first"),
    ],
)
def test_settings_that_our_model_does_not_have_are_refused(tmp_path: Path, config: Config, settings: dict[str, Any], told: str):
    path = written(tmp_path, random_clip().state_dict(), settings)
    with pytest.raises(UserError, match=told):
        read_outside(path, config.model, config.router)


def test_a_run_without_the_models_tokenizer_is_told_what_to_set(tmp_path: Path, config: Config):
    config.data.tokenizer = None
    path = written(tmp_path, random_clip().state_dict())
    with pytest.raises(UserError, match=r"there is no tokenizer.json beside it; set data.tokenizer=clip, or data.tokenizer=PATH"):
        start_from_outside(path, config, NEW_WEIGHTS)
