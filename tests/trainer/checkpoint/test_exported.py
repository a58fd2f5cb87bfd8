"""A start from an export of our own: a folder, or a place on the Hugging Face Hub."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import model
from model.limoe import LIMoE
from model.peers import SingleProcess
from tests.hub import serving
from tests.trainer.export.runs import config, write_run
from trainer.checkpoint.exported import read_exported
from trainer.checkpoint.start import start_from_export
from trainer.config.paths import expand_paths
from trainer.config.schema import Config
from trainer.distributed.processes import ALONE
from trainer.engine.state import named_tensors
from trainer.errors import UserError
from trainer.export.__main__ import export_newest
from trainer.training.directory import NEW_WEIGHTS, initial_weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The export of a LIMoE."""
    export_newest([f"run={write_run(tmp_path / 'photos', config(), (10,))}"])
    return tmp_path / "photos" / "export"


def begun(asked: Config, run_dir: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors that a run begins with, and the rows that tell where they come from."""
    run_dir.mkdir()
    start = initial_weights(asked, run_dir, ALONE)
    assert start is not None
    module = LIMoE(asked.model, asked.router).initialise(5)
    start.load(module, None)
    return named_tensors(module), dict(start.rows())


def test_a_run_begins_with_its_weights_and_its_tokenizer(folder: Path, tmp_path: Path):
    asked = config()
    asked.init_from = str(folder)
    found, rows = begun(asked, tmp_path / "new")
    weights = model.load(folder).module.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in found.items())
    assert rows["read"].startswith("export") and rows["new"] == "the optimizer"
    assert (tmp_path / "new" / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()


def test_it_may_be_on_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = config()
    asked.init_from = "hf://owner/photos"
    expand_paths(asked)
    assert asked.init_from == "hf://owner/photos"
    with serving(monkeypatch, tmp_path) as hub:
        hub.add("owner/photos", {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
        found, _ = begun(asked, tmp_path / "new")
    assert torch.equal(found["heads.text.weight"], model.load(folder).module.heads["text"].weight)


def test_sizes_are_fitted_and_other_architectures_refused(folder: Path, tmp_path: Path):
    asked = config()
    asked.init_from = str(folder)
    asked.model.text_length += 3
    _, rows = begun(asked, tmp_path / "longer")
    assert "3 new" in rows["positions of text"]
    asked.model.width *= 2
    with pytest.raises(UserError, match=rf"{folder} belongs to another model \(model.width was"):
        start_from_export(folder, asked, NEW_WEIGHTS)


class SecondOfTwo(SingleProcess):
    """The peers of a process with the second half of the experts."""

    expert_parallel, expert_rank, world, rank = 2, 1, 2, 1


def test_a_process_takes_its_own_experts(folder: Path):
    asked, peers = config(), SecondOfTwo()
    module = LIMoE(asked.model, asked.router, peers).initialise(5)
    start_from_export(folder, asked, NEW_WEIGHTS).load(module, None, peers)
    whole = model.load(folder).module.state_dict()
    own = named_tensors(module)
    names = [name for name in own if ".experts." in name]
    assert names
    for name, value in own.items():
        assert torch.equal(value, whole[name][len(value) :] if name in names else whole[name]), name


def test_a_part_of_a_model_is_no_start(folder: Path, tmp_path: Path):
    export_newest([f"run={folder.parent}", "modality=text", f"output={tmp_path / 'text'}"])
    with pytest.raises(UserError, match="only a part of a model is left in this export: export the whole one"):
        read_exported(tmp_path / "text")


def test_damage_is_told_in_a_line(folder: Path):
    described = read_exported(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{weights} is damaged \(.*\): copy it again, or export the run again"):
        list(deepcopy(described).tensors())
