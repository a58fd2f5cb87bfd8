"""A page about the experts of one model: Markdown with its pictures, and the numbers as JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.stream import MODALITIES
from trainer.errors import UserError, reason
from trainer.evaluation.atlas import Costs, TaskAtlas
from trainer.evaluation.specialists import Specialists
from trainer.files import write_whole
from trainer.report.expert_findings import Findings, numbers
from trainer.report.tables import markdown

PAGE = "experts.md"
NUMBERS = "experts.json"
MOST_ROWS = 12
"""Classes, values or words in a picture: those that lose most. All are among the numbers."""
WORDS = 5
"""Typical words of an expert in a table."""


KNOCKED = {"image": "image tokens", "text": "text tokens", "both": "both"}


def experts_table(index: int, findings: Findings) -> str:
    """A row an expert: shares, typical words, what each task loses without it."""
    layer = findings.specialists[index]
    header = ["expert", "typical words", *(f"{name} tokens" for name in MODALITIES)]
    header += [f"{label(atlas)} without it" for atlas in findings.atlas]
    rows = [
        [
            str(expert),
            ", ".join(typical.word for typical in layer.words(expert, WORDS)),
            *(f"{float(layer.share(name)[expert]):.1%}" for name in MODALITIES),
            *(points(-float(atlas.layers[index].overall["both"][expert])) for atlas in findings.atlas),
        ]
        for expert in range(layer.experts)
    ]
    return markdown(header, rows, numbers=len(header) - 2)


def points(change: float) -> str:
    """`−12.3`: a change in percentage points."""
    return f"{100 * change:+.1f}".replace("-", "−") if round(100 * change, 1) else "0"


def page(findings: Findings, command: str, pictures: Mapping[int, Sequence[str]]) -> str:
    """The page as Markdown. pictures: of each layer, the names of those that were drawn, without theme and ending."""
    parts = [
        f"# Experts of {findings.name}",
        f"Shares, words and patches are of {findings.images} images and {findings.texts} texts ({findings.shown}), in "
        f"evaluation, where no token is dropped. Blue numbers are experts that take more of the image tokens, orange ones of "
        f"the text tokens.",
    ]
    if findings.atlas:
        parts += [
            "The atlas shows what is lost, in percentage points, when an expert is knocked out: its tokens pass by the "
            "residual, all others as ever. Purple is a loss, green a gain.",
            markdown(
                ["task", "measure", "queries", "with all experts"],
                [[atlas.task.name, atlas.task.measure, str(atlas.queries), f"{atlas.baseline:.1%}"] for atlas in findings.atlas],
                numbers=2,
            ).rstrip("\n"),
        ]
    for index in findings.specialists:
        parts.append(f"## Block {index}")
        parts.append(experts_table(index, findings).rstrip("\n"))
        parts += [_picture(name, f"{name.partition('-')[2]} of block {index}") for name in pictures[index]]
    parts.append(f"All numbers are in [{NUMBERS}]({NUMBERS}). Made by `{command}`.")
    return "\n\n".join(parts) + "\n"


def write_experts(findings: Findings, command: str, folder: Path) -> None:
    """Write the page, the numbers and the pictures. Raises UserError when they cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = {index: _draw(index, layer, findings, folder) for index, layer in findings.specialists.items()}
        write_whole(folder / NUMBERS, (json.dumps(numbers(findings), ensure_ascii=False) + "\n").encode())
        write_whole(folder / PAGE, page(findings, command, pictures).encode())
    except OSError as problem:
        raise UserError(f"the report cannot be written to {folder} ({reason(problem)}): choose another output") from problem


def _draw(index: int, layer: Specialists, findings: Findings, folder: Path) -> list[str]:
    # matplotlib is an extra
    from trainer.report.expert_pictures import Panel, picture_of_atlas, picture_of_patches, picture_of_specialists, save
    from trainer.report.theme import THEMES

    panels = [Panel(title, rows, values) for title, rows, values in atlas_panels(index, findings.atlas)]
    names = [f"layer{index:02d}-{what}" for what in ("specialists", "patches", *(["atlas"] if panels else []))]
    for name, theme in THEMES.items():
        figures = [
            picture_of_specialists(f"block {index}: what each expert takes", layer, theme),
            picture_of_patches(f"block {index}: patches with the highest gates", layer, theme),
        ]
        if panels:
            figures.append(picture_of_atlas(f"block {index}: points lost without each expert", panels, layer, theme))
        for figure, picture in zip(figures, names, strict=True):
            save(figure, folder / f"{picture}-{name}.png", theme)
    return names


def atlas_panels(index: int, atlases: Sequence[TaskAtlas]) -> list[tuple[str, list[str], list[list[float]]]]:
    """What the picture of a layer's atlas shows: title, names of the rows, and what each row loses without each expert.

    First each task as a whole, by the tokens that the expert is knocked out for; then each grouping of the first
    classification set and of retrieval, with the rows that lose most.
    """
    if not atlases:
        return []
    panels = []
    for atlas in atlases:
        overall = atlas.layers[index].overall
        title = f"{label(atlas)}, {atlas.baseline:.0%} with all experts: knocked out for"
        panels.append((title, [KNOCKED[knocked] for knocked in overall], [costs.tolist() for costs in overall.values()]))
    classified = [atlas for atlas in atlases if atlas.task.name.startswith("zeroshot")][:1]
    for atlas in [*classified, *(atlas for atlas in atlases if atlas.task.name == "retrieval")]:
        for kind in atlas.task.groupings:
            panels.append(_grouped(kind, atlas, atlas.layers[index]))
    return [panel for panel in panels if panel[1]]


def _grouped(kind: str, atlas: TaskAtlas, costs: Costs) -> tuple[str, list[str], list[list[float]]]:
    names, baseline = atlas.task.groupings[kind].names, atlas.groups[kind].tolist()
    by_group = costs.groups[kind]["both"].T.tolist()
    most = sorted(range(len(names)), key=lambda row: -max(by_group[row]))[:MOST_ROWS]
    shown = [row for row in range(len(names)) if row in most]
    title = f"{label(atlas)}, by {kind}" + (f": the {MOST_ROWS} that lose most" if len(names) > MOST_ROWS else "")
    return title, [f"{_short(names[row])} {baseline[row]:.0%}" for row in shown], [by_group[row] for row in shown]


def label(atlas: TaskAtlas) -> str:
    """A task in a title: `zero-shot unseen`."""
    return atlas.task.name.replace("zeroshot", "zero-shot").replace("_", " ")


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _picture(name: str, what: str) -> str:
    return (
        f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="{name}-dark.png">\n'
        f'  <img src="{name}-light.png" alt="{what}">\n</picture>'
    )
