"""What classes are called and what is said about them: a set's own files, or others of the user's choice.

The prompts and class names that go by a word are read from the packages that publish them; none are copied here.
"""

import importlib.resources
import importlib.util
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from model.text import clean_text
from trainer.config.schema import EvalConfig
from trainer.data.shards.remote.path import Place
from trainer.data.text_files import decode_text, split_lines
from trainer.errors import UserError, check_extra, did_you_mean, reason

OPEN_CLIP_PROMPTS = {"imagenet80": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
"""CLIP's 80 prompts for ImageNet, and its authors' selection of seven of them, by their names in open_clip."""
OPEN_CLIP_CLASSES = {"imagenet": "IMAGENET_CLASSNAMES"}
BENCHMARK_PROMPTS = "datasets/en_zeroshot_classification_templates.json"
"""In CLIP_benchmark's package: the prompts of each data set."""


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


def read_prompts(asked: str) -> list[str]:
    """The prompts behind a word or in a file, each with `{c}` for the class name. Raises UserError where there are none."""
    what = f"eval.prompts={asked}"
    if asked in OPEN_CLIP_PROMPTS:
        return [template("{c}") for template in getattr(_of_open_clip(what), OPEN_CLIP_PROMPTS[asked])]
    if Path(asked).is_file():
        return read_templates(Path(asked))
    of_benchmark = _of_clip_benchmark()
    if asked in of_benchmark:
        return list(of_benchmark[asked])
    known = [*OPEN_CLIP_PROMPTS, *of_benchmark]
    more = "" if of_benchmark else ", and, with limoe-trainer[clip-benchmark], the names of CLIP_benchmark's data sets"
    raise UserError(f"{what} is no file and no word{did_you_mean(asked, known)}: the words are {', '.join(known)}{more}")


def read_classes(asked: str) -> list[str]:
    """The class names behind a word or in a file, in label order. Raises UserError where there are none."""
    what = f"eval.classes={asked}"
    if asked in OPEN_CLIP_CLASSES:
        return list(getattr(_of_open_clip(what), OPEN_CLIP_CLASSES[asked]))
    if Path(asked).is_file():
        return read_names(Path(asked))
    words = ", ".join(OPEN_CLIP_CLASSES)
    raise UserError(f"{what} is no file and no word{did_you_mean(asked, OPEN_CLIP_CLASSES)}: the words are {words}")


def read_names(path: Place) -> list[str]:
    """The class names in a file. Raises UserError when there are none, or one is empty."""
    names = _read_lines(path, "one class name per line, in label order")
    if "" in names:
        raise UserError(f"{path}: line {names.index('') + 1} is empty; every label needs a name")
    return names


def read_templates(path: Place) -> list[str]:
    """The prompts in a file. Raises UserError when there are none, or one has no place for the class name."""
    templates = [line for line in _read_lines(path, "one prompt per line, with {c} for the class name") if line]
    for template in templates:
        if "{c}" not in template:
            raise UserError(f"{path}: '{template}' does not say where the class name goes; write {{c}} there")
    return templates


def read_text(path: Place) -> str:
    """The text of a file. Raises UserError when it cannot be read."""
    try:
        return decode_text(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    except UserError as problem:
        raise UserError(f"{path} {problem}") from None


def _read_lines(path: Place, content: str) -> list[str]:
    """The lines, cleaned (model.text), empty ones at the beginning and the end left out; at least one."""
    if not path.is_file():
        raise UserError(f"{path} is missing; write {content}")
    lines = [clean_text(line) for line in split_lines(read_text(path))]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    if not lines:
        raise UserError(f"{path} is empty; write {content}")
    return lines


def _of_open_clip(what: str) -> ModuleType:
    """The module that has them, without the package around it, which would load torchvision and timm."""
    check_extra("open_clip", "open-clip", f"{what} needs open_clip_torch")
    package = importlib.util.find_spec("open_clip")
    assert package is not None and package.submodule_search_locations is not None  # just checked; it is a package
    spec = importlib.util.spec_from_file_location(
        "zero_shot_metadata", Path(package.submodule_search_locations[0]) / "zero_shot_metadata.py"
    )
    assert spec is not None and spec.loader is not None
    metadata = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(metadata)
    return metadata


def _of_clip_benchmark() -> dict[str, list[str]]:
    """By data set; empty without the package."""
    if importlib.util.find_spec("clip_benchmark") is None:
        return {}
    return dict(json.loads(importlib.resources.files("clip_benchmark").joinpath(BENCHMARK_PROMPTS).read_text("utf-8")))
