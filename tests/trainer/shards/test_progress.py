"""Progress of a writer: now and then a line where there is no terminal, a bar where there is one."""

import io

import pytest
from rich.console import Console

from trainer.shards import progress
from trainer.shards.progress import Bar, Search
from trainer.shards.unfit import Bad
from trainer.shards.work import Done

DONE = Done(b"", 1, resized=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_a_line_every_half_minute(clock: list[float], capsys: pytest.CaptureFixture[str]):
    with Bar(1000, 400) as bar:
        for number in range(300):
            clock[0] += 0.25
            bar(Bad("x", "no image", "") if number == 7 else DONE)
    assert capsys.readouterr().out.splitlines() == [
        "520 of 1,000 samples, 4 per second, 1 left out, 2:00 left",
        "640 of 1,000 samples, 4 per second, 1 left out, 1:30 left",
    ]


def test_a_quick_writer_says_nothing_in_between(clock: list[float], capsys: pytest.CaptureFixture[str]):
    with Bar(10, 0) as bar:
        for _ in range(10):
            bar(DONE)
    assert capsys.readouterr().out == ""


def test_a_long_search_says_how_much_there_is(clock: list[float], capsys: pytest.CaptureFixture[str]):
    watch = Search()
    for _ in range(5000):
        clock[0] += 1 / 64
        watch()
    assert capsys.readouterr().out.splitlines() == ["2,000 found so far", "4,000 found so far"]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch):
    screen = io.StringIO()
    monkeypatch.setattr(progress, "terminal", lambda: Console(file=screen, force_terminal=True, width=100))
    with Bar(3, 0) as bar:
        for _ in range(3):
            bar(DONE)
    assert "3/3" in screen.getvalue() and "per second" in screen.getvalue()
