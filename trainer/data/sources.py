"""Where the pairs of a run come from: its shards and its tokenizer, found and checked; no process group."""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from trainer.config.schema import Config, DataConfig
from trainer.config.sources import SourceOptions, read_sources
from trainer.data.look import Judge, Look, judge_image, judge_pair, look_at, spread
from trainer.data.order.mixture import Source
from trainer.data.shapes.write import fewshot_folders, zeroshot_folders
from trainer.data.shards.captions import CaptionRule, Labels, check_captions, has_key
from trainer.data.shards.names import printable
from trainer.data.shards.opening import Remote, check_shard_cache
from trainer.data.shards.patterns import list_shards, name_some, shared_shards
from trainer.data.survey import estimate_pairs
from trainer.data.tokenizer import Tokenizer
from trainer.data.wording import CLASSES, TEMPLATES, read_classes, read_names, read_prompts, read_templates
from trainer.errors import UserError, did_you_mean

_log = logging.getLogger(__name__)


def with_shapes(config: Config, folder: Path) -> Config:
    """A copy of the configuration that reads its embedded data set in `folder` wherever it names no data of its own."""
    located = deepcopy(config)
    located.data.train = located.data.train or f"{folder}/train-*.tar"
    located.data.val = located.data.val or f"{folder}/val-*.tar"
    of_kind = f"data.kind={config.data.kind}"
    located.eval.zeroshot = _without(located.eval.zeroshot, zeroshot_folders(config.data.kind, folder), "eval.zeroshot", of_kind)
    located.eval.fewshot = _without(located.eval.fewshot, fewshot_folders(config.data.kind, folder), "eval.fewshot", of_kind)
    return located


def _without(asked: Any, embedded: dict[str, str], what: str, of_kind: str) -> Any:
    """The embedded sets for null, without those that `{name: null}` switches off; anything else is the user's own."""
    only_off = isinstance(asked, Mapping) and bool(asked) and all(place is None for place in asked.values())
    if asked is not None and not only_off:
        return asked
    off = {str(name) for name in asked or ()}
    for name in off - embedded.keys():
        known = ", ".join(embedded)
        raise UserError(f"{what}.{name}=null: {of_kind} has no set of that name{did_you_mean(name, embedded)}; it has {known}")
    return {name: place for name, place in embedded.items() if name not in off}


def load_tokenizer(config: Config, path: Path) -> Tokenizer:
    """The run's tokenizer. Raises UserError when the model's table is too small for it."""
    return fitting(Tokenizer.load(path), config, path)


def fitting(tokenizer: Tokenizer, config: Config, path: str | Path) -> Tokenizer:
    """A tokenizer of the configuration's model. Raises UserError when the model's table is too small for it."""
    if tokenizer.vocabulary > config.model.vocabulary:
        raise UserError(
            f"the tokenizer {config.data.tokenizer or path} has {tokenizer.vocabulary} pieces, but model.vocabulary="
            f"{config.model.vocabulary}: set model.vocabulary={tokenizer.vocabulary}"
        )
    return tokenizer


@dataclass(frozen=True)
class Shards:
    """The shards that a configuration key names, and what was found in them."""

    what: str
    names: list[str]
    look: Look

    def told(self) -> str:
        """`20 shards, /x/0.tar … /x/19.tar: 32 captions in 32 of 32 samples of 8 shards looked at`"""
        count = len(self.names)
        first, last = printable(self.names[0]), printable(self.names[-1])
        ends = first if count == 1 else f"{first} … {last}"
        return f"{count} shard{'s' if count > 1 else ''}, {ends}: {self.look.told()}"


@dataclass(frozen=True)
class FoundSource:
    """A source of training pairs, found and looked at."""

    options: SourceOptions
    source: Source
    shards: Shards

    @cached_property
    def pairs(self) -> int | None:
        """In one pass: as the user says, or estimated, which reads some hundred samples of some shards; None if not known."""
        return self.options.pairs or estimate_pairs(self.source.shards, self.source.rule)


