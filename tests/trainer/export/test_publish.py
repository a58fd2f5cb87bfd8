"""`push=`: an export on the Hugging Face Hub, by the real client and a server of this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import model
from model.errors import UserError
from tests.hub import FakeHub, serving
from tests.trainer.export.runs import config, write_run
from trainer.export.__main__ import export_newest


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(monkeypatch, tmp_path) as running:
        yield running


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "photos", config(), (10,))


def test_what_is_pushed_is_loaded_from_there(run_dir: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", hub.writer)
    told = export_newest([f"run={run_dir}", "push=owner/photos", "private=true", "license=mit"])
    assert told[-1] == "pushed to hf://owner/photos; model.load reads it from there"
    repository = hub.repositories["owner/photos"]
    assert repository.private
    there, here = repository.revisions["main"], {path.name: path for path in (run_dir / "export").iterdir()}
    assert set(there) == set(here) - {"config.yaml"}, "whose paths are nobody's business"
    assert all(there[name] == here[name].read_bytes() for name in there)
    texts = ["a small set"]
    assert torch.equal(model.load("hf://owner/photos").embed_texts(texts), model.load(run_dir / "export").embed_texts(texts))
    there["image.onnx"] = b"of an earlier export"
    export_newest([f"run={run_dir}", "push=owner/photos"])
    assert repository.private and "image.onnx" not in repository.revisions["main"]


def test_who_may_not_write_is_told_before_anything_is_written(run_dir: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"^push=owner/photos: not logged in to the Hugging Face Hub: `hf auth login`, or"):
        export_newest([f"run={run_dir}", "push=owner/photos"])
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(UserError, match=r"^push=owner/photos: the Hugging Face Hub does not know you \(") as caught:
        export_newest([f"run={run_dir}", "push=owner/photos"])
    assert "\n" not in str(caught.value)
    assert not (run_dir / "export").exists()


def test_a_hub_that_cannot_be_reached_is_told_before_anything_is_written(
    run_dir: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", hub.writer)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(UserError, match=r"^push=owner/photos: the Hugging Face Hub does not know you \(.*check the network"):
        export_newest([f"run={run_dir}", "push=owner/photos"])
    assert not (run_dir / "export").exists()


def test_an_export_is_complete_even_if_the_upload_fails(run_dir: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", hub.writer)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", fail)
    with pytest.raises(UserError, match=r"is complete in .*export, but push=owner/photos failed \(no answer\): run the same"):
        export_newest([f"run={run_dir}", "push=owner/photos"])
    assert (run_dir / "export" / "README.md").exists()


def fail(*_: object, **__: object) -> None:
    raise OSError("no answer\nat all")


@pytest.mark.parametrize("name", ["photos", "hf://owner/photos", "a/b/c", "owner/ph otos"])
def test_a_repository_has_an_owner_and_a_name(run_dir: Path, name: str):
    with pytest.raises(UserError, match="give a repository of the Hugging Face Hub, push=OWNER/NAME"):
        export_newest([f"run={run_dir}", f"push={name}"])


def test_without_the_client_a_line_names_what_to_install(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs huggingface_hub: pip install "limoe-trainer\[hf\]"$'):
        export_newest([f"run={run_dir}", "push=owner/photos"])
