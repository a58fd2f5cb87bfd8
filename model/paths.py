"""The same rule for every path that a user types."""

import os
import re
from pathlib import Path

from model.errors import UserError

_FILE = re.compile(r"file:(//(localhost)?(?=/))?")
_ELSEWHERE = re.compile(r"pipe:|[a-zA-Z][a-zA-Z0-9+.-]*://")
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


def is_elsewhere(text: str) -> bool:
    """Whether a text is a `pipe:` command or a URL rather than a path; `file:` URLs are paths."""
    return _ELSEWHERE.match(text) is not None and _FILE.match(text) is None


def expand(text: str, what: str = "") -> str:
    """A path as typed, with `~`, `~user`, `$VARIABLE` and a leading `file://` replaced; commands and URLs as they are.

    Relative paths stay relative to the working directory. `what` names the key in errors. Raises UserError for an unknown user or
    variable.
    """
    text = text.strip()
    if not text or is_elsewhere(text):
        return text
    asked = f"{what}={text}" if what else text
    text = _VARIABLE.sub(lambda found: _variable(found[1].strip("{}"), asked), _FILE.sub("", text, count=1))
    expanded = os.path.expanduser(text)  # noqa: PTH111  # pathlib's raises RuntimeError, and does not handle patterns
    if text.startswith("~") and expanded == text:
        user = text.partition("/")[0]
        raise UserError(f"{asked}: the home directory of '{user}' is unknown; write ./{text} for a file of this name")
    # `~/x/` and `a//b` are the directories `~/x` and `a/b`: two spellings must not be two runs.
    return expanded if is_elsewhere(expanded) else _tidy(expanded)


def user_path(text: str | os.PathLike[str], what: str = "") -> Path:
    """The path that a user means, as `expand` reads it. Raises UserError as `expand_local` does."""
    return Path(expand_local(os.fspath(text), what))


def expand_local(text: str, what: str = "") -> str:
    """`expand` where only a path makes sense. Raises UserError for a URL or command too, which would become a folder's name."""
    path = expand(text, what)
    if is_elsewhere(path):
        raise UserError(f"{what}={text}: a path is needed here" if what else f"{text}: a path is needed here")
    return path


def _variable(name: str, asked: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise UserError(f"{asked}: the environment variable ${name} is not set; export it, or write the full path")
    return value


def _tidy(path: str) -> str:
    """Without redundant slashes and `./`; `..` stays, because links may change its meaning."""
    tidy = str(Path(path))
    return f"./{tidy}" if tidy.startswith("~") else tidy  # it was `./~x`, a file of this name, and will be expanded again