def check_training_data(config: Config) -> list[FoundSource]:
    """The sources of the training pairs, looked at.

    Raises UserError when a shard is missing, or none of the samples of a source that were looked at can be used.
    """
    check_shard_cache(config.data)
    found = [_check_source(config, options) for options in read_sources(config.data.train)]
    for index, first in enumerate(found):
        for second in found[index + 1 :]:
            if shared := shared_shards(second.source.shards, first.source.shards):
                _log.warning(
                    "%s and %s have %d shards in common, whose pairs come from both: %s",
                    *(first.options.what, second.options.what, len(shared), name_some(shared)),
                )
    return found


def all_shards(found: Sequence[FoundSource]) -> list[str]:
    """The shards of all sources, each once."""
    return list(dict.fromkeys(shard for each in found for shard in each.source.shards))


def _check_source(config: Config, options: SourceOptions) -> FoundSource:
    shards = list_shards(options.shards, f"{options.what}.shards" if options.name else options.what)
    rule = rule_of(config.data, options)
    look = look_at(shards, config.data, partial(judge_pair, rule=rule))
    look.check_readable(options.what)
    try:
        check_captions(shards, rule, Remote.of(config.data))
    except UserError as problem:
        raise (UserError(f"{options.what}: {problem}") if options.name else problem) from None
    _check_keys(options, shards, rule, Remote.of(config.data))
    return FoundSource(options, Source(options.name, shards, rule, options.replacement), _looked_at(options.what, shards, look))


def rule_of(data: DataConfig, options: SourceOptions) -> CaptionRule:
    """What makes a pair of a source's samples. Raises UserError for class names or prompts that cannot be read."""
    rule = replace(CaptionRule.of(data), min_side=options.min_side, min_length=options.min_length)
    if options.classes is None:
        return replace(rule, chances=options.captions)
    return replace(rule, labels=_labels(options, options.classes))


def _labels(options: SourceOptions, place: str) -> Labels:
    of_classes, of_templates = f"{options.what}.classes", f"{options.what}.templates"
    folder = Path(place)
    names = read_names(folder / CLASSES) if folder.is_dir() else read_classes(place, of_classes)
    if options.templates is not None:
        return Labels(names, read_prompts(options.templates, of_templates))
    own = folder / TEMPLATES
    return Labels(names, read_templates(own) if folder.is_dir() and own.is_file() else ["{c}"])


def _check_keys(options: SourceOptions, shards: list[str], rule: CaptionRule, remote: Remote) -> None:
    """Raise UserError for a caption key that none of the first samples has."""
    if len(rule.chances) < 2:
        return  # checked as the only one
    missing = [key for key, _ in rule.chances if not has_key(spread(shards), key, rule, remote)]
    if missing:
        raise UserError(
            f"{options.what}.captions: none of the first samples has a caption under '{missing[0]}'; name keys of .json, or txt "
            f"for the .txt"
        )


def check_evaluation_data(
    what: str, shards: list[str], training: Sequence[str], data: DataConfig, judge: Judge = judge_image
) -> Shards:
    """Evaluation shards of a configuration key, looked at.

    Raises UserError when some of them are training shards, or none of the samples looked at can be used.
    """
    check_apart(what, shards, training)
    return _looked_at(what, shards, look_at(shards, data, judge))


def check_apart(what: str, shards: Sequence[str], training: Sequence[str]) -> None:
    """Raise UserError when some evaluation shards are training shards, under any name: a result on them means nothing."""
    shared = shared_shards(shards, training)
    if shared:
        raise UserError(
            f"{what}: {len(shared)} of {len(shards)} evaluation shards are training shards too ({name_some(shared)}): "
            "evaluate on others (after training, python -m trainer.evaluate accepts any)"
        )


def _looked_at(what: str, shards: list[str], look: Look) -> Shards:
    look.check_usable(what)
    if doubts := look.doubts():
        _log.warning("%s: some of the samples looked at cannot be used: %s", what, doubts)
    return Shards(what, shards, look)
