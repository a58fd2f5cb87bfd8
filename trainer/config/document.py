"""Every key of the configuration as Markdown: `python -m trainer.config.document > docs/configuration.md`."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

from omegaconf import ListConfig, OmegaConf

from trainer.config.compose import CONF, GROUPS
from trainer.config.keys import KEYS, Key
from trainer.config.schema import Config

HEAD = """\
# The configuration

Every key, in the order of the schema. Set one on the command line as `key=value`, choose from a group as `group=choice`:

    python -m trainer.train model=limoe_b16 data=webdataset 'data.train=/data/cc12m-{000000..001099}.tar' optim.lr=3e-4

The defaults in the tables are the schema's; a choice from a group, or an experiment, sets others. Without arguments the choices
are {chosen}. `null` is no value.
`--cfg job` shows what a command line comes to, and `run.dry=true` checks it and everything that it names.

**Paths** (marked *path*) may begin with `~` or `~user`, hold `$VARIABLE` of the environment (in single quotes), or begin with
`file://`; a relative one begins at the working directory. `pipe:` commands and URLs are left as they are.

**A checkpoint keeps its model**: keys marked *of the model* cannot be changed by a resume, by `init_from`, or in an evaluation,
since the same weights would be another function. Another value of one marked *of the pictures* is warned of.

<!-- Made by `make docs` from trainer/config/schema.py, model/config.py and conf/; edit those. -->
"""
NONE = "—"


def document() -> str:
    """The whole page."""
    chosen = ", ".join(f"`{group}={choice}`" for group, choice in _defaults(OmegaConf.load(CONF / "config.yaml")).items())
    groups = sorted(GROUPS, key=lambda name: name != "experiment")  # what a newcomer chooses first
    return "\n".join([HEAD.replace("{chosen}", chosen), *_sections(), "## Groups\n", *map(_group, groups)]).rstrip() + "\n"


def _sections() -> Iterator[str]:
    yield _section("The run as a whole", "", "")
    yield from _classes(Config, "")


def _classes(cls: type, prefix: str) -> Iterator[str]:
    for entry in fields(cls):
        if is_dataclass(entry.type):
            name = prefix + entry.name
            yield _section(f"`{name}`", f"{name}.", inspect.getdoc(entry.type) or "")
            yield from _classes(entry.type, f"{name}.")  # type: ignore[arg-type]


def _section(title: str, prefix: str, meaning: str) -> str:
    rows = [_row(key) for key in KEYS.values() if key.name.rpartition(".")[0] == prefix.removesuffix(".")]
    table = _table(["key", "type", "default", "allowed", "meaning"], rows)
    return "\n".join([f"## {title}\n", *([f"{meaning}\n"] if meaning else []), *table])


def _row(key: Key) -> list[str]:
    option = key.option
    allowed = " · ".join(f"`{choice}`" for choice in option.choices) or option.allowed or NONE
    notes = [
        note
        for note, holds in (("path", option.path), ("of the model", option.identity), ("of the pictures", option.prepares_input))
        if holds
    ]
    meaning = option.meaning + (f" *({', '.join(notes)})*" if notes else "")
    return [f"`{key.name}`", _type(key.kind), f"`{_value(key.default)}`", allowed, meaning]


def _type(kind: Any) -> str:
    """`float or null`, `list of int`."""
    if kind is Any:
        return "any"
    if get_origin(kind) is UnionType:
        return " or ".join("null" if part is type(None) else _type(part) for part in get_args(kind))
    if get_origin(kind) is list:
        return f"list of {_type(get_args(kind)[0])}"
    return {str: "text", bool: "true or false"}.get(kind, kind.__name__)


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, ListConfig)):
        return f"[{', '.join(map(_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _group(name: str) -> str:
    """What each choice of a group of conf/ is, and the keys that it sets; keys or choices across, whichever are fewer."""
    files = sorted((CONF / name).glob("*.yaml"))
    settings = {path.stem: _settings(path, "" if name == "experiment" else f"{name}.") for path in files}
    lines = [f"### `{name}=`\n", *(f"- `{path.stem}`: {_comment(path)}" for path in files), ""]
    order = [*GROUPS, *KEYS]
    keys = sorted({key for chosen in settings.values() for key in chosen} - {f"{name}.name"}, key=order.index)
    rows = [[f"`{choice}`", *(_cell(chosen.get(key)) for key in keys)] for choice, chosen in settings.items()]
    table = [["", *(f"`{key.removeprefix(f'{name}.')}`" for key in keys)], *rows]
    if len(keys) > len(rows):
        table = [list(column) for column in zip(*table, strict=True)]
    return "\n".join([*lines, *_table(table[0], table[1:])])


def _settings(path: Path, prefix: str) -> dict[str, str]:
    """Every key that a choice sets, and its value; groups that it chooses too."""
    values = OmegaConf.load(path)
    settings = {str(key): value for key, value in values.items() if key != "defaults"}
    return _defaults(values) | dict(_flat(settings, prefix))


def _defaults(values: Any) -> dict[str, str]:
    """What a file's defaults list chooses from the groups."""
    chosen: dict[str, str] = {}
    for entry in values.get("defaults", []):
        for name, choice in entry.items() if isinstance(entry, Mapping) else ():
            group = name.removeprefix("override ").removeprefix("/")
            if group in GROUPS and choice is not None:
                chosen[group] = str(choice)
    return chosen


def _flat(values: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _value(value)


def _comment(path: Path) -> str:
    """The sentences at the head of a file, without the command."""
    head = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith(("# @package", "#   ")):
            head.append(line.lstrip("# "))
    return " ".join(head)


def _cell(value: str | None) -> str:
    return NONE if value is None else f"`{value}`"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines), ""]


if __name__ == "__main__":
    print(document(), end="")
