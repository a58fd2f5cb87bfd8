"""What a command line of `trainer.export` asks for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from model.paths import user_path
from model.stream import MODALITIES
from trainer.checkpoint.files import complete_checkpoints
from trainer.checkpoint.load import WEIGHTS_ARGUMENT, check_weights, checkpoint_of, reading
from trainer.config.arguments import Argument, Command
from trainer.config.schema import Config
from trainer.engine.state import WEIGHTS
from trainer.errors import UserError

ONNX, PT2 = "onnx", "pt2"
"""Formats of the encoders as programs."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
VAL = "val"
"""The set of pairs that the run's own retrieval is evaluated on."""
WORDS = {
    "license": (r"[a-z0-9][a-z0-9.-]*", "apache-2.0"),
    "language": (r"[a-z]{2,3}(-[A-Za-z0-9]+)*", "en,fr"),
    "datasets": (r"[\w.-]+(/[\w.-]+)?", "pixparse/cc12m-wds"),
}
"""How the Hub writes what a card's head says."""
USAGE = "write experts=used or experts=top:N, either of them with a set to count on, as in experts=used:SET and experts=top:4:SET"

COMMAND = Command(
    "trainer.export",
    "Write a trained model for others to use, as a folder that model.load reads and that is laid out as a model on the Hugging "
    "Face Hub: model.safetensors, config.json, tokenizer.model, and a card with the evaluation. One process; as much memory as "
    "the model has in float32, with `average` or `experts` twice as much.",
    (
        Argument("run", "DIR", "a run directory (its newest complete checkpoint), or a checkpoint of one", required=True),
        Argument("output", "DIR", "where to write (default: export in the run directory); an earlier export is replaced"),
        Argument("average", "last:N", "the mean of the last N checkpoints"),
        WEIGHTS_ARGUMENT,
        Argument("dtype", "TYPE", "fp32 (the default) or bf16", choices=tuple(DTYPES)),
        Argument("modality", "NAME", "text or image: leave out what only the other needs", choices=MODALITIES),
        Argument(
            "experts",
            "KEPT",
            f"used[:SET]: of each layer, keep the experts that at least one token of SET chooses; top:N[:SET]: the N most chosen "
            f"ones; top:N,M,…[:SET]: write nothing, print a table of sizes and recall. SET: {VAL} (the run's own retrieval set, "
            f"the default), shards, or a .txt file of texts, one on each line",
        ),
        Argument(
            "format",
            "LIST",
            f"{ONNX}, {PT2} or both: write the encoders of images and texts as programs too, as ONNX graphs or torch.export's",
        ),
        Argument("license", "NAME", "of the weights, for the card, as the Hugging Face Hub writes it: mit, apache-2.0, other, …"),
        Argument("language", "LIST", "of the texts, for the card: en, or en,fr"),
        Argument("datasets", "LIST", "that it was trained on, for the card, by their names on the Hub"),
        Argument(
            "evaluation",
            "FILE",
            "a file of `trainer.evaluate … to=FILE`, for the card's table (default: what the run recorded of these weights)",
        ),
        Argument("push", "OWNER/NAME", "upload the export to the Hugging Face Hub"),
        Argument("private", "YES", "with push, whether a new repository is private (default: false)", choices=("true", "false")),
        Argument(
            "artifact",
            "HOW",
            "reference or upload: make the export an artifact of the run in Weights & Biases, by a reference to its files or by "
            "a copy of them (default: neither)",
            choices=("reference", "upload"),
        ),
    ),
    word="run",
)


@dataclass(frozen=True)
class ExpertChoice:
    """Which experts to keep. top: so many of each layer, those that are chosen most; empty: all that are chosen at all.

    examples: the set on which choices are counted, as it was typed.
    """

    top: tuple[int, ...]
    examples: str

    @property
    def typed(self) -> str:
        """As on the command line."""
        what = f"top:{','.join(map(str, self.top))}" if self.top else "used"
        return f"experts={what}:{self.examples}"


@dataclass(frozen=True)
class Page:
    """What only the user knows of a model, for its card: licence, languages and data sets, as the Hugging Face Hub writes them.

    evaluation: a file of `trainer.evaluate … to=FILE`, None: what the run recorded.
    """

    license: str | None = None
    languages: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    evaluation: Path | None = None


