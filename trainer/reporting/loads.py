"""The load of every expert, step by step: what a heat map of it is drawn from."""

from collections.abc import Mapping

Loads = Mapping[str, Mapping[str, list[float]]]
"""By expert layer (`layer03`) and modality, for each expert: how many tokens want it, over an even share (1 is balanced)."""

LOADS = "loads.jsonl"
"""The file in the run directory: a line for each recorded step."""
DIGITS = 4


def rounded(loads: Loads) -> dict[str, dict[str, list[float]]]:
    """As precise as anybody looks at them."""
    return {
        layer: {modality: [round(load, DIGITS) for load in load_e] for modality, load_e in of_layer.items()}
        for layer, of_layer in loads.items()
    }
