"""An export as an artifact of its run, read by W&B's own reader."""

import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from tests.trainer.export.runs import config, write_run
from tests.trainer.reporting.wandb_records import records
from trainer.errors import UserError
from trainer.export.__main__ import export_newest
from trainer.export.write import WRITTEN
from trainer.reporting import wandb_attach


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was recorded offline, as run abcd1234 of W&B."""
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.teardown()
    return recorded(tmp_path / "photos", "offline")


def recorded(run_dir: Path, mode: str) -> Path:
    """A finished run with log.wandb=`mode`."""
    made = config()
    made.log.wandb, made.log.project = mode, "ours"
    write_run(run_dir, made, (10, 20))
    if mode != "disabled":
        (run_dir / "wandb_run_id").write_text("abcd1234\n")
    return run_dir


def exports(run_dir: Path) -> Path:
    """Where the reader of W&B's files looks for what was attached."""
    return run_dir / "wandb" / "artifacts"


def test_the_export_becomes_an_artifact_of_its_run_by_reference(run_dir: Path, capfd: pytest.CaptureFixture[str]):
    told = export_newest([f"run={run_dir}", "artifact=reference", "dtype=bf16", "modality=text"])
    assert capfd.readouterr() == ("", "")
    (part,) = exports(run_dir).glob("wandb/offline-run-*")
    sentence = "the export is referred to by W&B's run abcd1234, as export-abcd1234; `wandb sync {}` sends that to the server"
    assert told[-1] == sentence.format(part)
    (run,) = records(exports(run_dir), "run")
    assert (run["run_id"], run["project"]) == ("abcd1234", "ours")
    assert "config" not in run or set(run["config"].get("update", {})) <= {"_wandb"}, "the run's own configuration stays"
    (artifact,) = records(exports(run_dir), "artifact")
    assert (artifact["name"], artifact["type"]) == ("export-abcd1234", "model")
    assert "step-20" in artifact["aliases"]
    for part_of_metadata in ('"modality":"text"', '"dtype":"bf16"', '"steps":[20]'):
        assert part_of_metadata in artifact["metadata"].replace(" ", "")
    refs = {entry["ref"] for entry in artifact["manifest"]["contents"]}
    assert refs == {path.as_uri() for path in (run_dir / "export").iterdir()}
    assert not list((run_dir / "wandb").glob("offline-run-*")), "leet opens the newest part: that must be one with curves"


def test_the_files_themselves_go_along_on_request(run_dir: Path):
    assert "the export is copied to W&B's run abcd1234" in export_newest([f"run={run_dir}", "artifact=upload"])[-1]
    (artifact,) = records(exports(run_dir), "artifact")
    contents = {entry["path"]: entry for entry in artifact["manifest"]["contents"]}
    assert set(contents) == set(WRITTEN)
    assert all(entry.get("digest") and not entry.get("ref") for entry in contents.values())


@pytest.mark.parametrize("how", ["log", "environment", "no id"])
def test_where_w_and_b_is_off_one_line_says_so_before_anything_is_written(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
):
    wanted, said = run_dir, "has no run in W&B"
    if how == "log":
        wanted, said = recorded(tmp_path / "other", "disabled"), "log.wandb=disabled"
    elif how == "environment":
        wanted, said = recorded(tmp_path / "other", "auto"), "WANDB_MODE=disabled"
        monkeypatch.setenv("WANDB_MODE", "disabled")
    else:
        (run_dir / "wandb_run_id").unlink()
    with pytest.raises(UserError, match=f"artifact=reference: .*{said}.*leave artifact= out"):
        export_newest([f"run={wanted}", "artifact=reference"])
    assert not (wanted / "export").exists()
    export_newest([f"run={wanted}"])
    assert (wanted / "export").is_dir()


def test_a_run_that_is_still_training_keeps_its_writer(run_dir: Path):
    program = (
        "import sys, pathlib, trainer.training.lock as lock; lock.claim(pathlib.Path(sys.argv[1])); print(flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program, run_dir], stdin=-1, stdout=-1, text=True) as training:
        assert training.stdout.read(1)
        with pytest.raises(UserError, match=r"still training.*export again when it has ended"):
            export_newest([f"run={run_dir}", "artifact=reference"])
        training.communicate("\n")
    assert not (run_dir / "export").exists()


def test_an_export_is_complete_even_if_w_and_b_fails(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(**_: object) -> None:
        raise wandb.errors.CommError("no\nanswer")

    monkeypatch.setattr(wandb_attach.wandb, "init", fail)
    with pytest.raises(UserError, match=r"is complete in .*, but W&B could not take .*no") as caught:
        export_newest([f"run={run_dir}", "artifact=reference"])
    assert "\n" not in str(caught.value)
    assert set(WRITTEN) == {path.name for path in (run_dir / "export").iterdir()}


def test_a_table_is_no_artifact(run_dir: Path):
    with pytest.raises(UserError, match=r"several numbers only print a table; choose one of them for artifact="):
        export_newest([f"run={run_dir}", "experts=top:1,2", "artifact=reference"])
