"""Errors that are the user's to mend, as opposed to bugs, which keep their traceback."""

import difflib
from collections.abc import Callable, Iterable

Check = Callable[[], object]
"""Raises UserError when something is wrong."""


class UserError(Exception):
    """Bad input: the message is one clear line that says what is wrong, where, and how to mend it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the nearest of the known names, or nothing when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""
