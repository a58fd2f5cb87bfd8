"""Errors that are the user's to mend, and the help they give."""

import difflib
from collections.abc import Callable, Iterable

from model.errors import UserError as UserError  # one class, whoever meets the mistake
from model.errors import reason as reason

Check = Callable[[], object]
"""Raises UserError when something is wrong."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the nearest of the known names, or nothing when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""
