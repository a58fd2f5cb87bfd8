"""What of a problem is told."""

import errno
import os

import pytest

from model.errors import LONGEST, reason


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/x"), "No such file or directory"),
        (OSError("cannot identify image"), "cannot identify image"),
        (RuntimeError("\n  first   of\nsecond"), "first of"),
        (KeyError(), "KeyError"),
        ("\n", "str"),
        ("a\nb", "a"),
        (ValueError("x" * 1000), "x" * (LONGEST - 1) + "…"),
    ],
)
def test_a_reason_is_a_part_of_a_line(problem: BaseException | str, told: str):
    assert reason(problem) == told
