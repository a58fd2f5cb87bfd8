"""Pages about the experts of models: Markdown with pictures, and the numbers as JSON."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from model.stream import MODALITIES
from trainer.errors import UserError, reason
from trainer.evaluation.expert_findings import Findings
from trainer.evaluation.specialists import Specialists
from trainer.files import write_whole
from trainer.report.expert_findings import numbers
from trainer.report.expert_panels import label, layer_panels, step_panels
from trainer.report.load_history import LoadsOverTime, read_loads
from trainer.report.tables import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from trainer.report.theme import Theme

PAGE = "experts.md"
NUMBERS = "experts.json"
WORDS = 5
"""Typical words of an expert in a table."""


def experts_table(index: int, findings: Findings) -> str:
    """A row an expert: typical words, shares, and by how many points each task changes without it."""
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
    shown = findings.shown
    all_are_kept = all(layer.kept == layer.tokens for layer in findings.specialists.values())
    where_all_are_kept = ", where no token is dropped" if all_are_kept else ""
    parts = [
        f"# Experts of {findings.name}",
        f"Shares, words and patches are of {len(shown.images)} images and {len(shown.texts)} texts ({shown.what}), in "
        f"evaluation{where_all_are_kept}. An expert's number is blue where it takes more of the image tokens than of the "
        f"text tokens, and orange where it takes more of these.",
    ]
    if findings.atlas:
        parts += [
            "The atlas shows what is lost, in percentage points, when an expert is knocked out: its tokens pass by the "
            "residual, all others as ever. Purple is a loss, green a gain.",
            markdown(
                ["task", "measure", "queries", "with all experts"],
                [[label(atlas), atlas.task.measure, str(atlas.queries), f"{atlas.baseline:.1%}"] for atlas in findings.atlas],
                numbers=2,
            ).rstrip("\n"),
        ]
    for index in findings.specialists:
        parts += [f"## Block {index}", experts_table(index, findings).rstrip("\n")]
        parts += [_picture(name, f"{name.partition('-')[2]} of block {index}") for name in pictures[index]]
    parts.append(f"All numbers are in [{NUMBERS}]({NUMBERS}). Made by `{command}`.")
    return "\n\n".join(parts) + "\n"


def draw_experts(findings: Findings, command: str, folder: Path, loads: Path) -> dict[str, Path]:
    """`write_experts` for a run that trains; the light pictures by name, such as `layer03/atlas`."""
    pictures = write_experts(findings, command, folder, loads)
    return {name.replace("-", "/", 1): folder / f"{name}-light.png" for names in pictures.values() for name in names}


def write_experts(findings: Findings, command: str, folder: Path, loads: Path | None = None) -> dict[int, list[str]]:
    """Write the page, the numbers and the pictures of one model; the pictures' names, without theme and ending, by layer.

    loads: the run's loads.jsonl, which is drawn too. Raises UserError when they cannot be written.
    """
    over_time = read_loads(loads) if loads is not None and loads.is_file() else None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = {index: _draw(index, layer, findings, folder, over_time) for index, layer in findings.specialists.items()}
        write_whole(folder / NUMBERS, (json.dumps(numbers(findings), ensure_ascii=False) + "\n").encode())
        write_whole(folder / PAGE, page(findings, command, pictures).encode())
    except OSError as problem:
        raise _cannot_write(folder, problem) from problem
    return pictures


def write_overview(found: Sequence[Findings], folders: Sequence[str], command: str, output: Path) -> None:
    """Write a page over those of several models, such as the checkpoints of a run, which are in these folders of `output`.

    Where they have the same experts and tasks, it shows what is lost without each expert, a row a model. Raises UserError when
    it cannot be written.
    """
    links = [f"- [{findings.name}]({folder}/{PAGE})" for findings, folder in zip(found, folders, strict=True)]
    parts = ["# Experts of several models", "\n".join(links)]
    models = [(findings.name if findings.step is None else f"step {findings.step}", findings.atlas) for findings in found]
    try:
        for index, layer in found[-1].specialists.items() if _are_alike(found) else ():
            name = f"layer{index:02d}-over-steps"
            title = f"block {index}: points lost without each expert"
            _save(output, name, partial(_pictures().picture_of_atlas, title, step_panels(index, models), layer))
            parts += [f"## Block {index}", _picture(name, title)]
        write_whole(output / PAGE, ("\n\n".join([*parts, f"Made by `{command}`."]) + "\n").encode())
    except OSError as problem:
        raise _cannot_write(output, problem) from problem


def _are_alike(found: Sequence[Findings]) -> bool:
    """Whether the models have the same experts and the same tasks, at least one."""
    kinds = {
        (
            tuple((index, layer.experts) for index, layer in findings.specialists.items()),
            tuple(atlas.task.name for atlas in findings.atlas),
        )
        for findings in found
    }
    return len(kinds) == 1 and bool(found[0].atlas)


def _draw(index: int, layer: Specialists, findings: Findings, folder: Path, over_time: LoadsOverTime | None) -> list[str]:
    """Draw the pictures of one layer in both themes; returns their names."""
    block, drawer = f"block {index}", _pictures()
    pictures: dict[str, Callable[[Theme], Figure]] = {
        "specialists": lambda theme: drawer.picture_of_specialists(f"{block}: what each expert takes", layer, theme),
        "patches": lambda theme: drawer.picture_of_patches(f"{block}: patches with the highest gates", layer, theme),
    }
    if panels := layer_panels(index, findings.atlas):
        title = f"{block}: points lost without each expert"
        pictures["atlas"] = lambda theme: drawer.picture_of_atlas(title, panels, layer, theme)
    name = f"layer{index:02d}"
    if over_time is not None and name in over_time.layers:
        pictures["load"] = lambda theme: _load_picture().picture_of_load(f"{block}: load of each expert", over_time, name, theme)
    for what, draw in pictures.items():
        _save(folder, f"{name}-{what}", draw)
    return [f"{name}-{what}" for what in pictures]


def _pictures() -> ModuleType:
    from trainer.report import expert_pictures  # matplotlib is an extra

    return expert_pictures


def _load_picture() -> ModuleType:
    from trainer.report import load_picture  # as above

    return load_picture


def _save(folder: Path, name: str, draw: "Callable[[Theme], Figure]") -> None:
    from trainer.report.theme import THEMES

    for theme_name, theme in THEMES.items():
        _pictures().save(draw(theme), folder / f"{name}-{theme_name}.png", theme)


def _cannot_write(folder: Path, problem: OSError) -> UserError:
    return UserError(f"the report cannot be written to {folder} ({reason(problem)}): choose another output")


def _picture(name: str, what: str) -> str:
    return (
        f'<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="{name}-dark.png">\n'
        f'  <img src="{name}-light.png" alt="{what}">\n</picture>'
    )
