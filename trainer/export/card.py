"""The README.md of an export: what the model is, what it can do, how it was trained, and how to use it."""

from collections.abc import Sequence
from pathlib import Path

from model.layout import CARD
from model.limoe import MAX_SCALE
from trainer.config.schema import Config
from trainer.evaluation.suite import summary_rows
from trainer.export.facts import configuration, kind_of, model_rows, training_rows
from trainer.export.left_out import left_out
from trainer.export.metadata import metadata
from trainer.export.programs import Program
from trainer.export.scores import Scores
from trainer.export.trained import Trained, Trimmed
from trainer.report.tables import markdown

HEAD = "---\n# written by trainer.export"
EARLIER_HEAD = "<!-- written by trainer.export -->"
USES = {
    None: """texts = ["a photo of a frog", "a photo of a cat"]
cosines = limoe.embed_images(["frog.jpg", "cat.png"]) @ limoe.embed_texts(texts).T
probabilities = (limoe.scale * cosines).softmax(-1)""",
    "text": """embeddings = limoe.embed_texts(["a photo of a frog", "a photo of a cat"])""",
    "image": """embeddings = limoe.embed_images(["frog.jpg", "cat.png"])""",
}
"""What a model does, by the only modality that it has."""


def is_card(path: Path) -> bool:
    """Whether a file is the card of an earlier export, and not somebody's own."""
    if path.name != CARD or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(EARLIER_HEAD)).startswith((HEAD.encode(), EARLIER_HEAD.encode()))


def page(trained: Trained, left: Trimmed, origin: str, scores: Scores, programs: Sequence[Program]) -> str:
    """The card as Markdown; origin: what the whole model is; scores: of that; programs: its encoders, as far as written."""
    export, config = trained.export, trained.config
    whole = export.is_whole
    head = metadata(export.page, config, export.modality, scores if whole else None)
    parts = [
        f"{HEAD}\n{head}---",
        f"# {config.run.name}{left.told}",
        f"{kind_of(config.model, config.router)} {origin}.",
        _use(export.modality),
        *_programs(programs, left),
        *([] if whole else left_out(trained, left)),
        *_evaluation(scores, whole),
        *_facts(trained, whole),
        *_limits(config, export.modality),
    ]
    return "\n\n".join(parts) + "\n"


def _use(modality: str | None) -> str:
    return f"""## Use

```python
import model  # of limoe-trainer

limoe = model.load("hf://OWNER/NAME")  # or the folder that holds these files
{USES[modality]}
```"""


def _programs(programs: Sequence[Program], left: Trimmed) -> list[str]:
    if not programs:
        return []
    rows = [[f"`{found.file}`", found.takes, found.gives, f"{found.difference:.1e}"] for found in programs]
    scale = left.weights["scale.log_scale"].double().exp().clamp(max=MAX_SCALE).item()
    return [
        "## Programs",
        "The encoders for other software. Pixels are normalised, token ids padded with 0; the embeddings are unit vectors. "
        f"`softmax({scale:.6g} * cosines)` over the texts gives their probabilities.",
        markdown(["file", "takes", "gives", "largest difference from PyTorch"], rows, numbers=1).rstrip("\n"),
    ]


def _evaluation(scores: Scores, whole: bool) -> list[str]:
    rows = [list(row) for row in summary_rows(scores.metrics)]
    title = "## Evaluation" if whole else "## Evaluation of the whole model"
    if not rows:
        return [
            title,
            f"Not measured: {scores.told}. `evaluation=FILE` of `trainer.export` takes what `trainer.evaluate` found.",
        ]
    return [title, markdown(["", "value", "chance"], rows, numbers=2).rstrip("\n"), scores.told]


def _facts(trained: Trained, whole: bool) -> list[str]:
    export, config = trained.export, trained.config
    model = model_rows(config.model, config.router)
    training = training_rows(export, config)
    return [
        "## Model" if whole else "## The whole model",
        markdown(["", ""], model, numbers=0).rstrip("\n"),
        "## Training",
        markdown(["", ""], training, numbers=0).rstrip("\n"),
        f"<details><summary>Configuration, without paths</summary>\n\n```yaml\n{configuration(config)}```\n\n</details>",
    ]


def _limits(config: Config, modality: str | None) -> list[str]:
    lines = [
        "It knows what its training pairs show and say, with their gaps and prejudices, which nobody has examined for this card.",
        "No token is dropped, so that an embedding does not depend on what else is in its batch.",
    ]
    if modality != "image":
        lines.append(f"A text is cut after {config.model.text_length} tokens, of which the last is the end-of-text token.")
    if modality != "text":
        size = config.model.image_size
        lines.append(f"Of an image it sees the central square, scaled to {size} x {size} pixels.")
    return ["## Limits", "\n".join(f"- {line}" for line in lines)]
