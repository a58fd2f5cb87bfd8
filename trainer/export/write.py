"""An export as a folder: written whole or not at all."""

import shutil
from pathlib import Path

from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import save_file

from model import pretrained
from model.config import TRIMMED
from trainer.checkpoint.files import CONFIG, TOKENIZER
from trainer.config.compose import load_config
from trainer.errors import UserError, reason
from trainer.export.card import CARD, is_card, page
from trainer.export.request import Export
from trainer.export.trained import Trained, Trimmed
from trainer.export.weights import describe


def write_export(export: Export) -> list[str]:
    """Write the export atomically; returns lines that describe it.

    Raises UserError when it cannot be written, or when `output` contains anything but an earlier export.
    """
    replaced = _holds_export(export.output)
    trained = Trained.open(export)
    left = trained.trimmed(export.experts.top[0] if export.experts is not None and export.experts.top else None)
    origin = describe(export, trained.config)
    card = None if export.is_whole else page(trained, left, origin)
    _write(export, left, origin, card)
    files = [*pretrained.FILES, *([CARD] if card else [])]
    saved = "" if export.is_whole else f" of {trained.whole.parameters:,}"
    return [
        f"{'replaced the export in' if replaced else 'wrote'} {export.output}: {', '.join(files)}",
        f"{origin}{left.told}; {len(left.weights)} tensors, {left.parameters:,}{saved} parameters, {export.dtype}",
    ]


def _write(export: Export, left: Trimmed, origin: str, card: str | None) -> None:
    newest = export.checkpoints[-1]
    partial = export.output.with_name(f".{export.output.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(left.weights, partial / pretrained.WEIGHTS, {"format": "pt", "origin": origin + left.told})
        shutil.copyfile(newest / CONFIG, partial / pretrained.CONFIG)
        shutil.copyfile(newest / TOKENIZER, partial / pretrained.TOKENIZER)
        if card is not None:
            _record(left, partial / pretrained.CONFIG)
            (partial / CARD).write_text(card)
        # safetensors makes its file private; use the permissions of any other file.
        (partial / pretrained.WEIGHTS).chmod((partial / pretrained.CONFIG).stat().st_mode)
        _put_in_place(partial, export.output)
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


def _holds_export(output: Path) -> bool:
    """Whether an earlier export is there. Raises UserError if something else is."""
    if not output.exists():
        return False
    others = [output.name]
    if output.is_dir():
        others = [path.name for path in output.iterdir() if path.name not in pretrained.FILES and not is_card(path)]
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