@dataclass(frozen=True)
class Export:
    """What a command line asks for.

    checkpoints: oldest first, several are averaged; kind: of weights, `model` or `ema`; modality: the only one to keep, None for
    both; experts: which to keep, None for all; artifact: `reference` or `upload`, None for no artifact in W&B; formats: of the
    encoders as programs, to write besides; push: a repository of the Hugging Face Hub to upload it to; private: whether a new
    one is; page: for the card.
    """

    checkpoints: list[Path]
    kind: str
    dtype: str
    output: Path
    modality: str | None = None
    experts: ExpertChoice | None = None
    artifact: str | None = None
    formats: tuple[str, ...] = ()
    push: str | None = None
    private: bool = False
    page: Page = field(default_factory=Page)

    @property
    def run_dir(self) -> Path:
        """Of the run that it comes from."""
        return _run_of(self.checkpoints[-1])

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left out."""
        return self.modality is None and self.experts is None

    @property
    def is_curve(self) -> bool:
        """Whether a table is asked for and no export."""
        return self.experts is not None and len(self.experts.top) > 1


def read_arguments(arguments: list[str]) -> Export:
    """What a command line means. Raises UserError for what is missing or mistyped, or for checkpoints that are not there."""
    values = COMMAND.read(arguments).values
    experts = _experts(values["experts"]) if "experts" in values else None
    if experts is not None and len(experts.top) > 1:
        for name in ("output", "artifact", "format", "push"):
            if name in values:
                purpose = "to write" if name == "output" else "for"
                raise UserError(f"{experts.typed}: several numbers only print a table; choose one of them {purpose} {name}=")
    if "private" in values and "push" not in values:
        raise UserError(f"private={values['private']} is for push=OWNER/NAME: give both, or leave it out")
    newest = checkpoint_of(values["run"])
    checkpoints = [newest] if "average" not in values else _last(values["average"], values["run"])
    with reading(*checkpoints):
        kinds = {check_weights(values.get("weights", WEIGHTS), checkpoint) for checkpoint in checkpoints}
    output = user_path(values["output"], "output").absolute() if "output" in values else _run_of(newest) / "export"
    return Export(
        checkpoints,
        kinds.pop(),
        values.get("dtype", "fp32"),
        output,
        values.get("modality"),
        experts,
        values.get("artifact"),
        _formats(values.get("format")),
        values.get("push"),
        values.get("private") == "true",
        _page(values),
    )


def _formats(text: str | None) -> tuple[str, ...]:
    """What `format=` means. Raises UserError for a format that does not exist."""
    wanted = dict.fromkeys(text.split(",")) if text is not None else {}
    for name in wanted:
        if name not in (ONNX, PT2):
            raise UserError(f"format={text}: '{name}' is neither {ONNX} nor {PT2}; write format={ONNX}, {PT2} or {ONNX},{PT2}")
    return tuple(wanted)


def _page(values: Mapping[str, str]) -> Page:
    """What the card is to say. Raises UserError for a word that the Hub would refuse."""
    for name, (form, example) in WORDS.items():
        for word in filter(None, [values.get(name)] if name == "license" else values.get(name, "").split(",")):
            if not re.fullmatch(form, word):
                raise UserError(f"{name}={word}: write it as the Hugging Face Hub does, such as {name}={example}")
    languages, datasets = (tuple(filter(None, values.get(name, "").split(","))) for name in ("language", "datasets"))
    evaluation = user_path(values["evaluation"], "evaluation") if "evaluation" in values else None
    return Page(values.get("license"), languages, datasets, evaluation)


def _last(average: str, run: str) -> list[Path]:
    """The checkpoints that `average=last:N` means, oldest first."""
    what, _, number = average.partition(":")
    if what != "last" or not number.isdigit() or int(number) < 1:
        raise UserError(
            f"average={average}: write average=last:N, such as average=last:5, for the mean of the last 5 checkpoints"
        )
    found = complete_checkpoints(user_path(run, "run"))
    if len(found) < int(number):
        raise UserError(
            f"average={average}: {run} has {len(found)} complete checkpoints; give a run directory that has enough "
            f"(checkpoint.keep={number} keeps that many), or average fewer"
        )
    return found[-int(number) :]


def _run_of(checkpoint: Path) -> Path:
    return checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def _experts(text: str) -> ExpertChoice:
    """What `experts=` means."""
    what, has_set, examples = text.partition(":")
    top: tuple[int, ...] = ()
    if what == "top":
        numbers, has_set, examples = examples.partition(":")
        if not all(number.isdecimal() and int(number) > 0 for number in numbers.split(",")):
            raise UserError(f"experts={text}: '{numbers}' is not how many experts to keep; {USAGE}")
        top = tuple(sorted({int(number) for number in numbers.split(",")}, reverse=True))
    elif what != "used":
        raise UserError(f"experts={text}: {USAGE}")
    if has_set and not examples:
        raise UserError(f"experts={text}: the set to count on is missing; {USAGE}")
    return ExpertChoice(top, examples or VAL)


def check_experts(experts: ExpertChoice, config: Config) -> None:
    """Raise UserError for experts that cannot be left out of the run's model."""
    model, router = config.model, config.router
    if not model.expert_layers:
        raise UserError(f"{experts.typed}: model {model.name} has no expert layers; leave experts= out")
    if router.choice == "expert":
        raise UserError(
            f"{experts.typed}: with router.choice=expert each expert takes tokens of every image and text, so that none is "
            f"unused, and a token has no next choice; leave experts= out"
        )
    choices = router.top_k * model.expert_granularity
    for number in experts.top:
        if number < choices:
            raise UserError(
                f"{experts.typed}: {number} is fewer than the {choices} experts that each token chooses "
                f"(router.top_k={router.top_k}, model.expert_granularity={model.expert_granularity}); keep at least {choices}"
            )
        if number > model.routed_experts:
            raise UserError(f"{experts.typed}: a layer has only {model.routed_experts} experts; keep at most as many")
