"""Where the pairs of a run come from: its shards and its tokenizer, found and checked; no process group."""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.schema import Config, DataConfig
from trainer.data.look import Judge, Look, judge_image, judge_pair, look_at
from trainer.data.shapes.write import fewshot_folders, zeroshot_folders
from trainer.data.shards.captions import CaptionRule, check_captions
from trainer.data.shards.names import printable
from trainer.data.shards.opening import Remote, check_shard_cache
from trainer.data.shards.patterns import list_shards, name_some, shared_shards
from trainer.data.tokenizer import Tokenizer
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
    tokenizer = Tokenizer.load(path)
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


def check_training_data(config: Config) -> Shards:
    """The training shards, looked at. Raises UserError when one is missing, or none of the samples looked at can be used."""
    what = "data.train"
    check_shard_cache(config.data)
    shards = list_shards(config.data.train, what)
    look = look_at(shards, config.data, judge_pair)
    look.check_readable(what)
    check_captions(shards, CaptionRule.of(config.data), Remote.of(config.data))
    return _looked_at(what, shards, look)


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
