"""Exports of our own that a run can start from, as `python -m trainer.export` writes them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.config import RouterConfig
from model.layout import MODEL_TYPE, TOKENIZER, WEIGHTS, check_ours, is_export, read_architecture, read_description
from model.limoe import LIMoE
from model.peers import Peers
from model.trim import Trim
from trainer.checkpoint.outside import Outside
from trainer.engine.state import named_tensors
from trainer.errors import UserError, reason


@dataclass(frozen=True)
class Exported(Outside):
    """The weights of an export. router: as it was trained, but that it drops nothing."""

    router: RouterConfig

    tokenizer_name = TOKENIZER

    def tensors(self, peers: Peers | None = None) -> Iterator[tuple[str, Tensor]]:
        """Those of this process, one after another, in float32. Raises UserError where the file cannot be read."""
        wanted = named_tensors(LIMoE.without_values(self.source, self.router, peers))
        try:
            with safe_open(self.path, "pt") as file:
                if different := sorted(wanted.keys() ^ set(file.keys())):
                    raise UserError(
                        f"{self.path} is not the model that is described beside it ({different[0]}): export the run again"
                    )
                for name, like in wanted.items():
                    value = file.get_slice(name)
                    if like.dim() and value.get_shape()[0] != like.shape[0]:  # the experts of all processes
                        assert peers is not None
                        first = peers.expert_rank * like.shape[0]
                        yield name, value[first : first + like.shape[0]].float()
                    else:
                        yield name, file.get_tensor(name).float()
        except (OSError, SafetensorError) as problem:
            raise UserError(f"{self.path} is damaged ({reason(problem)}): copy it again, or export the run again") from problem


def is_exported(folder: Path) -> bool:
    """Whether a folder is an export of ours, and not a model of another library with files of the same names."""
    return is_export(folder) and (read_architecture(folder) or {}).get("model_type", MODEL_TYPE) == MODEL_TYPE


def read_exported(folder: Path) -> Exported:
    """What an export is, without its weights. Raises UserError for one that is damaged, or only a part of a model."""
    check_ours(folder, str(folder))
    described = read_description(folder)
    if described.kept != Trim():
        raise UserError(f"init_from={folder}: only a part of a model is left in this export: export the whole one")
    return Exported(
        path=folder / WEIGHTS,
        kind="export",
        source=described.model,
        pixels={"mean": described.mean, "std": described.std},
        assumed=(),
        tokenizer=folder / TOKENIZER,
        canonical=False,
        pad=0,
        router=described.router,
    )
