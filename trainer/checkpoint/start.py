"""The weights of another run, or of a model from elsewhere, as the start of a new one (`init_from`): how, and what is said of it.

Positions, patches and tables are fitted (model.adapt), and MLPs become experts (model.upcycle), where the new model asks for it.
"""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from model.adapt import KERNEL, PATCHES, TABLE, WORDS, Adaptation, check_blocks, same_blocks
from model.config import ModelConfig, RouterConfig
from model.limoe import LIMoE
from model.paths import user_path
from model.peers import Peers
from model.upcycle import copies, upcycle
from trainer.checkpoint.exported import read_exported
from trainer.checkpoint.files import CONFIG, TOKENIZER
from trainer.checkpoint.identity import OF_EXPERTS, compared_with, refuse_other_model, tell_other_pictures
from trainer.checkpoint.load import load_state
from trainer.checkpoint.outside import Outside, read_outside
from trainer.config.keys import KEYS, value_of
from trainer.config.schema import Config
from trainer.config.stored import stored_config
from trainer.data.tokenizer import CLIP, Tokenizer, given_tokenizer
from trainer.engine.state import WEIGHTS, ExpertSharding, named_tensors
from trainer.errors import UserError

FITTED = (
    "model.image_size",
    "model.patch",
    "model.text_length",
    "model.vocabulary",
    "model.layers",
    "model.expert_layers",
    "model.loss",
)
"""Keys of the model that may differ from those of the run it starts from."""
OF_TEXT_TOWER = (
    "model.towers",
    "model.text_width",
    "model.text_mlp",
    "model.text_heads",
    "model.text_layers",
    "model.text_activation",
    "model.text_mask",
)
"""And where two towers become one, which takes the images': it reads texts in its own way."""


@dataclass(frozen=True)
class Start:
    """A checkpoint as the start of the model of a configuration. router: the one that the checkpoint was trained with.

    outside: the file of weights that it is, if it is none of our checkpoints: from elsewhere, or of an export.
    """

    checkpoint: Path
    config: Config
    router: RouterConfig
    adaptation: Adaptation
    outside: Outside | None = None

    @property
    def source(self) -> ModelConfig:
        """The checkpoint's model."""
        return self.adaptation.source

    @property
    def upcycled(self) -> list[int]:
        """The blocks whose experts start as copies of an MLP."""
        blocks, source = self.adaptation.blocks, self.source
        return [
            own
            for own in sorted(self.config.model.expert_layers)
            if blocks[own] is not None and blocks[own] not in source.expert_layers
        ]

    @property
    def is_as_it_was(self) -> bool:
        """Whether the new model is the checkpoint's, tensor by tensor."""
        return self.outside is None and self.adaptation.changes_nothing and not self.upcycled

    def unfilled(self, peers: Peers | None = None) -> LIMoE:
        """The checkpoint's model, without values."""
        return LIMoE.without_values(self.source, self.router, peers)

    def load(self, model: LIMoE, sharding: ExpertSharding | None, peers: Peers | None = None) -> None:
        """Give a new, initialised model the weights. A collective.

        Each tensor is read by one rank and passed to the others. Raises UserError for a damaged checkpoint.
        """
        fitted = self.adaptation.tensors(self._tensors(sharding, peers), named_tensors(model))
        upcycle(model, fitted, self.config.upcycle_noise, self.config.seed)

    def _tensors(self, sharding: ExpertSharding | None, peers: Peers | None) -> Iterator[tuple[str, Tensor]]:
        if self.outside is not None:
            return self.outside.tensors(peers)
        return load_state(self.checkpoint, self.unfilled(peers), sharding, (WEIGHTS,)).tensors(WEIGHTS)

    def tokenizer(self) -> bytes:
        """The tokenizer that the weights were trained with. Raises UserError if there is none."""
        if self.outside is None:
            return (self.checkpoint / TOKENIZER).read_bytes()
        found = self.outside.tokenizer_model()
        if found is None:
            word = f"data.tokenizer={CLIP}, or " if self.outside.kind == "CLIP" else ""
            raise UserError(
                f"init_from={self.checkpoint}: there is no {self.outside.tokenizer_name} beside it; set {word}"
                f"data.tokenizer=PATH to that of this model"
            )
        return found

    def rows(self) -> list[tuple[str, str]]:
        """What the new model takes from the checkpoint, what is changed or multiplied, and what is new, as (what, value) rows."""
        return list(_rows(self))


