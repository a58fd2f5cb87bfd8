"""`python -m trainer.evaluate run=EXPORT`: the numbers are those of the run that was exported."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.hub import FakeHub, serving
from tests.trainer.made_checkpoints import write_run
from trainer.checkpoint.trained import open_checkpoint
from trainer.config.stored import stored_config
from trainer.distributed.processes import ALONE
from trainer.engine.state import WEIGHTS
from trainer.errors import UserError
from trainer.evaluate import COMMAND, evaluate_export, read_export
from trainer.evaluation.encoder import ModelEncoder
from trainer.evaluation.suite import evaluate
from trainer.export.__main__ import export_newest

SETTINGS = ["train.precision=fp32", "eval.batch_size=4", "data.workers=0"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "photos", [1], (20,))


@pytest.fixture(scope="module")
def export(run_dir: Path) -> Path:
    export_newest([f"run={run_dir}"])
    return run_dir / "export"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(monkeypatch, tmp_path) as running:
        yield running


def found(run: str, to: Path, *overrides: str) -> dict[str, float]:
    """What an evaluation of an export writes."""
    asked = read_export(COMMAND.read([f"run={run}", *SETTINGS, *overrides]))
    assert asked is not None
    evaluate_export(asked[0], run, asked[1], ALONE, to)
    written = json.loads(to.read_text())
    assert written["export"] == run and written["name"] == "photos: weights of step 20"
    return written["metrics"]


def test_an_export_is_evaluated_as_its_run(run_dir: Path, export: Path, tmp_path: Path):
    checkpoint = run_dir / "checkpoints" / "step-00000020"
    trained = open_checkpoint(checkpoint, WEIGHTS, SETTINGS)
    encoder = ModelEncoder(trained.model, trained.config.data, torch.float32)
    expected = evaluate(trained.config, encoder, trained.tokenizer, ALONE)
    assert found(str(export), tmp_path / "found.json") == pytest.approx(expected) and "eval/zeroshot/top1" in expected


def test_from_the_hub_without_the_runs_configuration(export: Path, hub: FakeHub, tmp_path: Path):
    hub.add("owner/name", {path.name: path.read_bytes() for path in export.iterdir() if path.name != "config.yaml"})
    data = stored_config(export / "config.yaml", [])
    places = [f"data.val={data.data.val}", f"eval.zeroshot={data.eval.zeroshot}", "data.max_bad_share=1", "run.device=cpu"]
    here = found(str(export), tmp_path / "here.json")
    assert found("hf://owner/name", tmp_path / "there.json", "data.kind=webdataset", *places) == pytest.approx(here)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.heads=2", "an exported model cannot be changed; leave it out"),
        ("weights=ema", "is an export, which has the weights it was made of; leave weights=ema out"),
        ("parallel.expert_parallel=2", "each process holds an export whole; leave it out"),
    ],
)
def test_what_does_not_go_together_with_an_export(export: Path, override: str, told: str):
    with pytest.raises(UserError, match=told):
        read_export(COMMAND.read([f"run={export}", override]))


def test_an_export_with_parts_left_out_is_refused(run_dir: Path, tmp_path: Path):
    export_newest([f"run={run_dir}", f"output={tmp_path / 'small'}", "modality=text"])
    with pytest.raises(UserError, match="belongs to an export from which parts of the model were left out: give the run"):
        read_export(COMMAND.read([f"run={tmp_path / 'small'}"]))


def test_a_run_is_no_export(run_dir: Path):
    assert read_export(COMMAND.read([f"run={run_dir}"])) is None
