"""Where a run resumes from, and that a start neither overwrites nor deletes what was there."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from trainer.checkpoint.files import (
    BEST,
    CONFIG,
    MARKER,
    PROGRESS,
    TOKENIZER,
    checkpoint_path,
    point_best_to,
    record_of,
    write_marker,
)
from trainer.checkpoint.load import checkpoint_of
from trainer.checkpoint.start import FITTED
from trainer.config.compose import load_config, to_config
from trainer.config.schema import Config
from trainer.distributed.processes import Processes
from trainer.errors import UserError
from trainer.reporting.loads import LOADS
from trainer.training.directory import (
    METRICS,
    REPORT,
    WANDB_ID,
    initial_weights,
    inspect_run_directory,
    open_run_directory,
    write_config,
)

ALONE = Processes(0, 1, 0, torch.device("cpu"))


def configured(run_dir: Path, resume: str = "auto") -> Config:
    config = Config()
    config.run.dir, config.resume = str(run_dir), resume
    return config


def opened(run_dir: Path, resume: str = "auto") -> Path | None:
    """Start a run; its checkpoint."""
    config = configured(run_dir, resume)
    found, checkpoint = open_run_directory(config, ALONE)
    assert found == run_dir
    write_config(config, run_dir, ALONE)
    return checkpoint


def saved(run_dir: Path, step: int, complete: bool = True) -> Path:
    """A checkpoint as far as this module looks at one, in a run with metrics."""
    checkpoint = checkpoint_path(run_dir, step)
    checkpoint.mkdir(parents=True)
    (checkpoint / TOKENIZER).write_text(f"tokenizer of step {step}")
    if complete:
        write_marker(checkpoint, {TOKENIZER: record_of(checkpoint / TOKENIZER)})
    (run_dir / METRICS).write_text("{}\n")
    return checkpoint


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_new_run_starts_from_nothing(tmp_path: Path):
    assert opened(tmp_path / "runs" / "new") is None
    assert load_config(tmp_path / "runs" / "new" / CONFIG).run.dir == str(tmp_path / "runs" / "new")


def test_auto_goes_on_from_the_newest_complete_checkpoint(tmp_path: Path):
    saved(tmp_path, 5)
    newest = saved(tmp_path, 10)
    saved(tmp_path, 15, complete=False)
    assert opened(tmp_path) == newest
    assert (tmp_path / TOKENIZER).read_text() == "tokenizer of step 10"


def damage_tokenizer(checkpoint: Path) -> None:
    (checkpoint / TOKENIZER).write_text("tokenizer of step 77")


DAMAGES = {
    "changed": damage_tokenizer,
    "shorter": lambda checkpoint: (checkpoint / TOKENIZER).write_text("tok"),
    "gone": lambda checkpoint: (checkpoint / TOKENIZER).unlink(),
    "no marker": lambda checkpoint: (checkpoint / MARKER).unlink(),
    "empty marker": lambda checkpoint: (checkpoint / MARKER).write_bytes(b""),
    "marker of something else": lambda checkpoint: (checkpoint / MARKER).write_text('["no", "records"]'),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str):
    sound = saved(tmp_path, 5)
    newest = saved(tmp_path, 10)
    DAMAGES[how](newest)
    assert opened(tmp_path) == sound
    assert f"checkpoint {newest} is damaged and was skipped: " in caplog.text
    assert (tmp_path / "earlier-1" / newest.name).is_dir(), "it is kept, where no resume takes it for the newest"


def test_a_run_never_starts_anew_when_all_its_checkpoints_are_damaged(tmp_path: Path):
    for step in (5, 10):
        damage_tokenizer(saved(tmp_path, step))
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"none of the 2 checkpoints in .* can be read .*resume=never"):
        open_run_directory(configured(tmp_path), ALONE)
    assert files(tmp_path) == before
    assert opened(tmp_path, "never") is None, "unless told so"
    assert (tmp_path / "earlier-1" / "checkpoints" / "step-00000010" / TOKENIZER).exists()


def test_a_damaged_checkpoint_that_was_asked_for_is_an_error(tmp_path: Path):
    older = saved(tmp_path, 5)
    saved(tmp_path, 10)
    damage_tokenizer(older)
    with pytest.raises(UserError, match=f"checkpoint {older} is damaged"):
        open_run_directory(configured(tmp_path, str(older)), ALONE)


def test_the_best_checkpoint_can_be_asked_for_by_that_name(tmp_path: Path):
    best = saved(tmp_path / "old", 5)
    saved(tmp_path / "old", 10)
    point_best_to(best)
    assert opened(tmp_path / "new", str(tmp_path / "old" / "checkpoints" / BEST)) == best


def test_what_was_cut_off_in_the_middle_is_swept_up(tmp_path: Path):
    sound = saved(tmp_path, 5)
    for name in (".step-00000010.partial", ".step-00000002.deleted"):
        (sound.parent / name / "state").mkdir(parents=True)
    assert opened(tmp_path) == sound
    assert [path.name for path in sound.parent.iterdir()] == [sound.name]


def test_the_weights_of_another_run_come_with_their_tokenizer(tmp_path: Path):
    checkpoint = saved(tmp_path / "old", 5)
    config = configured(tmp_path / "new")
    opened(tmp_path / "new")
    config.init_from = str(tmp_path / "old")
    start = initial_weights(config, tmp_path / "new", ALONE)
    assert start is not None and start.checkpoint == checkpoint
    assert (tmp_path / "new" / TOKENIZER).read_text() == "tokenizer of step 5"
    config.init_from = str(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"init_from=.*nothing: no complete checkpoint there"):
        initial_weights(config, tmp_path / "new", ALONE)


def test_never_refuses_a_run_and_changes_nothing(tmp_path: Path):
    saved(tmp_path, 5)
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"resume=never, but .* contains a run \(step-00000005\)"):
        open_run_directory(configured(tmp_path, "never"), ALONE)
    assert files(tmp_path) == before


def test_never_starts_where_there_is_no_checkpoint(tmp_path: Path):
    assert opened(tmp_path, "never") is None


def test_another_run_is_continued_in_a_directory_of_its_own(tmp_path: Path):
    checkpoint = saved(tmp_path / "old", 5)
    assert opened(tmp_path / "new", str(tmp_path / "old")) == checkpoint
    assert (tmp_path / "new" / TOKENIZER).read_text() == "tokenizer of step 5"


def test_the_same_command_goes_on_from_its_own_newest_checkpoint(tmp_path: Path):
    saved(tmp_path / "old", 5)
    opened(tmp_path / "new", str(tmp_path / "old"))
    own = saved(tmp_path / "new", 8)
    assert opened(tmp_path / "new", str(tmp_path / "old")) == own


def test_another_run_does_not_replace_one(tmp_path: Path):
    saved(tmp_path / "old", 5)
    saved(tmp_path / "mine", 3)
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"mine contains another run \(step-00000003\): choose another run.dir"):
        open_run_directory(configured(tmp_path / "mine", str(tmp_path / "old")), ALONE)
    assert files(tmp_path) == before


def test_going_back_keeps_the_later_checkpoints_apart(tmp_path: Path):
    older = saved(tmp_path, 5)
    saved(tmp_path, 10)
    assert opened(tmp_path, str(older)) == older
    assert (tmp_path / "earlier-1" / "step-00000010" / TOKENIZER).read_text() == "tokenizer of step 10"
    assert opened(tmp_path, str(older)) == older  # nothing newer has come


@pytest.mark.parametrize("where", ["nothing/here", "empty", ""])
def test_resume_from_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"resume={where}: no complete checkpoint there"):
        open_run_directory(configured(tmp_path / "new", where), ALONE)
    assert not (tmp_path / "new").exists()


def test_a_start_without_a_checkpoint_is_kept_apart(tmp_path: Path):
    for name in (METRICS, LOADS, REPORT, WANDB_ID, TOKENIZER, CONFIG):
        (tmp_path / name).write_text(f"{name}, first")
    assert opened(tmp_path) is None
    for name in (METRICS, LOADS, REPORT):
        assert (tmp_path / "earlier-1" / name).read_text() == f"{name}, first"
    assert not (tmp_path / TOKENIZER).exists()  # or the new run would use a tokenizer of other captions
    (tmp_path / METRICS).write_text("second")
    assert opened(tmp_path) is None
    assert (tmp_path / "earlier-1" / METRICS).read_text() == f"{METRICS}, first"
    assert (tmp_path / "earlier-2" / METRICS).read_text() == "second"


def test_a_tokenizer_of_a_start_that_never_stepped_is_made_anew(tmp_path: Path):
    (tmp_path / TOKENIZER).write_text("of other captions")
    opened(tmp_path)
    assert not (tmp_path / TOKENIZER).exists()
    assert not list(tmp_path.glob("earlier-*"))


def test_the_configuration_of_a_run_stays_until_the_new_start_is_known_to_be_good(tmp_path: Path):
    saved(tmp_path, 5)
    (tmp_path / CONFIG).write_text("run:\n  name: first\n")
    open_run_directory(configured(tmp_path), ALONE)
    assert load_config(tmp_path / CONFIG).run.name == "first"


def test_what_stands_in_the_place_of_the_checkpoints_is_no_new_run(tmp_path: Path):
    (tmp_path / METRICS).write_text("of the run whose disk is not there")
    (tmp_path / "checkpoints").symlink_to(tmp_path / "disk" / "that" / "is" / "not" / "there")
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"checkpoints cannot be used \(Not a directory\): fix this, then run the same command"):
        open_run_directory(configured(tmp_path), ALONE)
    with pytest.raises(UserError, match=r"checkpoints cannot be used"):
        inspect_run_directory(configured(tmp_path), ALONE)
    with pytest.raises(UserError, match=r"checkpoints cannot be read"):
        checkpoint_of(str(tmp_path))
    assert files(tmp_path) == before


def test_a_dry_run_tells_of_a_log_that_the_run_could_not_open_again(tmp_path: Path):
    (tmp_path / "train.log").mkdir()
    with pytest.raises(UserError, match=r"train.log: Is a directory\): fix this or choose another run.dir"):
        inspect_run_directory(configured(tmp_path), ALONE)


def test_a_run_directory_that_is_a_link_to_nowhere_is_told_before_the_start(tmp_path: Path):
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "that" / "is" / "not" / "there")
    for open_it in (inspect_run_directory, open_run_directory):
        with pytest.raises(UserError, match=r"run cannot be used \("):
            open_it(configured(tmp_path / "run"), ALONE)


def test_going_back_leaves_no_link_to_a_best_that_is_set_aside(tmp_path: Path):
    older = saved(tmp_path, 5)
    point_best_to(saved(tmp_path, 10))
    opened(tmp_path, str(older))
    assert not (tmp_path / "checkpoints" / BEST).is_symlink()


@pytest.mark.parametrize(("key", "other"), [("seed", 7), ("data.shuffle_buffer", 50)])
def test_a_setting_that_gives_the_data_another_order_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str, other: int
):
    checkpoint = saved(tmp_path, 5)
    config = configured(tmp_path)
    (checkpoint / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    open_run_directory(config, ALONE)
    assert not caplog.messages
    changed = OmegaConf.structured(config)
    OmegaConf.update(changed, key, other)
    open_run_directory(to_config(changed), ALONE)
    assert f"{key}={other}, but step-00000005 was trained with" in caplog.text


def test_a_configuration_is_kept_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / CONFIG).write_text("run:\n  name: first\n")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be used \(.*No space left on device\)"):
        write_config(configured(tmp_path), tmp_path, ALONE)
    assert load_config(tmp_path / CONFIG).run.name == "first"


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path, where: str):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match=r"the run directory .*file.* cannot be used") as caught:
        open_run_directory(configured(tmp_path / where), ALONE)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_configuration_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / CONFIG).mkdir()
    with pytest.raises(UserError, match=r"cannot be used \(.*config.yaml: Is a directory\)"):
        write_config(configured(tmp_path), tmp_path, ALONE)


OTHER_MODELS = [("model.heads", 4, 2), ("router.top_k", 1, 2), ("model.expert_layers", [1], [1, 3]), ("model.patch", 4, 8)]


@pytest.mark.parametrize(
    ("how", "key", "was", "wanted"),
    [("resume", *other) for other in OTHER_MODELS] + [("init_from", *other) for other in OTHER_MODELS if other[0] not in FITTED],
)
def test_weights_are_not_taken_for_those_of_another_model(tmp_path: Path, how: str, key: str, was: Any, wanted: Any):
    checkpoint = saved(tmp_path / "old", 5)
    config = configured(tmp_path / "old")
    config.model.expert_layers = [1]
    (checkpoint / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    section, _, leaf = key.partition(".")
    setattr(getattr(config, section), leaf, wanted)
    if how == "init_from":
        config.run.dir, config.init_from = str(tmp_path / "new"), str(tmp_path / "old")
    told = rf"step-00000005 belongs to another model \({key} was {re.escape(str(was))}, is {re.escape(str(wanted))}\): use {key}="
    with pytest.raises(UserError, match=told):
        inspect_run_directory(config, ALONE)
    with pytest.raises(UserError, match=told):
        initial_weights(config, *open_run_directory(config, ALONE)[:1], ALONE)


def test_what_is_no_part_of_the_model_may_change(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    checkpoint = saved(tmp_path, 5)
    config = configured(tmp_path)
    (checkpoint / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    config.router.capacity_factor, config.router.noise, config.router.aux.z, config.model.name = 2.0, 0.0, 0.5, "other"
    assert open_run_directory(config, ALONE)[1] == checkpoint
    assert not caplog.text
    config.data.std = [0.2, 0.2, 0.2]
    open_run_directory(config, ALONE)
    assert "data.std=[0.2, 0.2, 0.2], but step-00000005 was trained with [0.5, 0.5, 0.5]" in caplog.text


def test_other_streams_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    checkpoint = saved(tmp_path, 5)
    config = configured(tmp_path)
    (checkpoint / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    (checkpoint / PROGRESS).write_text('{"step": 5, "streams": 8}')
    written = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARKER]
    write_marker(checkpoint, {str(path.relative_to(checkpoint)): record_of(path) for path in written})
    for same in (None, 8):
        config.data.streams = same
        open_run_directory(config, ALONE)
    assert not caplog.text
    config.data.streams = 4
    open_run_directory(config, ALONE)
    assert "data.streams=4, but step-00000005 was trained with 8: from here on the order of the data differs" in caplog.text
