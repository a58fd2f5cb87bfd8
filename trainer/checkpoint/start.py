"""The weights of another run as the start of a new one (`init_from`): what can be used, how, and what is said about it.

Positions, patches and tables are fitted (model.adapt), and MLPs become experts (model.upcycle), where the new model asks for it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.adapt import KERNEL, PATCHES, TABLE, WORDS, Adaptation, check_blocks, same_blocks
from model.config import ModelConfig, RouterConfig
from model.limoe import LIMoE
from model.paths import user_path
from model.peers import Peers
from model.upcycle import copies, upcycle
from trainer.checkpoint.files import CONFIG, TOKENIZER
from trainer.checkpoint.identity import OF_EXPERTS, check_identity, warn_of_other_pictures
from trainer.checkpoint.load import load_state
from trainer.config.schema import Config
from trainer.config.stored import stored_config
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


@dataclass(frozen=True)
class Start:
    """A checkpoint as the start of the model of a configuration. router: the one that the checkpoint was trained with."""

    checkpoint: Path
    config: Config
    router: RouterConfig
    adaptation: Adaptation

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
        return self.adaptation.changes_nothing and not self.upcycled

    def unfilled(self, peers: Peers | None = None) -> LIMoE:
        """The checkpoint's model, without values."""
        return LIMoE.without_values(self.source, self.router, peers)

    def load(self, model: LIMoE, sharding: ExpertSharding | None, peers: Peers | None = None) -> None:
        """Give a new, initialised model the weights. A collective.

        Each tensor is read by one rank and passed to the others. Raises UserError for a damaged checkpoint.
        """
        state = load_state(self.checkpoint, self.unfilled(peers), sharding, (WEIGHTS,))
        fitted = self.adaptation.tensors(state.tensors(WEIGHTS), named_tensors(model))
        upcycle(model, fitted, self.config.upcycle_noise, self.config.seed)

    def rows(self) -> list[tuple[str, str]]:
        """What the new model takes from the checkpoint, what is changed or multiplied, and what is new, as (what, value) rows."""
        return list(_rows(self))


def start_from(checkpoint: Path, config: Config, otherwise: str) -> Start:
    """How the model of a configuration starts from a checkpoint.

    `otherwise`: what to do if that is not what is wanted. Raises UserError for a checkpoint of a model that cannot be fitted.
    """
    trained = stored_config(checkpoint / CONFIG, []) if (checkpoint / CONFIG).is_file() else config
    source, target = trained.model, config.model
    if source.towers == 2 and target.expert_layers:
        raise UserError(
            f"checkpoint {checkpoint} has two towers, which cannot become the one tower of a model with experts: start from a "
            f"dense run with model.towers=1, or {otherwise}"
        )
    adaptation = Adaptation(source, target, _blocks(checkpoint, source, config, otherwise), _same_pieces(checkpoint, config))
    start = Start(checkpoint, config, trained.router, adaptation)
    if start.upcycled:
        _check_upcycling(checkpoint, target, otherwise)
    check_identity(checkpoint, config, otherwise, free=FITTED if source.expert_layers else (*FITTED, *OF_EXPERTS))
    warn_of_other_pictures(checkpoint, config)
    return start


def _blocks(checkpoint: Path, source: ModelConfig, config: Config, otherwise: str) -> tuple[int | None, ...]:
    """The source's block that each block of the configuration's model starts from."""
    if not config.init_blocks and source.layers != config.model.layers:
        example = [str(block) if block < source.layers else "null" for block in range(config.model.layers)]
        raise UserError(
            f"checkpoint {checkpoint} has {source.layers} blocks, but model.layers={config.model.layers}: say which of them each "
            f"block starts from, as in init_blocks=[{','.join(example)}]; or use model.layers={source.layers}, or {otherwise}"
        )
    blocks = tuple(config.init_blocks) or same_blocks(source.layers)
    problem = check_blocks(blocks, source, config.model)
    if problem is None:
        return blocks
    if not config.init_blocks:
        had = ",".join(map(str, source.expert_layers))
        raise UserError(
            f"checkpoint {checkpoint} has experts in the blocks [{had}], and experts cannot become one MLP: {problem}; "
            f"use model.expert_layers=[{had}], or more blocks than these, or {otherwise}"
        )
    shown = ",".join("null" if block is None else str(block) for block in blocks)
    raise UserError(f"init_blocks=[{shown}] does not fit {checkpoint}: {problem}")


def _same_pieces(checkpoint: Path, config: Config) -> bool:
    """Whether the new run has the checkpoint's tokenizer."""
    if config.data.tokenizer is None or not (checkpoint / TOKENIZER).is_file():
        return True
    given = user_path(config.data.tokenizer)
    return not given.is_file() or given.read_bytes() == (checkpoint / TOKENIZER).read_bytes()


def _check_upcycling(checkpoint: Path, model: ModelConfig, otherwise: str) -> None:
    """Raise UserError when experts of this kind cannot start as copies of MLPs."""
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
    given = {own_name: value for name, value in named_tensors(start.unfilled()).items() for own_name in adaptation.names(name)}
    changed = {name for name in (PATCHES, KERNEL, WORDS, TABLE) if given[name].shape != own[name].shape}
    if not adaptation.same_pieces:
        changed.add(TABLE)
    taken = [value for name, value in given.items() if name in own and name not in changed]
    yield "taken as it is", f"{_count(taken)}" + (": everything but the MLPs below" if start.upcycled and not changed else "")
    if adaptation.blocks != same_blocks(start.source.layers):
        yield "blocks", ", ".join(_block(number, source) for number, source in enumerate(adaptation.blocks))
    yield from _fitted_rows(start, changed)
    if not adaptation.same_loss:
        yield _new_logits(config.model)
    new = [value for name, value in own.items() if name not in given and name not in copy_of.values()]
    routers = ""
    if start.upcycled:
        blocks = ", ".join(map(str, start.upcycled))
        noise = f", with noise of {config.upcycle_noise:g} standard deviations" if config.upcycle_noise else ""
        mlps = _count(given[name] for name in copy_of if name in given)
        yield f"copied into {config.model.experts} experts each", f"{mlps}: the MLPs of blocks {blocks}{noise}"
        routers = f": the routers of blocks {blocks}"
    yield "new", (f"{_count(new)}{routers}; " if new else "") + "the optimizer"
    if start.upcycled:
        yield "at the start", _start(config)


def _block(number: int, source: int | None) -> str:
    return f"{number} is new" if source is None else f"{number} from {source}"


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
