"""What is learned: the LIMoE family in pure PyTorch. Knows no ranks, no DeepSpeed and no Hydra; `load` alone reads files."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from model.pretrained import Pretrained


def load(folder: "str | Path", device: "str | torch.device" = "cpu", dtype: "torch.dtype | None" = None) -> "Pretrained":
    """The trained model that `python -m trainer.export` wrote to `folder`, ready to embed images and texts.

    folder: a folder, or `hf://OWNER/NAME[@REVISION][/FOLDER]` on the Hugging Face Hub (model.hub). dtype: of the weights in use;
    None: as they were exported. Raises model.errors.UserError, which says what is wrong with the folder.
    """
    from model.pretrained import load_pretrained  # not for everyone who imports the model: Pillow, SentencePiece, safetensors

    return load_pretrained(folder, device, dtype)
