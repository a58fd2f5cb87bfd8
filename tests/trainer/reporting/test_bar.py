"""The bar and the lines."""

import contextlib
import io
import logging
import math
import os
import pty

import pytest
from rich.console import Console

from trainer.reporting.bar import Progress, _Status, duration

SUCCESS = {"image": 0.98, "text": 0.95}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def status(total: int = 1000, step: int = 120, success: dict | None = None) -> _Status:
    """Two steps a second so far."""
    clock = Clock()
    made = _Status(total, 0, clock=clock)
    made.update(step - 100, None, None, None)
    clock.now += 50
    made.update(step, 3.2141, SUCCESS if success is None else success, 1234.4)
    return made


def drawn(what: _Status, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    return console.file.getvalue()


def test_a_line_says_it_all():
    assert status().line() == "step 120/1000  loss 3.214  success image 0.98 text 0.95  1234 pairs/s  7:20 left"


def test_a_dense_model_has_no_success_to_tell():
    assert status(success={}).line() == "step 120/1000  loss 3.214  1234 pairs/s  7:20 left"


def test_lines_are_printed_when_told_to_report(capsys):
    with Progress.start(10, 0, "lines") as progress:
        progress.update(1, loss=3.0, success={}, pairs_per_second=5.0)
        progress.update(2, loss=math.nan, success={}, pairs_per_second=5.0, report=True)
        progress.message("saved [x]")
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("step 2/10  loss nan  5.0 pairs/s  ")
    assert out[1:] == ["saved [x]"]


@pytest.mark.parametrize("mode", ["lines", "none"])
def test_what_is_reported_and_said_stays_in_the_log(caplog: pytest.LogCaptureFixture, mode: str):
    caplog.set_level(logging.INFO, "trainer")
    with Progress.start(10, 0, mode) as progress:
        progress.update(1, loss=3.0, success={}, pairs_per_second=5.0)
        progress.update(2, loss=2.5, success={}, pairs_per_second=5.0, report=True)
        progress.message("saved 100% of it")
    assert [line.split("  ")[0] for line in caplog.messages] == ["step 2/10", "saved 100% of it"]


def test_auto_prints_lines_where_there_is_no_terminal(capsys):
    assert Progress.start(10, 0, "auto").mode == "lines"


def test_none_prints_nothing(capfd):
    with Progress.start(10, 0, "none") as progress:
        progress.update(1, loss=3.0, report=True)
        progress.message("text")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60, 40, 30])
@pytest.mark.parametrize("total", [1000, 1_000_000])
def test_the_bar_is_one_line_at_any_width_and_keeps_the_step_and_the_loss(width, total):
    text = drawn(status(total=total), width)
    assert text.count("\n") == 1
    assert len(text.rstrip()) <= width
    assert f"120/{total}  " in text
    assert "loss 3.214" in text
    assert ("left" in text) == (width > 35)


def test_eighty_columns_show_everything():
    text = drawn(status(), 80)
    for part in ("120/1000", "━", "loss 3.214", "image 0.98 text 0.95", "1234 pairs/s", "7:20 left"):
        assert part in text


def test_time_left_follows_the_mean_pace_and_runs_on_between_steps():
    running = status(total=220)
    assert running.seconds_left() == pytest.approx(50.0)
    running.clock.now += 20
    assert running.seconds_left() == pytest.approx(30.0)
    running.clock.now += 100
    assert running.seconds_left() == 0.0


def test_time_left_is_unknown_at_the_first_step_and_nothing_at_the_last():
    first = _Status(10, 4)
    first.update(5, 3.0, {}, None)
    assert "left" not in first.line()
    first.update(10, 3.0, {}, None)
    assert first.line().endswith("0:00 left")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (151, "2:31"), (3751, "1:02:31"), (3600 * 76, "3d 4h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def _read_until_closed(terminal: int) -> str:
    """All that was written to a terminal whose other end is closed."""
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that nobody writes any more
        while piece := os.read(terminal, 1 << 16):
            shown += piece
    return shown.decode()


def test_a_terminal_gets_a_bar_that_prints_messages_above(monkeypatch):
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        progress = Progress.start(1000, 0, "auto")
        assert progress.mode == "bar"
        with progress:
            for step in range(1, 1001):
                progress.update(step, loss=3.214, success=SUCCESS, pairs_per_second=1234.0, report=True)
            progress.message("checkpoint [saved]")
    shown = _read_until_closed(ours)
    os.close(ours)
    assert shown.count("checkpoint [saved]\r\n") == 1
    assert shown.rindex("1000/1000") > shown.index("checkpoint [saved]")
    assert shown.count("/1000") < 200  # not drawn at every step
