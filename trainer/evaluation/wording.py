"""What classes are called and what is said about them: a set's own files, or others of the user's choice."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config.schema import EvalConfig
from trainer.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Wording:
    """A word or a file for the prompts and the class names of a set; None: the set's own file."""

    prompts: str | None = None
    classes: str | None = None


OWN = Wording()


class Wordings:
    """What `eval.prompts` and `eval.classes` say about classification sets."""

    def __init__(self, asked: EvalConfig, sets: Collection[str] = ()) -> None:
        """sets: the names of all sets, if they are known.

        Raises UserError for a value that means nothing, and for the name of no set.
        """
        self._asked = asked
        for what, value in (("eval.prompts", asked.prompts), ("eval.classes", asked.classes)):
            _check(value, what, sets)

    def of(self, name: str) -> Wording:
        """That of one set."""
        return Wording(_of_set(self._asked.prompts, name), _of_set(self._asked.classes, name))


def _check(asked: Any, what: str, sets: Collection[str]) -> None:
    for value in asked.values() if isinstance(asked, Mapping) else [asked]:
        if value is not None and not (isinstance(value, str) and value):
            raise UserError(f"{what}: {value!r} is neither a word nor a file; give one, {{set: word or file}}, or null")
    for name in map(str, asked if isinstance(asked, Mapping) else ()):
        if sets and name not in sets:
            known = ", ".join(sets)
            raise UserError(f"{what}.{name}: no classification set is called that{did_you_mean(name, sets)}; there are: {known}")


def _of_set(asked: Any, name: str) -> str | None:
    return {str(of_set): value for of_set, value in asked.items()}.get(name) if isinstance(asked, Mapping) else asked
