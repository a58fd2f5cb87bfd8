"""Errors for users to fix, as opposed to bugs, which keep their traceback."""

from model.secrets import without_secrets

LONGEST = 200
"""Most characters of a reason, which is only part of a line."""


class UserError(Exception):
    """Bad input: the message is one clear line that says what is wrong, where, and how to fix it, and never a secret."""

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))


def reason(problem: BaseException | str) -> str:
    """A problem in a few words, for the middle of a line: the system's message for an OSError, else the first line of its text.

    If it has no text, the name of its type. At most LONGEST characters.
    """
    system = getattr(problem, "strerror", None)  # of an OSError, whose text repeats number and path
    text = system if isinstance(system, str) and system else str(problem)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    first = next(filter(None, lines), type(problem).__name__)
    return first if len(first) <= LONGEST else f"{first[: LONGEST - 1]}…"
