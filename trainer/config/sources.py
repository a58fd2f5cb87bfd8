"""The sources of the training pairs, as `data.train` names them: `{cc12m: {shards: /x/{000..999}.tar, weight: 2}, coco: …}`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from model.option import option
from trainer.config.keys import keys_of
from trainer.errors import UserError, did_you_mean

WHAT = "data.train"
MOST_SOURCES = 32  # each has curves of its own
SUM_TOLERANCE = 0.011  # of probabilities that a person has rounded


@dataclass
class SourceConfig:
    """How often the pairs of a source come, and what is a pair: `data.train={NAME: {shards: PATTERN, …}, …}`."""

    shards: Any = option(None, "its shards, in the forms of data.train", path=True)
    weight: float | None = option(
        None,
        "pairs from this source in relation to those from others with a weight; 1 if it has no epochs either",
        above=0,
        hint="leave the source out to draw nothing from it",
    )
    epochs: float | None = option(None, "passes over it in the whole run, instead of a weight", above=0)
    pairs: int | None = option(
        None, "how many pairs it has; null: estimated from a few shards, which takes local ones", at_least=1
    )
    replacement: bool = option(
        False, "draw shards with replacement, instead of each of them once in a pass; samples within a shard come once"
    )
    captions: Any = option(
        None,
        "the key of .json that holds the captions, or txt for the .txt; or several with probabilities, as in "
        "{caption:0.5,recaption:0.5}; null: as data.caption_key says",
    )
    classes: str | None = option(
        None,
        "for samples with .cls: a file with a class name per line, a folder with CLIP_benchmark's classnames.txt and prompts, or "
        "imagenet",
        path=True,
        filled=True,
    )
    templates: str | None = option(
        None,
        "prompts that make captions from class names: a file of them (`{c}` is the name), imagenet80 or simple; null: those of "
        "the folder in classes, else the name alone",
        path=True,
        filled=True,
    )
    min_side: int = option(0, "pixels of the shorter side that an image must have; smaller ones are left out", at_least=0)
    min_length: int = option(0, "characters that a caption must have; shorter ones are left out", at_least=0)


SOURCE_KEYS = {key.name: key for key in keys_of(SourceConfig)}


@dataclass(frozen=True)
class SourceOptions:
    """A source as it was asked for, checked by itself. what: its key, such as data.train.coco.

    name: "" for the source of a run that names none; captions: keys of .json (or txt) with their probabilities.
    """

    name: str
    what: str
    shards: Any
    weight: float | None = 1.0
    epochs: float | None = None
    pairs: int | None = None
    replacement: bool = False
    captions: tuple[tuple[str, float], ...] = ()
    classes: str | None = None
    templates: str | None = None
    min_side: int = 0
    min_length: int = 0


def read_sources(train: Any) -> list[SourceOptions]:
    """The sources that `data.train` names, in their order; a pattern or a list is one without a name.

    Raises UserError, with the key, for whatever is wrong in one of them by itself.
    """
    if not isinstance(train, Mapping):
        return [SourceOptions("", WHAT, train)]
    if not train:
        raise UserError(f"{WHAT} names no source: give shards, or {{NAME: {{shards: …, weight: 1}}, …}}")
    if SOURCE_KEYS.keys() >= {str(name) for name in train}:
        raise UserError(f"{WHAT} has the keys of a source, but no name for it: write {WHAT}={{NAME: {{shards: …}}}}")
    if len(train) > MOST_SOURCES:
        raise UserError(
            f"{WHAT} names {len(train)} sources, but at most {MOST_SOURCES} have curves of their own: join some of them"
        )
    names = [str(name) for name in train]
    if again := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{WHAT} names '{again}' twice: give each source a name of its own")
    return [_read_source(str(name), values) for name, values in train.items()]


def _read_source(name: str, values: Any) -> SourceOptions:
    what = f"{WHAT}.{name}"
    if not name or not all(character.isalnum() or character in "_-" for character in name):
        raise UserError(f"{WHAT}: '{name}' cannot be part of a metric's name: use letters, digits, - and _ to name a source")
    if not isinstance(values, Mapping):
        values = {"shards": values}  # the short form
    for key in map(str, values):
        if key not in SOURCE_KEYS:
            raise UserError(f"{what} has no key '{key}'{did_you_mean(key, SOURCE_KEYS)}; a source has {', '.join(SOURCE_KEYS)}")
    asked = _typed(what, values)
    for option_of in SOURCE_KEYS.values():
        if option_of.name != "shards" and (line := option_of.refusal(getattr(asked, option_of.name))) is not None:
            raise UserError(f"{WHAT}.{name}.{line}")
    if asked.shards is None:
        raise UserError(f"{what}.shards is not set: give shards such as /path/name-{{000..123}}.tar, or a directory of *.tar")
    if not _are_patterns(asked.shards):
        raise UserError(f"{what}.shards={asked.shards}: expected a shard pattern or a list of these")
    if asked.weight is not None and asked.epochs is not None:
        raise UserError(
            f"{what} has both weight={asked.weight:g} and epochs={asked.epochs:g}, which contradict each other: leave out one"
        )
    if asked.classes is None and asked.templates is not None:
        raise UserError(f"{what}.templates={asked.templates} needs class names: set classes too, or leave it out")
    if asked.classes is not None and asked.captions is not None:
        raise UserError(f"{what} has both captions and classes, but its captions come from one of them: leave out the other")
    return SourceOptions(
        name=name,
        what=what,
        shards=asked.shards,
        weight=1.0 if asked.weight is None and asked.epochs is None else asked.weight,
        epochs=asked.epochs,
        pairs=asked.pairs,
        replacement=asked.replacement,
        captions=_read_captions(what, asked.captions),
        classes=asked.classes,
        templates=asked.templates,
        min_side=asked.min_side,
        min_length=asked.min_length,
    )


def _typed(what: str, values: Mapping[Any, Any]) -> SourceConfig:
    asked: dict[str, Any] = {}
    for key, value in values.items():
        try:
            node = OmegaConf.merge(OmegaConf.structured(SourceConfig), {str(key): value})
            asked[str(key)] = getattr(OmegaConf.to_object(node), str(key))
        except OmegaConfBaseException as problem:
            raise UserError(f"{what}.{key}={value}: {str(problem).splitlines()[0]}") from None
    return SourceConfig(**asked)


def _are_patterns(shards: Any) -> bool:
    if isinstance(shards, Sequence) and not isinstance(shards, str):
        return all(map(_are_patterns, shards))
    return isinstance(shards, (str, Path))


def _read_captions(what: str, asked: Any) -> tuple[tuple[str, float], ...]:
    """Keys and their probabilities, which are made to sum to 1 exactly."""
    if asked is None:
        return ()
    if isinstance(asked, str) and asked.strip():
        return ((asked.strip(), 1.0),)
    if not isinstance(asked, Mapping) or not asked:
        raise UserError(
            f"{what}.captions={asked}: give a key of .json, txt, or several with probabilities, such as {{a:0.5,b:0.5}}"
        )
    for key, chance in asked.items():
        if isinstance(chance, bool) or not isinstance(chance, (int, float)) or not chance > 0:
            raise UserError(f"{what}.captions.{key}={chance} must be a probability above 0; leave out a key that is never wanted")
    total = sum(asked.values())
    if abs(total - 1) > SUM_TOLERANCE:
        scaled = ",".join(f"{key}:{chance / total:.3g}" for key, chance in asked.items())
        raise UserError(f"{what}.captions: the probabilities sum to {total:g}, not 1: use {{{scaled}}}, or others")
    return tuple((str(key), chance / total) for key, chance in asked.items())
