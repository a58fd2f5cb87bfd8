"""Errors that are the user's to mend, as opposed to bugs, which keep their traceback."""

LONGEST = 200
"""Characters of a reason: it stands in the middle of a line."""


class UserError(Exception):
    """Bad input: the message is one clear line that says what is wrong, where, and how to mend it."""


def reason(problem: BaseException | str) -> str:
    """What a problem says, as a part of a line: the system's words for an OSError, else the first line of its text.

    The name of its type where it says nothing; no longer than LONGEST.
    """
    system = getattr(problem, "strerror", None)  # of an OSError, whose text repeats number and path
    text = system if isinstance(system, str) and system else str(problem)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    first = next(filter(None, lines), type(problem).__name__)
    return first if len(first) <= LONGEST else f"{first[: LONGEST - 1]}…"
