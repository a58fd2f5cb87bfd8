"""A trained model without the parts that a use of it does not need: the other modality, and experts that are not chosen."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import nn

from model.errors import UserError
from model.limoe import LIMoE, expert_layers
from model.stream import IMAGE, MODALITIES


@dataclass(frozen=True)
class Trim:
    """What is left of a model. modality: the only one (model.stream.MODALITIES), None for both.

    experts: by expert layer, the experts that are kept, in ascending order; a layer that is not named keeps all.
    """

    modality: str | None = None
    experts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.modality not in (None, *MODALITIES):
            raise ValueError(f"modality {self.modality!r} is none of {', '.join(MODALITIES)}")

    @classmethod
    def read(cls, values: Any) -> "Trim":
        """From the plain values that `plain` wrote, `{}` for a whole model. Raises ValueError or TypeError for anything else."""
        if not isinstance(values, Mapping) or values.keys() - {"modality", "experts"}:
            raise ValueError(f"{values!r} does not say what is left, as {{modality: text, experts: {{1: [0, 2]}}}} does")
        experts: Mapping[Any, Iterable[Any]] = dict(values.get("experts", {}))
        return cls(values.get("modality"), {int(layer): tuple(map(int, kept)) for layer, kept in experts.items()})

    def plain(self) -> dict[str, Any]:
        """As values for a configuration file."""
        return {"modality": self.modality, "experts": {layer: list(kept) for layer, kept in self.experts.items()}}


class Absent(nn.Module):
    """In place of a part that was left out: without parameters, and refusing to be used."""

    def __init__(self, kept: str) -> None:
        """kept: the modality that the model still has."""
        super().__init__()
        self.kept = kept

    def forward(self, *inputs: object) -> NoReturn:
        """Raises UserError, which says what the model still has."""
        raise UserError(only(self.kept))


def only(kept: str) -> str:
    """What to tell somebody who asks a model of one modality for the other."""
    (other,) = (name for name in MODALITIES if name != kept)
    return f"this export holds only {kept} (modality={kept}): for {other}s, export the run without modality="


def has(model: LIMoE, modality: str) -> bool:
    """Whether a model still embeds this modality, "image" or "text"."""
    return not isinstance(model.heads[modality], Absent)


def trim(model: LIMoE, kept: Trim) -> LIMoE:
    """Leave out of a model, in place, all that `kept` does not name, whether or not its parameters have memory; returns it.

    Raises ValueError for a layer or an expert that the model does not have, and as ExpertLayer.keep.
    """
    layers = expert_layers(model)
    for index, experts in kept.experts.items():
        if index not in layers:
            raise ValueError(f"block {index} is no expert layer; those are {', '.join(map(str, layers)) or 'none'}")
        layers[index].keep(experts)
    if kept.modality is not None:
        _leave_out_the_other(model, kept.modality)
    return model


def _leave_out_the_other(model: LIMoE, modality: str) -> None:
    kept = MODALITIES.index(modality)
    other = 1 - kept
    setattr(model, ("patches", "tokens")[other], Absent(modality))
    model.heads[MODALITIES[other]] = Absent(modality)
    if other == IMAGE:
        model.pool = None
    if len(model.towers) > 1:
        model.towers[other] = Absent(modality)
