"""Exports on the Hugging Face Hub: the real client against a server of this process."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

import model
from model.errors import UserError
from model.hub import HubPlace, is_on_hub, local_folder
from model.layout import ARCHITECTURE, CONFIG, TOKENIZER, WEIGHTS, architecture
from model.pretrained import Pretrained
from tests.hub import FakeHub, serving
from tests.model.test_pretrained import MEAN, ROUTER, STD, shape, trained
from tests.trainer.data.shards_on_disk import small_tokenizer

TEXTS = ["picture number 7", "a small set"]


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An export with both descriptions."""
    folder = tmp_path / "export"
    folder.mkdir()
    data = {"mean": MEAN, "std": STD, "background": [255, 255, 255]}
    values = {"model": asdict(shape()), "router": asdict(ROUTER), "data": data}
    (folder / CONFIG).write_text(yaml.safe_dump(values))
    (folder / ARCHITECTURE).write_text(json.dumps(architecture(values, "float32")))
    save_file(trained().state_dict(), folder / WEIGHTS)
    small_tokenizer(folder)
    (folder / "t.model").rename(folder / TOKENIZER)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(monkeypatch, tmp_path) as running:
        yield running


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def embedded(loaded: Pretrained) -> torch.Tensor:
    return loaded.embed_texts(TEXTS)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("hf://owner/name", HubPlace("owner/name", None, "")),
        (" hf://owner/name/ ", HubPlace("owner/name", None, "")),
        ("hf:/owner/name@v1.0", HubPlace("owner/name", "v1.0", "")),
        ("hf://owner/name/b16/ema", HubPlace("owner/name", None, "b16/ema")),
        ("hf://owner/name@main/b16", HubPlace("owner/name", "main", "b16")),
        ("hf://owner/name@refs/pr/7/b16", HubPlace("owner/name", "refs/pr/7", "b16")),
        ("hf://owner/name@refs%2Fpr%2F7", HubPlace("owner/name", "refs/pr/7", "")),
    ],
)
def test_what_a_place_on_the_hub_means(text: str, meant: HubPlace):
    assert is_on_hub(text)
    assert HubPlace.read(text) == meant


@pytest.mark.parametrize("text", ["hf://owner", "hf://owner/", "hf://@main", "hf://owner/name@", "hf://owner/name/../other"])
def test_what_names_no_repository_is_told(text: str):
    with pytest.raises(UserError, match=r"write hf://OWNER/NAME, or hf://OWNER/NAME@REVISION/FOLDER$"):
        local_folder(text)


def test_a_path_is_a_path(tmp_path: Path):
    assert not is_on_hub("hf") and not is_on_hub(tmp_path) and not is_on_hub("./hf:/x")
    assert local_folder(tmp_path) == tmp_path


def test_it_is_loaded_as_from_its_folder_and_then_from_the_cache(export: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    hub.add("owner/name", files(export) | {"README.md": b"# card", "pytorch_model.bin": b"never", "image.onnx": b"large"})
    expected = embedded(model.load(export))
    assert torch.equal(embedded(model.load("hf://owner/name")), expected)
    assert torch.equal(embedded(model.load(Path("hf://owner/name"))), expected)
    fetched = {line.rpartition("/")[2] for line in hub.asked if line.startswith("GET /owner")}
    assert fetched == {WEIGHTS, ARCHITECTURE, CONFIG, TOKENIZER}, "each once, and nothing that is not needed"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = len(hub.asked)
    assert torch.equal(embedded(model.load("hf://owner/name")), expected)
    assert len(hub.asked) == before


def test_a_revision_and_a_folder(export: Path, hub: FakeHub):
    hub.add("owner/name", {"README.md": b""})
    hub.add("owner/name", {f"b16/ema/{name}": data for name, data in files(export).items()}, "v1")
    assert torch.equal(embedded(model.load("hf://owner/name@v1/b16/ema")), embedded(model.load(export)))
    with pytest.raises(UserError, match=r"^hf://owner/name@v1/b32: no config.json there: this is no export of"):
        model.load("hf://owner/name@v1/b32")
    with pytest.raises(UserError, match=r"^hf://owner/name@v2: the repository has no revision 'v2': leave @v2 out$"):
        model.load("hf://owner/name@v2")


def test_an_export_from_before_config_json(export: Path, hub: FakeHub):
    expected = embedded(model.load(export))
    (export / ARCHITECTURE).unlink()
    hub.add("owner/old", files(export))
    assert torch.equal(embedded(model.load("hf://owner/old")), expected)


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (
            "RepoNotFound",
            "hf://owner/name: there is no such repository, or it is private: check the name, or log in with `hf auth",
        ),
        ("GatedRepo", "hf://owner/name is gated: ask for access on its page, then log in with `hf auth login` or set HF_TOKEN"),
    ],
)
def test_a_repository_that_cannot_be_had(export: Path, hub: FakeHub, refusal: str, told: str):
    hub.add("owner/name", files(export)).refusal = refusal
    with pytest.raises(UserError) as caught:
        model.load("hf://owner/name")
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


def test_nothing_in_the_cache_and_no_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^hf://owner/name is not in the cache, and HF_HUB_OFFLINE is set: unset it, or give a"):
        model.load("hf://owner/name")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(UserError, match=r"^hf://owner/name is not in the cache, and http://127.0.0.1:9 cannot be reached: check"):
        model.load("hf://owner/name")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            {ARCHITECTURE: b'{"architectures": ["CLIPModel"], "model_type": "clip"}', "pytorch_model.bin": b"x"},
            "hf://owner/name holds a CLIPModel, model_type=clip, and no export of `python -m trainer.export`",
        ),
        ({ARCHITECTURE: b"{}"}, "hf://owner/name holds a model of another library, and no export of"),
        ({ARCHITECTURE: b"{"}, "config.json is damaged"),
        ({ARCHITECTURE: b"[1]"}, "config.json is damaged (not a mapping)"),
        (
            {ARCHITECTURE: b'{"model_type": "limoe", "format_version": 99}'},
            "hf://owner/name was exported by a newer version of this project (format_version=99, known here: 1): update it",
        ),
        (
            {"open_clip_config.json": b"{}", "open_clip_pytorch_model.bin": b"x"},
            "hf://owner/name is a model of open_clip, and no export of `python -m trainer.export`: "
            "`python -m trainer.evaluate open_clip=hf-hub:owner/name` evaluates it",
        ),
        ({"README.md": b""}, "hf://owner/name: no config.json there: this is no export of `python -m trainer.export`"),
        ({ARCHITECTURE: b'{"model_type": "limoe", "format_version": 1}'}, "hf://owner/name: no model.safetensors there; give"),
    ],
)
def test_a_model_of_another_kind_says_what_it_is(hub: FakeHub, content: dict[str, bytes], told: str):
    hub.add("owner/name", content)
    with pytest.raises(UserError) as caught:
        model.load("hf://owner/name")
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert not [line for line in hub.asked if line.endswith(".bin")]


def test_without_the_client_a_line_names_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs huggingface_hub: pip install "limoe-trainer\[hf\]"$'):
        model.load("hf://owner/name")
