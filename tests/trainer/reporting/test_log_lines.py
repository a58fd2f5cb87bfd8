"""Where log lines go."""

import contextlib
import logging
from pathlib import Path

import pytest

from trainer.errors import UserError
from trainer.reporting.log_lines import log_to_file, log_to_terminal


def test_warnings_reach_the_terminal_and_all_lines_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log_to_terminal(rank=0)
    logger = logging.getLogger("trainer.somewhere")
    with log_to_file(tmp_path, rank=0):
        logger.info("a step")
        logger.warning("a problem")
    logger.info("too late")
    assert capsys.readouterr().err == "WARNING: a problem\n"
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO trainer.somewhere: a step", "WARNING trainer.somewhere: a problem"]


def test_only_the_first_rank_writes_the_file_and_others_say_who_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log_to_terminal(rank=3)
    with log_to_file(tmp_path, rank=3):
        logging.getLogger("trainer.somewhere").warning("a problem")
    assert capsys.readouterr().err == "WARNING (rank 3): a problem\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("problem", "first", "last"),
    [
        (UserError("optim.lr=-1 cannot be"), "INFO trainer.reporting.log_lines: error: optim.lr=-1 cannot be", None),
        (ValueError("odd"), "INFO trainer.reporting.log_lines: failed", "ValueError: odd"),
    ],
)
def test_what_ended_the_run_is_in_the_file(tmp_path: Path, problem: Exception, first: str, last: str | None):
    log_to_terminal(rank=0)
    handlers = list(logging.getLogger().handlers)
    with pytest.raises(type(problem)) as caught, log_to_file(tmp_path, rank=0):
        raise problem
    assert caught.value is problem
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert lines[0].split(" ", 2)[2] == first
    assert lines[-1] == (last or lines[0])
    assert logging.getLogger().handlers == handlers


def test_a_full_disk_leaves_the_terminal_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "train.log").symlink_to("/dev/full")
    log_to_terminal(rank=0)
    with log_to_file(tmp_path, rank=0):
        logging.getLogger("trainer.somewhere").info("a step")
    assert capsys.readouterr().err == ""


def test_a_terminal_that_takes_no_more_is_no_reason_to_lose_the_run(monkeypatch: pytest.MonkeyPatch):
    log_to_terminal(rank=0)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stderr", full)
        logging.getLogger("trainer.somewhere").warning("a problem")
        with contextlib.suppress(OSError):
            full.close()


def test_a_line_stays_one_line_whatever_is_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log_to_terminal(rank=0)
    with log_to_file(tmp_path, rank=0):
        logging.getLogger("trainer.somewhere").warning("%s: bad", "a\nb\r\nc\u2028\udce9.tar")
    assert capsys.readouterr().err.count("\n") == 1
    (line,) = (tmp_path / "train.log").read_text(encoding="utf-8").splitlines()
    assert line.endswith(r"a b c \udce9.tar: bad")


def test_a_log_that_cannot_be_opened_is_the_user_s_to_fix(tmp_path: Path):
    (tmp_path / "train.log").mkdir()
    with (
        pytest.raises(UserError, match=r"train\.log cannot be written \(Is a directory\): fix it"),
        log_to_file(tmp_path, rank=0),
    ):
        pass
