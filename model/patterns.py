"""Patterns for the names of parameters, as users write them: `towers.0.*`, `*.router.weight` (fnmatch, case-sensitive)."""

import difflib
import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from model.errors import UserError

NEAREST = 3


def first_fitting(name: str, patterns: Iterable[str]) -> str | None:
    """The first of the patterns that fits a name, None if none does."""
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def check_patterns(key: str, patterns: Iterable[str], names: Collection[str]) -> None:
    """Raise UserError for a pattern of a configuration's key that fits no parameter's name."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(dict.fromkeys(re.sub(r"\d+\..*|(?<=\.).*", "*", name) for name in names))
            nearest = ", ".join(difflib.get_close_matches(pattern, names, n=NEAREST, cutoff=0.0))
            raise UserError(f"{key}: no parameter has a name like '{pattern}'; there are {shown}, and the nearest are {nearest}")