def start_from(checkpoint: Path, config: Config, otherwise: str) -> Start:
    """How the model of a configuration starts from a checkpoint.

    `otherwise`: what to do if that is not what is wanted. Raises UserError for a checkpoint of a model that cannot be fitted.
    """
    trained = stored_config(checkpoint / CONFIG, []) if (checkpoint / CONFIG).is_file() else config
    compared, described = compared_with(checkpoint, config), str(checkpoint / CONFIG)
    _check_same(f"checkpoint {checkpoint}", trained.model, config, compared, otherwise, FITTED, described)
    blocks = _blocks(f"checkpoint {checkpoint}", trained.model, config, otherwise)
    adaptation = Adaptation(trained.model, config.model, blocks, _same_pieces(checkpoint, config))
    start = Start(checkpoint, config, trained.router, adaptation)
    _check_upcycling(start, otherwise)
    return start


def start_from_outside(path: Path, config: Config, otherwise: str) -> Start:
    """How the model of a configuration starts from a file of weights from elsewhere.

    `otherwise`: as of start_from. Raises UserError for a file of anything else, and for a model that cannot be fitted.
    """
    outside = read_outside(path, config.model, config.router)
    fitted = [name for name in FITTED if config.init_blocks or name != "model.layers"]
    start = _start_from_file(path, outside, config.router, config, otherwise, fitted, _same_pieces_outside(outside, config))
    if config.data.tokenizer is None:
        Tokenizer(start.tokenizer())
    return start


def start_from_export(folder: Path, config: Config, otherwise: str) -> Start:
    """How the model of a configuration starts from an export of ours.

    `otherwise`: as of start_from. Raises UserError for a part of a model, and for a model that cannot be fitted.
    """
    exported = read_exported(folder)
    return _start_from_file(folder, exported, exported.router, config, otherwise, FITTED, _same_pieces(folder, config))


def _start_from_file(
    path: Path, weights: Outside, router: RouterConfig, config: Config, otherwise: str, fitted: Iterable[str], same_pieces: bool
) -> Start:
    """From weights that are in none of our checkpoints. router: theirs; fitted: see _check_same; same_pieces: see Adaptation."""
    trained = deepcopy(config)
    trained.model, trained.router = weights.source, router
    trained.data.mean, trained.data.std = weights.pixels["mean"], weights.pixels["std"]
    compared = {name: (value_of(trained, name), value_of(config, name)) for name in KEYS}
    _check_same(str(path), weights.source, config, compared, otherwise, fitted)
    blocks = _blocks(str(path), weights.source, config, otherwise)
    start = Start(path, config, router, Adaptation(weights.source, config.model, blocks, same_pieces), weights)
    _check_upcycling(start, otherwise)
    return start


def _check_same(
    what: str,
    source: ModelConfig,
    config: Config,
    compared: Mapping[str, tuple[Any, Any]],
    otherwise: str,
    fitted: Iterable[str],
    described: str = "",
) -> None:
    """Raise UserError where the new model is another, and warn of other images.

    compared: of the source's configuration and the new, by key; fitted: keys that may differ; described: see refuse_other_model.
    """
    free = [*fitted, *(() if source.expert_layers else OF_EXPERTS)]
    if source.towers > config.model.towers:
        free += OF_TEXT_TOWER
    try:
        refuse_other_model(what, compared, otherwise, free, described)
    except UserError:
        # All at once: whoever sets what is named, is not to be told next that the blocks do not fit.
        lost = not set(source.expert_layers) <= set(config.model.expert_layers)
        blocks = {"model.layers", *(["model.expert_layers"] if lost else [])} if not config.init_blocks else set()
        refuse_other_model(what, compared, otherwise, [name for name in free if name not in blocks], described)
        raise
    tell_other_pictures(what, compared)


