"""The encoders as programs: what is written computes what the model does, and what is wrong with the request is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import model
from model.config import RouterConfig
from model.errors import UserError
from model.pretrained import Pretrained
from model.stream import MODALITIES
from model.trim import Trim, trim
from tests.model.test_portable import VARIANTS, decided, inputs, shape
from tests.model.test_pretrained import picture
from tests.trainer.export.runs import config, initial, write_run
from trainer.config.schema import Config
from trainer.export import programs
from trainer.export.__main__ import export_newest
from trainer.export.programs import check_formats, write_programs

DOC = Path(__file__).parents[3] / "docs" / "export.md"
ONNX_MISSING = "onnx, onnxscript or onnxruntime is not installed (requirements-onnx.txt)"
TEXTS = ["picture number 3", "a small set", ""]


def needs_onnx() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=ONNX_MISSING)


def spread(made: Config, seed: int) -> dict[str, torch.Tensor]:
    """Weights under which tokens choose different experts."""
    weights = initial(made, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, value in weights.items():
        if name.endswith(("position", "router.weight")):
            value.add_(torch.randn(value.shape, generator=generator))
    return weights


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    made = config()
    made.router.top_k = 2
    return write_run(tmp_path / "photos", made, (10,), spread)


@pytest.mark.slow
def test_a_program_of_torch_embeds_as_the_export_does(run_dir: Path):
    told = export_newest([f"run={run_dir}", "format=pt2", "modality=text"])
    out = run_dir / "export"
    assert "text.pt2" in told[0] and not (out / "image.pt2").exists()
    loaded = model.load(out)
    run = torch.export.load(out / "text.pt2").module()
    for texts in (TEXTS, TEXTS[:1]):
        torch.testing.assert_close(run(loaded.tokenize(texts)), loaded.embed_texts(texts), rtol=0, atol=1e-6)
    card = (out / "README.md").read_text()
    assert "| `text.pt2` | `input_ids` int64 [batch, 16] | `text_embeds` float32 [batch, 8] |" in card
    assert f"softmax({loaded.scale:.6g} * cosines)" in card
    content = (out / "text.pt2").read_bytes()
    assert b"portable.py" not in content and str(run_dir.parent).encode() not in content, "no paths of this machine"
    assert "replaced the export" in export_newest([f"run={run_dir}"])[0]
    assert not (out / "text.pt2").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_experts_that_choose_are_written_too(tmp_path: Path, kind: str):
    if kind == "onnx":
        needs_onnx()
    router, changes = VARIANTS["experts choose"]
    module = trim(decided(RouterConfig(**router), shape(**changes)), Trim("text")).requires_grad_(False)
    (written,) = write_programs(tmp_path, module, (kind,))
    assert written.file == f"text.{kind}" and written.difference < 1e-5
    batch = inputs("text", module.config, 9)
    if kind == "pt2":
        found = torch.export.load(tmp_path / "text.pt2").module()(batch)
    else:
        found = run_onnx(tmp_path / "text.onnx", batch.numpy())
    torch.testing.assert_close(found, module(texts=batch).texts, rtol=0, atol=1e-5)


def run_onnx(path: Path, values: np.ndarray) -> torch.Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: values})[0])


@pytest.mark.slow
def test_a_graph_says_what_it_takes_and_runs_without_us(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    needs_onnx()
    import onnxruntime

    export_newest([f"run={run_dir}", "format=onnx", "dtype=bf16"])
    out = run_dir / "export"
    sessions = {name: onnxruntime.InferenceSession(str(out / f"{name}.onnx")) for name in MODALITIES}
    (pixels,), (ids,) = (sessions[name].get_inputs() for name in MODALITIES)
    assert (pixels.name, pixels.shape, pixels.type) == ("pixel_values", ["batch", 3, 16, 16], "tensor(float)")
    assert (ids.name, ids.shape, ids.type) == ("input_ids", ["batch", 16], "tensor(int64)")
    assert [sessions[name].get_outputs()[0].name for name in MODALITIES] == ["image_embeds", "text_embeds"]
    loaded = model.load(out, dtype=torch.float32)
    scale = sessions["text"].get_modelmeta().custom_metadata_map["logit_scale"]
    assert float(scale) == pytest.approx(loaded.scale)
    found = run_onnx(out / "text.onnx", loaded.tokenize(TEXTS).numpy())
    torch.testing.assert_close(found, loaded.embed_texts(TEXTS), rtol=0, atol=1e-5)
    assert_the_documented_program_agrees(out, loaded, monkeypatch)
    for name in MODALITIES:
        content = (out / f"{name}.onnx").read_bytes()
        assert b".py" not in content and str(run_dir.parent).encode() not in content, "no paths of this machine"


def assert_the_documented_program_agrees(out: Path, loaded: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    """That docs/export.md computes what we do, with onnxruntime alone."""
    after = DOC.read_text().split("With onnxruntime, SentencePiece, numpy and Pillow alone:")[1]
    program = after.split("```python\n")[1].split("```")[0]
    images, texts = ("frog.jpg", "cat.png"), ["a photo of a frog", "a photo of a cat"]
    for number, name in enumerate(images):
        picture(number, 50 + 30 * number, 40).save(out / name)
    monkeypatch.chdir(out)
    found: dict[str, Any] = {}
    exec(program, found)
    expected = loaded.embed_images(images) @ loaded.embed_texts(texts).T
    torch.testing.assert_close(torch.from_numpy(found["cosines"]), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.from_numpy(found["logits"]), loaded.scale * expected, rtol=0, atol=1e-2)


def test_what_is_missing_is_told_before_anything_is_written(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'format=onnx needs onnx: pip install "limoe-trainer\[onnx\]", or format=pt2, which'):
        export_newest([f"run={run_dir}", "format=pt2,onnx"])
    assert not (run_dir / "export").exists()
    check_formats(("pt2",))


@pytest.mark.parametrize("text", ["torchscript", "onnx,", ",", "onnx,tflite"])
def test_a_format_that_does_not_exist(run_dir: Path, text: str):
    with pytest.raises(UserError, match=r"is neither onnx nor pt2; write format=onnx, pt2 or onnx,pt2$"):
        export_newest([f"run={run_dir}", f"format={text}"])


def test_a_program_that_computes_something_else_is_not_kept(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    class Wrong:
        def module(self) -> Any:
            return lambda batch: torch.ones(len(batch), 8)

    monkeypatch.setattr(programs, "exported", lambda model, modality: Wrong())
    monkeypatch.setattr(programs.torch.export, "save", lambda program, path: path.write_bytes(b""))
    with pytest.raises(
        UserError, match=r"^image.pt2 would differ by .* from the model \(more than 0.0001\), so that nothing was"
    ):
        export_newest([f"run={run_dir}", "format=pt2"])
    assert not (run_dir / "export").exists()


def test_the_card_names_no_program_that_was_not_asked_for(run_dir: Path):
    export_newest([f"run={run_dir}"])
    assert "## Programs" not in (run_dir / "export" / "README.md").read_text()
    assert json.loads((run_dir / "export" / "config.json").read_text())["model_type"] == "limoe"
