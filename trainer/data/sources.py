"""Where the pairs of a run come from: its shards and its tokenizer, found and checked; no process group."""

from copy import deepcopy
from pathlib import Path

from trainer.config.schema import Config
from trainer.data.shards.captions import CaptionRule, check_captions
from trainer.data.shards.patterns import list_shards
from trainer.data.tokenizer import Tokenizer
from trainer.errors import UserError, did_you_mean

KINDS = ("shapes", "webdataset")


def check_kind(config: Config) -> None:
    """Raise UserError when `data.kind` is none of KINDS."""
    kind = config.data.kind
    if kind not in KINDS:
        raise UserError(f"data.kind={kind}: choose {' or '.join(KINDS)}{did_you_mean(kind, KINDS)}")


def with_shapes(config: Config, folder: Path) -> Config:
    """A copy of the configuration that reads the embedded data set in `folder` wherever it names no data of its own."""
    located = deepcopy(config)
    located.data.train = located.data.train or f"{folder}/train-*.tar"
    located.data.val = located.data.val or f"{folder}/val-*.tar"
    if located.eval.zeroshot is None:
        located.eval.zeroshot = {"default": f"{folder}/zeroshot", "unseen": f"{folder}/zeroshot_unseen"}
    return located


def load_tokenizer(config: Config, path: Path) -> Tokenizer:
    """The run's tokenizer. Raises UserError when the model's table is too small for it."""
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocabulary > config.model.vocabulary:
        raise UserError(
            f"the tokenizer {config.data.tokenizer or path} has {tokenizer.vocabulary} pieces, but model.vocabulary="
            f"{config.model.vocabulary}: set model.vocabulary={tokenizer.vocabulary}"
        )
    return tokenizer


def check_training_data(config: Config) -> list[str]:
    """The training shards. Raises UserError when one is missing, or they hold no captions."""
    shards = list_shards(config.data.train, "data.train")
    check_captions(shards, CaptionRule.of(config.data))
    return shards