def _blocks(what: str, source: ModelConfig, config: Config, otherwise: str) -> tuple[int | None, ...]:
    """The source's block that each block of the configuration's model starts from."""
    if not config.init_blocks and source.layers != config.model.layers:
        example = [str(block) if block < source.layers else "null" for block in range(config.model.layers)]
        raise UserError(
            f"{what} has {source.layers} blocks, but model.layers={config.model.layers}: say which of them each "
            f"block starts from, as in init_blocks=[{','.join(example)}]; or use model.layers={source.layers}, or {otherwise}"
        )
    blocks = tuple(config.init_blocks) or same_blocks(source.layers)
    problem = check_blocks(blocks, source, config.model)
    if problem is None:
        return blocks
    if not config.init_blocks:
        had = ",".join(map(str, source.expert_layers))
        raise UserError(
            f"{what} has experts in the blocks [{had}], and experts cannot become one MLP: {problem}; "
            f"use model.expert_layers=[{had}], or more blocks than these, or {otherwise}"
        )
    shown = ",".join("null" if block is None else str(block) for block in blocks)
    raise UserError(f"init_blocks=[{shown}] does not fit {what}: {problem}")


def _same_pieces(checkpoint: Path, config: Config) -> bool:
    """Whether the new run has the checkpoint's tokenizer."""
    if config.data.tokenizer is None or not (checkpoint / TOKENIZER).is_file():
        return True
    if config.data.tokenizer == CLIP:
        return given_tokenizer(CLIP).model == (checkpoint / TOKENIZER).read_bytes()
    given = user_path(config.data.tokenizer)
    return not given.is_file() or given.read_bytes() == (checkpoint / TOKENIZER).read_bytes()


def _same_pieces_outside(outside: Outside, config: Config) -> bool:
    """Whether the new run has the tokenizer of a model from elsewhere: another of as many pieces is taken for that one."""
    return config.data.tokenizer is None or given_tokenizer(config.data.tokenizer).vocabulary == outside.source.vocabulary


def _check_upcycling(start: Start, otherwise: str) -> None:
    """Raise UserError when experts of this kind cannot start as copies of MLPs."""
    checkpoint, model = start.checkpoint, start.config.model
    if not start.upcycled:
        return
    for key, value, plain in (
        ("model.expert_granularity", model.expert_granularity, 1),
        ("model.shared_experts", model.shared_experts, 0),
    ):
        if value != plain:
            raise UserError(
                f"{key}={value} cannot start from the dense run {checkpoint}: experts start as copies of whole MLPs, one for "
                f"each, and nothing else may be added to them; use {key}={plain}, or {otherwise}"
            )


