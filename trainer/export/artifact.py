"""An export as an artifact of the run that it comes from, in Weights & Biases."""

from trainer.checkpoint.files import CONFIG, step_of
from trainer.config.compose import load_config, to_config
from trainer.config.schema import LogConfig
from trainer.errors import UserError
from trainer.export.request import Export
from trainer.reporting.artifacts import Files
from trainer.reporting.wandb_attach import attach, check_attachable
from trainer.training.lock import check_unclaimed


def check_artifact(export: Export) -> None:
    """Raise UserError, before anything is written, for a run that W&B does not have or that is still recorded."""
    try:
        check_attachable(export.run_dir, _log_of(export))
    except UserError as problem:
        raise UserError(f"artifact={export.artifact}: {problem}: leave artifact= out") from None
    try:
        check_unclaimed(export.run_dir)
    except UserError:
        raise UserError(
            f"artifact={export.artifact}: {export.run_dir} is still training, and W&B takes one writer for a run: export again "
            f"when it has ended, or leave artifact= out"
        ) from None


def name_artifact(export: Export) -> str:
    """Name what was written; returns a line about it. Raises UserError when W&B fails."""
    steps = [step_of(checkpoint) for checkpoint in export.checkpoints]
    experts = export.experts.typed.partition("=")[2] if export.experts else None
    metadata = {"steps": steps, "weights": export.kind, "dtype": export.dtype, "modality": export.modality, "experts": experts}
    files = Files("export", "model", export.output, metadata, (f"step-{steps[-1]}",), upload=export.artifact == "upload")
    try:
        return f"the export is {attach(export.run_dir, _log_of(export), files)}"
    except UserError as problem:
        raise UserError(f"the export is complete in {export.output}, but {problem}: run the same command again") from problem


def _log_of(export: Export) -> LogConfig:
    return to_config(load_config(export.checkpoints[-1] / CONFIG)).log
