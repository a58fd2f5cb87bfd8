"""What signals do to a run."""

import os
import signal
from collections.abc import Iterator

import pytest

from trainer.distributed import signals as stopping
from trainer.distributed.signals import SIGNALS, StopRequest, exit_code


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_does_not_end_the_process(number: int):
    stop = StopRequest()
    assert stop.signal == 0
    os.kill(os.getpid(), number)
    assert stop.signal == number


def test_the_first_reason_stays():
    stop = StopRequest()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)  # as torchrun does
    assert stop.signal == signal.SIGINT


def test_it_is_said_once_that_a_signal_was_heard(capfd: pytest.CaptureFixture[str]):
    StopRequest(announce=True)
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err.count("stopping after this step") == 1


def test_an_interrupt_that_torchrun_passes_on_is_not_a_second_one():
    stop = StopRequest()
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.signal == signal.SIGINT


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_ends_at_once(monkeypatch: pytest.MonkeyPatch, first: int):
    StopRequest()
    os.kill(os.getpid(), first)
    os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(stopping, "SAME_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_exit_codes_tell_an_interrupt_from_a_preemption():
    assert exit_code(signal.SIGINT) == 130
    assert {exit_code(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)} == {85}