def _rows(start: Start) -> Iterable[tuple[str, str]]:
    config, adaptation = start.config, start.adaptation
    model = LIMoE.without_values(config.model, config.router)
    copy_of = copies(model)
    own = named_tensors(model)
    source = named_tensors(start.unfilled())
    given = {own_name: value for name, value in source.items() for own_name in adaptation.names(name)}
    changed = {name for name in (PATCHES, KERNEL, WORDS, TABLE) if name in given and given[name].shape != own[name].shape}
    if not adaptation.same_pieces:
        changed.add(TABLE)
    if start.outside is not None:
        yield from _outside_rows(start.outside)
    taken = [value for name, value in given.items() if name in own and name not in changed]
    yield (
        "taken as it is",
        f"{_count(taken)}"
        + (": everything but the MLPs below" if start.upcycled and not changed and not adaptation.joins_towers else ""),
    )
    if adaptation.blocks != same_blocks(start.source.layers):
        yield "blocks", ", ".join(_block(number, source) for number, source in enumerate(adaptation.blocks))
    yield from _fitted_rows(start, changed)
    if not adaptation.same_loss:
        yield _new_logits(config.model)
    if adaptation.joins_towers:
        left = {name: value for name, value in source.items() if not adaptation.names(name)}
        tokens = "" if TABLE in given else f", and its tokens, {start.source.text_tower.width} wide"
        yield "left out", f"{_count(left.values())}: the texts' tower, its projection{tokens}"
    new = [value for name, value in own.items() if name not in given and name not in copy_of.values()]
    routers = ""
    if start.upcycled:
        blocks = ", ".join(map(str, start.upcycled))
        noise = f", with noise of {config.upcycle_noise:g} standard deviations" if config.upcycle_noise else ""
        mlps = _count(given[name] for name in copy_of if name in given)
        yield f"copied into {config.model.experts} experts each", f"{mlps}: the MLPs of blocks {blocks}{noise}"
        routers = f": the routers of blocks {blocks}"
        if adaptation.joins_towers:
            routers += ", and the projection of texts" + ("" if TABLE in given else " and their tokens")
    yield "new", (f"{_count(new)}{routers}; " if new else "") + "the optimizer"
    if start.upcycled:
        yield "at the start", _start(config)
    if adaptation.joins_towers:
        yield "texts", "pass the tower of the images, which was not trained on any: their embeddings say nothing at the start"


def _block(number: int, source: int | None) -> str:
    return f"{number} is new" if source is None else f"{number} from {source}"


def _outside_rows(outside: Outside) -> Iterable[tuple[str, str]]:
    """What the weights from elsewhere are, and what about them had to be taken on trust."""
    yield "read", f"{outside.kind}, from {outside.path.name}"
    if outside.assumed:
        assumed = " ".join(f"model.{name}={getattr(outside.source, name)}" for name in outside.assumed)
        yield "as the run has it", f"{assumed}: the file does not say"


def _fitted_rows(start: Start, changed: set[str]) -> Iterable[tuple[str, str]]:
    """A row for each tensor that is fitted."""
    was, now = start.source, start.config.model
    if PATCHES in changed:
        before, after = was.image_size // was.patch, now.image_size // now.patch
        yield "positions of patches", f"{before} x {before} interpolated to {after} x {after}"
    if KERNEL in changed:
        yield "patch projection", f"{was.patch} x {was.patch} pixels resized to {now.patch} x {now.patch}"
    if WORDS in changed:
        yield "positions of text", _kept(was.text_length, now.text_length)
    if TABLE in changed:
        kept = _kept(was.vocabulary, now.vocabulary) if start.adaptation.same_pieces else "new, for another tokenizer"
        yield "token table", kept


def _new_logits(model: ModelConfig) -> tuple[str, str]:
    """The row of a scale and a bias that start anew."""
    start = f"new for model.loss={model.loss}, at {model.initial_scale:g}"
    if model.loss == "sigmoid":
        return "scale and bias of the logits", f"{start} and {model.initial_bias:g}"
    return "scale of the logits", start


def _kept(before: int, after: int) -> str:
    return f"the first {after} of {before}" if after < before else f"{before} taken, {after - before} new"


def _count(tensors: Iterable[Tensor]) -> str:
    return f"{sum(tensor.numel() for tensor in tensors):,} parameters"


def _start(config: Config) -> str:
    """How far the function of an upcycled model is the dense one's."""
    router = config.router
    if not router.normalise_gates:
        return (
            f"not the dense model: each expert's output is multiplied by its gate, which starts near "
            f"{0.5 if router.gates == 'sigmoid' else 1 / config.model.experts:.3g}; with router.normalise_gates=true it would be"
        )
    taken = "each token that an expert takes" if router.choice == "expert" else "each token that gets a slot"
    start = f"the dense model, for {taken}" if not config.upcycle_noise else f"near the dense model, for {taken}"
    if router.choice == "token" and router.top_k == 1:
        start += "; with router.top_k=1, normalised gates are all 1, and the router learns from the auxiliary losses alone"
    return start
