"""What `python -m trainer.export` writes, from checkpoints that one process made, and what is wrong with what it is asked."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import model
from model.pretrained import FILES
from tests.trainer.export.runs import config, initial, write_run
from trainer.checkpoint.files import CONFIG, MARKER, STATE, checkpoint_path, record_of, write_marker
from trainer.errors import UserError
from trainer.export import write as write_module
from trainer.export.request import read_arguments
from trainer.export.write import WRITTEN, write_export

STEPS = (10, 20, 30)


def weights(seed: int) -> dict[str, Tensor]:
    return initial(config(), seed)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with three complete checkpoints, whose weights are those of the seeds 10, 20, 30, and averages of seed + 1."""
    return write_run(tmp_path / "photos", config(), STEPS)


def exported(*arguments: str) -> tuple[dict[str, Tensor], str]:
    """What lies in the file then, and what was told."""
    asked = read_arguments(list(arguments))
    told = write_export(asked)
    assert sorted(path.name for path in asked.output.iterdir()) == sorted(WRITTEN)
    assert set(FILES) < set(WRITTEN)
    assert [path.name for path in asked.output.parent.iterdir() if path.name.startswith(".")] == []
    return load_file(asked.output / "model.safetensors"), "\n".join(told)


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def test_the_newest_checkpoint_under_the_models_own_names(run_dir: Path):
    found, told = exported(f"run={run_dir}")
    assert_equal(found, weights(30))
    assert found["towers.0.blocks.1.mlp.experts.up"].shape == (8, 16, 24)
    assert len({path.stat().st_mode for path in (run_dir / "export").iterdir()}) == 1, "who reads one file may read all"
    assert (
        f"wrote {run_dir}/export: model.safetensors, config.json, tokenizer.model, preprocessor_config.json, config.yaml" in told
    )
    assert "photos: weights of step 30" in told
    with safe_open(run_dir / "export" / "model.safetensors", "pt") as file:
        assert file.metadata()["origin"] == "photos: weights of step 30"
    rows = model.load(run_dir / "export").embed_texts(["picture number 3"])
    assert rows.shape == (1, 8)


def test_a_checkpoint_another_place_and_bfloat16(run_dir: Path, tmp_path: Path):
    found, told = exported(f"run={checkpoint_path(run_dir, 10)}", f"output={tmp_path / 'there' / 'small'}", "dtype=bf16")
    # But for what a model of any dtype keeps in float32.
    precise = {name for name in found if name.endswith(("router.weight", "log_scale"))}
    assert len(precise) > 1
    assert_equal(found, {name: value if name in precise else value.bfloat16() for name, value in weights(10).items()})
    assert "step 10" in told
    assert read_arguments([f"run={checkpoint_path(run_dir, 10)}"]).output == run_dir / "export"


def test_checkpoints_of_two_models_are_not_averaged(run_dir: Path):
    changed = config()
    changed.model.heads = 2
    (checkpoint_path(run_dir, 30) / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(changed)))
    files = [path for path in checkpoint_path(run_dir, 30).rglob("*") if path.is_file() and path.name != MARKER]
    write_marker(
        checkpoint_path(run_dir, 30), {str(path.relative_to(checkpoint_path(run_dir, 30))): record_of(path) for path in files}
    )
    with pytest.raises(UserError, match=r"step-00000020 belongs to another model \(model.heads was 4, is 2\)"):
        write_export(read_arguments([f"run={run_dir}", "average=last:2"]))


def test_an_output_is_a_path_like_any_other(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(run_dir.parent))
    monkeypatch.chdir(run_dir.parent)
    for output in ("~/out", "out/", f"file://{run_dir.parent}/out"):
        assert read_arguments([f"run=~/{run_dir.name}", f"output={output}"]).output == run_dir.parent / "out"
    with pytest.raises(UserError, match="contains other files"):
        write_export(read_arguments([f"run={run_dir}", "output=."]))


@pytest.mark.parametrize("arguments", [["--average", "last:3"], ["--average=last:3"], ["average=last:3"]])
def test_the_mean_of_the_last_checkpoints(run_dir: Path, arguments: list[str]):
    found, told = exported(f"run={run_dir}", *arguments)
    for name, value in found.items():
        mean = torch.stack([weights(step)[name].double() for step in STEPS]).mean(0)
        torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)
    assert "steps 10, 20, 30, averaged" in told
    assert_equal(exported(f"run={run_dir}", "average=last:1")[0], weights(30))


def test_the_moving_average(run_dir: Path):
    found, told = exported(f"run={run_dir}", "weights=ema")
    assert_equal(found, weights(31))
    assert "moving average of the weights (train.ema=0.9) of step 30" in told


def test_an_earlier_export_is_replaced_and_said_to_be(run_dir: Path):
    assert "replaced" not in exported(f"run={run_dir}")[1]
    found, told = exported(f"run={checkpoint_path(run_dir, 20)}")
    assert_equal(found, weights(20))
    assert f"replaced the export in {run_dir}/export" in told


def test_what_is_not_an_export_is_not_replaced(run_dir: Path):
    with pytest.raises(UserError, match=r"contains other files \(photos\)"):
        write_export(read_arguments([f"run={run_dir}", f"output={run_dir.parent}"]))
    (run_dir / "notes").write_text("mine")
    with pytest.raises(UserError, match=r"contains other files \(notes\)"):
        write_export(read_arguments([f"run={run_dir}", f"output={run_dir / 'notes'}"]))


def test_an_export_that_fails_leaves_the_earlier_one(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    exported(f"run={run_dir}")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write_module, "save_file", full)
    with pytest.raises(UserError, match=r"could not be written .*No space left on device"):
        write_export(read_arguments([f"run={checkpoint_path(run_dir, 20)}"]))
    monkeypatch.undo()
    assert_equal(load_file(run_dir / "export" / "model.safetensors"), weights(30))
    assert [path.name for path in run_dir.iterdir() if path.name.startswith(".")] == []


def test_a_damaged_checkpoint_is_not_exported(run_dir: Path):
    (data,) = (checkpoint_path(run_dir, 20) / STATE).glob("*.distcp")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(UserError, match=r"step-00000020 is damaged .*SHA-256 differs"):
        write_export(read_arguments([f"run={run_dir}", "average=last:2"]))
    assert not (run_dir / "export").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "run=DIR is missing"),
        (["run=/nowhere"], "run=/nowhere: no complete checkpoint there"),
        (["run=RUN", "avarage=last:2"], "(did you mean 'average'?)"),
        (["run=RUN", "run=RUN"], "run is given twice"),
        (["run=RUN", "--average"], "average has no value"),
        (["run=RUN", "average=5"], "write average=last:N"),
        (["run=RUN", "average=last:0"], "write average=last:N"),
        (["run=RUN", "average=last:4"], "has 3 complete checkpoints"),
        (["run=RUN/checkpoints/step-00000030", "average=last:2"], "has 0 complete checkpoints"),
        (["run=RUN", "dtype=fp16"], "dtype=fp16: choose fp32 or bf16"),
        (["run=RUN", "private=true"], "private=true is for push=OWNER/NAME: give both, or leave it out"),
        (["run=RUN", "weights=best"], "weights=best: choose model or ema"),
    ],
)
def test_a_mistake_is_told_in_one_line(run_dir: Path, arguments: list[str], told: str):
    with pytest.raises(UserError) as caught:
        read_arguments([argument.replace("RUN", str(run_dir)) for argument in arguments])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
