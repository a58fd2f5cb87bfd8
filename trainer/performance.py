"""How fast and how large: model FLOPs of a step, utilisation where the device's peak is known, memory."""

import resource

import torch

from model.config import ModelConfig, RouterConfig
from model.count import count_parameters

# Dense bf16 peak of one device, FLOP/s, as NVIDIA's data sheets state it.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12, "V100": 125e12}


def step_flops(model: ModelConfig, router: RouterConfig, pairs: int) -> float:
    """FLOPs of forward and backward over `pairs` pairs: 6 an applied weight and token, and attention's two products.

    The embedding tables multiply nothing; pads are computed, so they count; recomputation does not (the usual model FLOPs).
    """
    counts = count_parameters(model, router)
    tables = (model.vocabulary + model.image_tokens + model.text_length) * model.width
    trunk = counts.applied - tables
    tokens = model.image_tokens + model.text_length
    attention = 12 * model.layers * model.width * (model.image_tokens**2 + model.text_length**2)
    return pairs * (6.0 * trunk * tokens + attention)


def utilisation(flops: float, seconds: float, world: int, device: torch.device) -> float | None:
    """The share of the devices' peak that `flops` in `seconds` is (MFU); None where the peak is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak = next((peak for known, peak in PEAK_FLOPS.items() if known in name), None)
    return flops / seconds / world / peak if peak else None


def memory_gib(device: torch.device) -> float:
    """Largest memory this process has held so far, GiB: of the device, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
