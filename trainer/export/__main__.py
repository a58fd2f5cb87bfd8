"""Write a trained model for others to use: `python -m trainer.export run=DIR [modality=text] [experts=used] [dtype=bf16] …`.

`model.load` reads what it writes: a folder laid out as a model on the Hugging Face Hub (model.layout), to which `push=` uploads
it. One process; no DeepSpeed.
"""

import sys

from trainer.checkpoint.load import reading, take_newest
from trainer.distributed.program import exit_with
from trainer.errors import UserError
from trainer.export.curve import print_curve
from trainer.export.publish import check_push, publish
from trainer.export.request import Export, read_arguments
from trainer.export.write import write_export
from trainer.output import reader_may_leave
from trainer.reporting.log_lines import log_to_terminal


def export_newest(arguments: list[str]) -> list[str]:
    """What a command line asks for, in lines to print; repeated if the training run deletes the checkpoint meanwhile."""

    def work(export: Export) -> list[str]:
        with reading(*export.checkpoints):
            if export.is_curve:
                return print_curve(export)
            if export.push is not None:
                check_push(export.push)
            if export.artifact is None:
                told = write_export(export)
            else:
                from trainer.export.artifact import check_artifact, name_artifact  # not everybody waits for wandb's import

                check_artifact(export)
                told = [*write_export(export), name_artifact(export)]
            return told if export.push is None else [*told, publish(export)]

    return take_newest(lambda: read_arguments(arguments), work)


def main() -> None:
    """Read the command line and export."""
    log_to_terminal(rank=0)
    try:
        told = export_newest(sys.argv[1:])
    except UserError as problem:
        exit_with(problem)
    with reader_may_leave():
        print("\n".join(told))


if __name__ == "__main__":
    main()
