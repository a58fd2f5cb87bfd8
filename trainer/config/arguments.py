"""The arguments of all commands except training, in one form: `run=DIR`, `--run=DIR` and `--run DIR` are the same."""

import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trainer.config.compose import GROUPS
from trainer.config.keys import KEYS
from trainer.errors import UserError, did_you_mean, either
from trainer.output import reader_may_leave

WIDTH = 100
HELP = {"-h", "--help"}


@dataclass(frozen=True)
class Argument:
    """`name=VALUE`. choices: the allowed values, if they are limited."""

    name: str
    value: str
    meaning: str
    required: bool = False
    choices: tuple[str, ...] = ()

    @property
    def form(self) -> str:
        """`run=DIR`, as help and errors write it."""
        return f"{self.name}={self.value}"


@dataclass(frozen=True)
class Given:
    """A command line as read: values of the command's own arguments, and overrides `key=value` of the configuration."""

    values: dict[str, str]
    overrides: list[str]


@dataclass(frozen=True)
class Command:
    """`python -m MODULE arguments`."""

    module: str
    does: str
    """What it is for, in a few sentences."""
    arguments: tuple[Argument, ...] = ()
    overrides: str = ""
    """What `key=value` changes, if the command takes keys of the configuration."""
    word: str = ""
    """The argument that a word without a key stands for."""
    several: bool = False
    """Whether there may be several such words, which are read as one list with commas."""

    @property
    def usage(self) -> str:
        """`python -m trainer.evaluate run=DIR [weights=KIND] [key=value ...]`"""
        forms = [argument.form if argument.required else f"[{argument.form}]" for argument in self.arguments]
        return " ".join(["python -m", self.module, *forms, *(["[key=value ...]"] if self.overrides else [])])

    def help(self) -> str:
        """What -h prints."""
        rows = [(argument.form, argument.meaning) for argument in self.arguments]
        if self.overrides:
            rows.append(("key=value", f"{self.overrides}; every key is explained in docs/configuration.md"))
        rows.append(("-h, --help", "this text"))
        width = max(len(form) for form, _ in rows) + 4
        table = [textwrap.fill(f"  {form:<{width - 2}}{meaning}", WIDTH, subsequent_indent=" " * width) for form, meaning in rows]
        same = "A key can be written in three ways: key=value, --key=value and --key value."
        if self.word:
            same += f" Words on their own are the {self.word}." if self.several else f" A word on its own is the {self.word}."
        return "\n".join([textwrap.fill(self.does, WIDTH), "", f"usage: {self.usage}", "", *table, "", same])

    def read(self, arguments: list[str]) -> Given:
        """What a command line means; prints the help and ends the program when it asks for that.

        Raises UserError for what is unknown, with the nearest name, for what is missing, has no value, or is given twice.
        """
        if HELP & set(arguments):
            with reader_may_leave():
                print(self.help())
            sys.exit(0)
        own = {argument.name: argument for argument in self.arguments}
        given = Given({}, [])
        for key, value, typed in self._pairs(arguments):
            if key not in own:
                given.overrides.append(typed if self._is_deletion(typed) else f"{key}={value}")
            elif key in given.values and self.several and typed == value:
                given.values[key] += f",{value}"
            elif key in given.values:
                raise UserError(f"'{typed}': {key} is given twice; {self.usage}")
            else:
                self._check(own[key], value)
                given.values[key] = value
        missing = [argument for argument in self.arguments if argument.required and argument.name not in given.values]
        if missing:
            raise UserError(f"{missing[0].form} is missing ({missing[0].meaning}): {self.usage}")
        return given

    def _pairs(self, arguments: Iterable[str]) -> Iterator[tuple[str, str, str]]:
        """Key, value, and what was typed."""
        remaining = iter(arguments)
        for argument in remaining:
            if argument == "--":  # as other programs have it before names; here it may stand anywhere
                continue
            if self._is_deletion(argument):
                yield argument, "", argument
                continue
            key, equals, value = argument.lstrip("-").partition("=") if argument.startswith("--") else argument.partition("=")
            if not equals and self.word and not argument.startswith("-") and not self._is_key(key):
                key, equals, value = self.word, "=", argument
            self._check_key(key, argument)
            if not equals and argument.startswith("--"):
                value = next(remaining, "")
            is_own = key in [argument.name for argument in self.arguments]
            if value.startswith("--") or not (value or equals) or (not value and is_own):
                raise UserError(f"'{argument}': {key} has no value; write {key}=VALUE")
            yield key, value, argument

    def _is_deletion(self, argument: str) -> bool:
        """Whether it is `~key`, which the configuration refuses with its reason, and no path such as `~/runs/first`."""
        sections = {name.partition(".")[0] for name in (*KEYS, *GROUPS)}
        return bool(self.overrides) and argument[:1] == "~" and argument[1:].partition("=")[0].partition(".")[0] in sections

    def _is_key(self, name: str) -> bool:
        return name in [argument.name for argument in self.arguments] or (bool(self.overrides) and name in KEYS)

    def _check_key(self, key: str, argument: str) -> None:
        known = [argument.name for argument in self.arguments]
        if self.overrides:
            known += [*KEYS, *GROUPS]
            section = key.lstrip("+~").partition(".")[0]
            if section in {name.partition(".")[0] for name in known}:
                return  # the configuration reports what is wrong in it, such as a mistyped key in a section
        if key not in known:
            raise UserError(f"'{argument}': {self.module} has no '{key}'{did_you_mean(key, known)}: {self.usage}")

    @staticmethod
    def _check(argument: Argument, value: str) -> None:
        if argument.choices and value not in argument.choices:
            raise UserError(f"{argument.name}={value}: choose {either(argument.choices)}{did_you_mean(value, argument.choices)}")
