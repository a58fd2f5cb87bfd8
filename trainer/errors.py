"""Errors for users to fix, and the help that comes with them."""

import difflib
from collections.abc import Iterable

from model.errors import UserError as UserError  # one class, whoever finds the mistake
from model.errors import check_extra as check_extra
from model.errors import reason as reason


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the nearest of the known names, or "" if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def either(names: Iterable[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
