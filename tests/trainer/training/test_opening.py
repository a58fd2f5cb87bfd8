"""Whatever fails while a run is opened or trained: what was open is closed, in reverse order, and the error stays what it was."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.config.schema import Config
from trainer.distributed.processes import ALONE
from trainer.training import opening
from trainer.training.opening import open_run

STAGES = (
    *("StopRequest", "check_layout", "open_run_directory", "log_to_file", "initial_weights"),
    *("locate_data", "find_pairs", "start_deepspeed", "ExpertSharding", "TrainingProgress", "_start_engine", "Checkpointer"),
    *("the loader", "write_config", "Recorder", "Position"),
)
CLOSED = ("log_to_file", "the loader", "Recorder")
"""Those that have to be closed, as they are opened."""


class Broken(Exception):
    """What a stage meets."""


class Stages:
    """Stands in for every stage; `events` tells what was opened and closed, in order."""

    def __init__(self, failing: str | None = None) -> None:
        self.failing = failing
        self.events: list[str] = []
        self.unclosable: tuple[str, ...] = ()

    def stage(self, name: str, value: object = None) -> Callable[..., object]:
        """A function that opens, or fails."""

        def open_it(*args: object, **kwargs: object) -> object:
            if name == self.failing:
                raise Broken(name)
            self.events.append(name)
            return value

        return open_it

    def closer(self, name: str) -> Callable[[], None]:
        """A function that closes what a stage has opened."""

        def close() -> None:
            self.events.append(f"close {name}")
            if name in self.unclosable:
                raise OSError("no room")

        return close

    def log_to_file(self, *args: object) -> object:
        """The one that is a context."""

        @contextmanager
        def opened() -> Iterator[None]:
            self.stage("log_to_file")()
            try:
                yield
            finally:
                self.closer("log_to_file")()

        return opened()

    def put_in_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let `open_run` use these."""
        mixture = SimpleNamespace(recorded=lambda: None)
        loader = SimpleNamespace(close=self.closer("the loader"), streams=1, mixture=mixture)
        values = {
            "open_run_directory": (Path("run"), None),
            "find_pairs": SimpleNamespace(loader=self.stage("the loader", loader)),
            "TrainingProgress": SimpleNamespace(pairs=0, streams=None, data=None, step=0, mixture=None),
            "Recorder": SimpleNamespace(close=self.closer("Recorder")),
        }
        for name in STAGES:
            if name not in ("the loader", "log_to_file"):
                monkeypatch.setattr(opening, name, self.stage(name, values.get(name)))
        monkeypatch.setattr(opening, "log_to_file", self.log_to_file)

    @property
    def opened(self) -> list[str]:
        """In order."""
        return [event for event in self.events if not event.startswith("close ")]

    @property
    def closed(self) -> list[str]:
        """In order."""
        return [event.removeprefix("close ") for event in self.events if event.startswith("close ")]


@pytest.mark.parametrize("failing", STAGES)
def test_a_stage_that_fails_closes_those_before_it(monkeypatch: pytest.MonkeyPatch, failing: str):
    stages = Stages(failing)
    stages.put_in_place(monkeypatch)
    with pytest.raises(Broken, match=f"^{failing}$"), open_run(Config(), ALONE):
        raise AssertionError("it is not open")
    assert stages.opened == list(STAGES[: STAGES.index(failing)])
    assert stages.closed == [name for name in reversed(stages.opened) if name in CLOSED]


@pytest.mark.parametrize("problem", [None, Broken("the training"), KeyboardInterrupt()])
def test_a_run_is_closed_however_it_ends(monkeypatch: pytest.MonkeyPatch, problem: BaseException | None):
    stages = Stages()
    stages.put_in_place(monkeypatch)
    try:
        with open_run(Config(), ALONE) as opened:
            assert opened.run_dir == Path("run")
            assert stages.opened == list(STAGES)
            assert not stages.closed
            if problem:
                raise problem
    except BaseException as met:
        assert met is problem
    assert stages.closed == ["Recorder", "the loader", "log_to_file"]


@pytest.mark.parametrize("failing", [None, "Position"])
def test_what_cannot_be_closed_is_told_and_hides_neither_the_error_nor_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failing: str | None
):
    stages = Stages(failing)
    stages.unclosable = ("Recorder", "the loader")
    stages.put_in_place(monkeypatch)
    try:
        with open_run(Config(), ALONE):
            pass
    except Broken as problem:
        assert str(problem) == failing
    else:
        assert failing is None
    assert set(stages.closed) == set(CLOSED)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == ["the records could not be closed", "the loader could not be closed"]
