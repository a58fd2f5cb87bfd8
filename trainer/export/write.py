"""An export as a folder: written whole or not at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import save_file

from model import layout
from model.config import TRIMMED
from trainer.checkpoint.files import CONFIG, TOKENIZER
from trainer.config.compose import load_config
from trainer.errors import UserError, reason
from trainer.export.card import is_card, page
from trainer.export.programs import EXTERNAL, Program, check_formats, file_names, write_programs
from trainer.export.request import DTYPES, Export
from trainer.export.scores import find_scores
from trainer.export.trained import Trained, Trimmed
from trainer.export.weights import describe

WRITTEN = (layout.WEIGHTS, layout.ARCHITECTURE, layout.TOKENIZER, layout.PREPROCESSOR, layout.CONFIG, layout.CARD)
"""The files of an export."""
OWN = {*WRITTEN, *file_names(), *(f"{name}{EXTERNAL}" for name in file_names())} - {layout.CARD}
"""Those of them that nobody else writes by these names."""


def write_export(export: Export) -> list[str]:
    """Write the export atomically; returns lines that describe it.

    Raises UserError when it cannot be written, or when `output` contains anything but an earlier export.
    """
    check_formats(export.formats)
    replaced = _holds_export(export.output)
    trained = Trained.open(export)
    left = trained.trimmed(export.experts.top[0] if export.experts is not None and export.experts.top else None)
    origin = describe(export, trained.config)
    scores = find_scores(export, trained.config)

    def card(programs: list[Program]) -> str:
        return page(trained, left, origin, scores, programs)

    programs = _write(export, trained, left, origin, card)
    files = [*WRITTEN, *(program.file for program in programs)]
    saved = "" if export.is_whole else f" of {trained.whole.parameters:,}"
    return [
        f"{'replaced the export in' if replaced else 'wrote'} {export.output}: {', '.join(files)}",
        f"{origin}{left.told}; {len(left.weights)} tensors, {left.parameters:,}{saved} parameters, {export.dtype}",
    ]


def _write(export: Export, trained: Trained, left: Trimmed, origin: str, card: Callable[[list[Program]], str]) -> list[Program]:
    """card: from the programs that were written, which are returned."""
    newest = export.checkpoints[-1]
    partial = export.output.with_name(f".{export.output.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(left.weights, partial / layout.WEIGHTS, {"format": "pt", "origin": origin + left.told})
        shutil.copyfile(newest / CONFIG, partial / layout.CONFIG)
        shutil.copyfile(newest / TOKENIZER, partial / layout.TOKENIZER)
        if not export.is_whole:
            _record(left, partial / layout.CONFIG)
        _describe(partial, export.dtype)
        programs = write_programs(partial, left.model(trained.config), export.formats)
        (partial / layout.CARD).write_text(card(programs), encoding="utf-8")
        # safetensors makes its file private; use the permissions of any other file.
        (partial / layout.WEIGHTS).chmod((partial / layout.CONFIG).stat().st_mode)
        _put_in_place(partial, export.output)
        return programs
    except (OSError, SafetensorError) as problem:
        raise UserError(
            f"the export could not be written to {export.output} ({reason(problem)}): fix this or choose another output"
        ) from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _record(left: Trimmed, path: Path) -> None:
    """Say in a configuration file what is left of the model that it describes."""
    values = load_config(path)
    OmegaConf.update(values, f"model.{TRIMMED}", left.kept.plain(), merge=False)
    path.write_text(OmegaConf.to_yaml(values))


def _describe(folder: Path, dtype: str) -> None:
    """Write what the Hub's tools and `model.load` read, from the run's configuration in the folder."""
    values: Any = OmegaConf.to_container(load_config(folder / layout.CONFIG), resolve=True)
    named = str(DTYPES[dtype]).removeprefix("torch.")
    described = layout.architecture(values, named)
    for name, content in (
        (layout.ARCHITECTURE, described),
        (layout.PREPROCESSOR, layout.preprocessor(layout.Description.of(described))),
    ):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _holds_export(output: Path) -> bool:
    """Whether an earlier export is there. Raises UserError if something else is."""
    if not output.exists():
        return False
    others = [output.name]
    if output.is_dir():
        others = [path.name for path in output.iterdir() if path.name not in OWN and not is_card(path)]
    if others:
        raise UserError(f"output={output} contains other files ({', '.join(sorted(others)[:3])}): choose another folder")
    return any(output.iterdir())


def _put_in_place(partial: Path, output: Path) -> None:
    """Rename the folder; an earlier export is moved away before and deleted after."""
    earlier = output.with_name(f".{output.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if output.exists():
        output.rename(earlier)
    try:
        partial.rename(output)
    except OSError:
        if earlier.exists():
            earlier.rename(output)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
