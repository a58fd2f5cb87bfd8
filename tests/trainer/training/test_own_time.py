"""A rank's own seconds, on one process."""

from types import SimpleNamespace

import pytest
import torch

from model.config import ModelConfig, RouterConfig
from model.limoe import LIMoE
from trainer.config.schema import ParallelConfig
from trainer.training import own_time
from trainer.training.own_time import OwnTime, straggler_metrics

MODEL = LIMoE(ModelConfig(width=8, mlp=8, heads=1, layers=1, expert_layers=[], vocabulary=8, embedding=8), RouterConfig())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock to be set."""
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now)
    monkeypatch.setattr(own_time, "time", clock)
    return clock


def test_means_are_over_the_steps_since_they_were_last_told(clock: SimpleNamespace):
    own = OwnTime(ParallelConfig(), MODEL, torch.device("cpu"))
    for seconds in (1.0, 3.0):
        with own.computing():
            clock.now += seconds
        clock.now += 50.0
        own.step_is_done(seconds / 4)
    assert own.means() == {"data_seconds": 0.5, "compute_seconds": 2.0}
    own.forget()
    own.step_is_done(7.0)
    assert own.means() == {"data_seconds": 7.0, "compute_seconds": 0.0}


class Event:
    """A CUDA event: its time is known once the device has passed it."""

    def __init__(self, clock: SimpleNamespace) -> None:
        self._clock, self._at, self._passed = clock, 0.0, False

    def record(self) -> None:
        """The device will pass it now."""
        self._at = self._clock.now

    def synchronize(self) -> None:
        """Wait for that."""
        self._passed = True

    def elapsed_time(self, end: "Event") -> float:
        """In milliseconds."""
        assert end._passed, "CUDA raises an error for one that it has not passed"
        return (end._at - self._at) * 1000


def test_a_gpu_is_asked_only_when_the_step_is_over(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch):
    made: list[Event] = []
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: made.append(Event(clock)) or made[-1])
    own = OwnTime(ParallelConfig(), MODEL, torch.device("cuda"))
    for _ in range(2):  # micro-batches
        with own.computing():
            clock.now += 2.0
    assert not any(event._passed for event in made)
    own.step_is_done(0.0)
    assert own.means()["compute_seconds"] == pytest.approx(4.0)


def test_the_worst_rank_is_named_and_a_single_one_is_not():
    assert straggler_metrics({"data_seconds": [0.5, 0.25, 2.0, 1.0]}) == {
        "perf/ranks/data_seconds/min": 0.25,
        "perf/ranks/data_seconds/max": 2.0,
        "perf/ranks/data_seconds/worst_rank": 2.0,
    }
    assert straggler_metrics({"data_seconds": [0.5]}) == {}
