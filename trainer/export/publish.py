"""An export on the Hugging Face Hub."""

import re
from typing import Any

from model.layout import CONFIG
from trainer.errors import UserError, check_extra, reason
from trainer.export.request import Export

NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_push(name: str) -> None:
    """Raise UserError, before anything is written, where the repository cannot be written to."""
    if not NAME.fullmatch(name):
        raise UserError(f"push={name}: give a repository of the Hugging Face Hub, push=OWNER/NAME")
    check_extra("huggingface_hub", "hf", f"push={name}: the Hugging Face Hub needs huggingface_hub")
    import huggingface_hub
    from huggingface_hub.errors import LocalTokenNotFoundError

    try:
        huggingface_hub.HfApi().whoami()
    except LocalTokenNotFoundError as problem:
        raise UserError(f"push={name}: not logged in to the Hugging Face Hub: `hf auth login`, or set HF_TOKEN") from problem
    except Exception as problem:  # the client's own errors, and those of its HTTP library
        raise UserError(
            f"push={name}: the Hugging Face Hub does not know you ({reason(problem)}): check the network, or `hf auth login`"
        ) from problem


def publish(export: Export) -> str:
    """Upload the folder, but for the run's configuration with its paths; returns a line about it. Raises UserError on failure."""
    import huggingface_hub

    assert export.push is not None
    api: Any = huggingface_hub.HfApi()
    try:
        api.create_repo(export.push, private=export.private, exist_ok=True)
        api.upload_folder(
            repo_id=export.push,
            folder_path=export.output,
            ignore_patterns=[CONFIG],
            delete_patterns=["*.onnx", "*.onnx.data", "*.pt2"],  # of an earlier export
            commit_message=f"Export of {export.run_dir.name}",
        )
    except Exception as problem:  # as above
        raise UserError(
            f"the export is complete in {export.output}, but push={export.push} failed ({reason(problem)}): "
            f"run the same command again"
        ) from problem
    return f"pushed to hf://{export.push}; model.load reads it from there"
