"""A folder of classification data in CLIP_benchmark's layout, read and checked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.text import clean_text
from trainer.data.shards.patterns import list_shards
from trainer.data.shards.remote.path import Place, named, place_of
from trainer.errors import UserError
from trainer.evaluation.wording import OWN, Wording, read_classes, read_names, read_prompts, read_templates, read_text

CLASSES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
ATTRIBUTES = "class_attributes.json"
RESERVED = ("top1", "top5", "mean_per_class", "chance", "images", "bad_samples", "bad_shards")


@dataclass(frozen=True)
class ClassificationSet:
    """classes: names in label order; templates: prompts with `{c}` for the name; attributes: one value per class."""

    classes: list[str]
    templates: list[str]
    attributes: dict[str, list[str]]
    shards: list[str]

    def prompts(self, names: Sequence[str] | None = None) -> list[str]:
        """Each class's name in each template, class by class; names: of some classes, None for all."""
        # Not str.format: a template may contain other braces.
        return [template.replace("{c}", name) for name in names or self.classes for template in self.templates]


def read_classification_set(folder: str | Path, what: str = "eval.zeroshot", wording: Wording = OWN) -> ClassificationSet:
    """Read FOLDER: the class names, the prompts, the attributes where there are any, and the list of test shards.

    what: the configuration key, for messages; wording: what replaces the folder's own class names or prompts. The shards are
    those of `FOLDER/test/`, else `FOLDER/test-*.tar`, else `FOLDER/*.tar` but for training shards.
    Raises UserError when anything is missing or malformed.
    """
    root = place_of(folder, what)
    if not root.is_dir():
        raise UserError(f"{what}: {root} is not a folder; give one with {CLASSES}, {TEMPLATES} and test shards")
    classes = read_names(root / CLASSES) if wording.classes is None else read_classes(wording.classes)
    templates = read_templates(root / TEMPLATES) if wording.prompts is None else read_prompts(wording.prompts)
    attributes = _read_attributes(root / ATTRIBUTES, len(classes))
    return ClassificationSet(classes, templates, attributes, list_shards(named(root), what))


def _read_attributes(path: Place, classes: int) -> dict[str, list[str]]:
    """The attributes, `{}` if there is no file."""
    if not path.is_file():
        return {}
    wanted = '{"colour": ["red", ... one value per class]}'
    try:
        attributes = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); write {wanted}") from error
    if not isinstance(attributes, dict) or not all(isinstance(values, list) for values in attributes.values()):
        raise UserError(f"{path} must map each attribute to a list: {wanted}")
    for name, values in attributes.items():
        if not name or name != clean_text(name) or "/" in name:
            raise UserError(f"{path}: an attribute is called {name!a}, which cannot be part of a metric's name; write {wanted}")
        if not all(isinstance(value, str | int | float) for value in values):
            raise UserError(f"{path}: a value of '{name}' is neither text nor a number; write {wanted}")
        if len(values) != classes:
            raise UserError(
                f"{path}: '{name}' has {len(values)} values for {classes} classes; give one per class, in label order"
            )
        if name in RESERVED:
            raise UserError(f"{path}: '{name}' is the name of a metric; call the attribute something else")
    return {name: [clean_text(str(value)) for value in values] for name, values in attributes.items()}
