"""Labelled images in two parts: a probe learns from some of the training part and is judged on the test part."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.data.shards.patterns import HELD_OUT, PARTS, TRAINING, list_shards, name_some, part_of, shared_shards
from trainer.errors import UserError

BOTH = "{train: PATTERN, test: PATTERN}"


@dataclass(frozen=True)
class FewshotSet:
    """The shards of both parts; each sample has its class index in `.cls`."""

    train: list[str]
    test: list[str]


def fewshot_sets(fewshot: Any) -> dict[str, Any]:
    """`eval.fewshot` (null, a place, or names to places) as name to place; a name whose place is null is switched off.

    A place is a pattern as in `list_shards` that has both parts, or {train: PATTERN, test: PATTERN}. Raises UserError otherwise.
    """
    named = fewshot if isinstance(fewshot, Mapping) and not _is_place(fewshot) else {"default": fewshot}
    for name, place in named.items():
        if isinstance(place, Mapping) and _is_place(place) and set(place) == {"train", "test"}:
            continue
        if place is None or isinstance(place, str) or (isinstance(place, list | tuple) and place):
            continue
        raise UserError(f"{key_of(str(name))}={place}: give a folder with training and test shards, {BOTH}, or null")
    return {str(name): place for name, place in named.items() if place is not None}


def _is_place(value: Mapping[Any, Any]) -> bool:
    return bool(value) and set(value) <= {"train", "test"}


def key_of(name: str) -> str:
    """The configuration key of a set, for messages."""
    return "eval.fewshot" if name == "default" else f"eval.fewshot.{name}"


def read_fewshot_set(place: Any, what: str) -> FewshotSet:
    """The shards of a place, from the configuration key `what`.

    Raises UserError when a part is missing, or shares shards with the other: the probe would be judged on what it learned.
    """
    if isinstance(place, Mapping):
        found = FewshotSet(
            list_shards(place["train"], f"{what}.train", TRAINING), list_shards(place["test"], f"{what}.test", HELD_OUT)
        )
    else:
        found = _both_parts(place, what)
    shared = shared_shards(found.test, found.train)
    if shared:
        raise UserError(
            f"{what}: {len(shared)} of {len(found.test)} test shards are training shards of the probe too ({name_some(shared)}): "
            "give different ones"
        )
    return found


def _both_parts(place: Any, what: str) -> FewshotSet:
    parts = []
    for part, wanted in (("training", TRAINING), ("test", HELD_OUT)):
        try:
            parts.append(list_shards(place, what, wanted))
        except UserError as problem:
            raise UserError(f"{problem} (this is about the {part} part; {BOTH} would say where each is)") from None
    train, test = parts
    if set(train) & set(test):  # a pattern that names its shards gives them all, whichever part is asked for
        by_part: dict[str | None, list[str]] = {}
        for shard in train:
            by_part.setdefault(part_of(shard.split("/")), []).append(shard)
        train = by_part.get(TRAINING[0], [])
        test = next((by_part[part] for part in HELD_OUT if part in by_part), [])
        if not train or not test:
            words = " or ".join(f"'{PARTS[part][0]}'" for part in (*TRAINING, *HELD_OUT))
            raise UserError(
                f"{what}={place}: the shards' names do not say which are for training and which for testing "
                f"({words}): give {BOTH}"
            )
    return FewshotSet(train, test)
