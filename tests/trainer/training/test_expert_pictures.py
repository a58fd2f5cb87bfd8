"""What cannot be shown of the experts is said in one line, and the run goes on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from torch import nn

from trainer.config.schema import Config
from trainer.distributed.processes import ALONE
from trainer.errors import UserError
from trainer.training import expert_pictures
from trainer.training.expert_pictures import ExpertPictures
from trainer.training.opening import OpenRun


class Disk:
    """What draws, and what it was asked to."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.folders: list[Path] = []
        self._problem = problem

    def __call__(self, findings: Any, command: str, folder: Path, loads: Path) -> dict[str, Path]:
        self.folders.append(folder)
        if self._problem:
            raise self._problem
        return {"layer01/atlas": folder / "layer01-atlas-light.png"}


@pytest.fixture
def config() -> Config:
    config = Config()
    config.model.expert_layers, config.log.every_images = [1], 10
    return config


@pytest.fixture
def shown() -> list[tuple[int, dict[str, Path]]]:
    """What W&B was told."""
    return []


@pytest.fixture
def open_run(
    config: Config, tmp_path: Path, shown: list[tuple[int, dict[str, Path]]], monkeypatch: pytest.MonkeyPatch
) -> OpenRun:
    monkeypatch.setattr(expert_pictures, "read_samples", lambda config, samples: f"{samples} samples")
    monkeypatch.setattr(expert_pictures, "measure_experts", lambda looked, samples, with_atlas: (looked.model.training, samples))
    run: Any = SimpleNamespace(
        config=config,
        run_dir=tmp_path,
        processes=ALONE,
        progress=SimpleNamespace(step=10),
        engine=SimpleNamespace(module=nn.Identity().train()),
        pairs=SimpleNamespace(tokenizer=None),
        recorder=SimpleNamespace(write_images=lambda step, pictures: shown.append((step, pictures))),
    )
    return cast(OpenRun, run)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_they_are_due_as_the_configuration_says(open_run: OpenRun, config: Config):
    wanted = [(10, False), (15, False), (15, True)]
    for every, due in ((10, [True, False, True]), (0, [False, False, True]), (None, [False] * 3)):
        config.log.every_images = every
        pictures = ExpertPictures(open_run, Disk())
        assert [pictures.is_due(step, ends) for step, ends in wanted] == due


def test_they_are_made_of_the_model_at_rest_and_told_to_wandb(
    open_run: OpenRun, shown: list[tuple[int, dict[str, Path]]], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    drawn: list[Any] = []

    def draw(findings: Any, command: str, folder: Path, loads: Path) -> dict[str, Path]:
        drawn.append(findings)
        return {"layer01/atlas": folder / "layer01-atlas-light.png"}

    pictures = ExpertPictures(open_run, draw)
    pictures.make(lambda: None)
    pictures.close()
    assert drawn == [(False, "256 samples")], "in evaluation mode"
    assert open_run.engine.module.training, "and back"
    assert shown == [(10, {"experts/layer01/atlas": tmp_path / "experts" / "step-00000010" / "layer01-atlas-light.png"})]
    assert not warnings(caplog)


def test_a_dense_model_has_none(open_run: OpenRun, config: Config, caplog: pytest.LogCaptureFixture):
    config.model.expert_layers = []
    assert not ExpertPictures(open_run, Disk()).is_due(10, ends=True)
    assert warnings(caplog) == ["log.every_images: no pictures of the experts: limoe_tiny has no expert layers"]


def test_without_the_extra_there_are_none_and_a_line_says_how_to_get_it(
    open_run: OpenRun, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not ExpertPictures(open_run, Disk()).is_due(10, ends=True)
    assert warnings(caplog) == [
        'log.every_images: no pictures of the experts: pictures need matplotlib: pip install "limoe-trainer[report]"'
    ]


@pytest.mark.parametrize("problem", [UserError("nothing to look at"), RuntimeError("torn")])
def test_samples_that_cannot_be_read_are_told_once(
    open_run: OpenRun, problem: Exception, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def read(config: Config, samples: int) -> None:
        raise problem

    monkeypatch.setattr(expert_pictures, "read_samples", read)
    disk = Disk()
    pictures = ExpertPictures(open_run, disk)
    pictures.make(lambda: None)
    assert not pictures.is_due(20, ends=True)
    assert not disk.folders
    assert warnings(caplog) == [f"log.every_images: no pictures of the experts: {problem}"]


@pytest.mark.parametrize("problem", [UserError("no room"), ValueError("a font is missing")])
def test_what_cannot_be_drawn_is_left_out(
    open_run: OpenRun, problem: Exception, shown: list[object], caplog: pytest.LogCaptureFixture
):
    pictures = ExpertPictures(open_run, Disk(problem))
    pictures.make(lambda: None)
    pictures.close()
    assert not shown
    (line,) = warnings(caplog)
    assert line.startswith("no pictures of the experts of step 10") and str(problem) in line
    assert pictures.is_due(20, ends=False), "the next ones are tried"


def test_a_request_to_stop_leaves_them_out_and_the_model_in_training(open_run: OpenRun, monkeypatch: pytest.MonkeyPatch):
    class Stop(Exception):
        pass

    def measure(looked: Any, samples: object, with_atlas: bool) -> None:
        looked.before_each()

    def stop() -> None:
        raise Stop

    monkeypatch.setattr(expert_pictures, "measure_experts", measure)
    disk = Disk()
    pictures = ExpertPictures(open_run, disk)
    with pytest.raises(Stop):
        pictures.make(stop)
    assert open_run.engine.module.training and not disk.folders
