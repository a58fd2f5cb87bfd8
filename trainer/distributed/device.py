"""The device of a process: its choice, peak FLOPs and memory, and the dtype for a precision."""

import resource

import torch

from trainer.config.keys import check_value
from trainer.errors import UserError

# Dense bf16 peak of one device, FLOP/s, as NVIDIA's data sheets state it.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12, "V100": 125e12}


GPU_MEMORY_GIB = {
    "H200": 140.0,
    "H100": 79.0,
    "A100": 79.0,
    "A100-40": 39.4,
    "L40S": 44.4,
    "A10": 22.0,
    "V100": 31.7,
    "V100-16": 15.8,
}
"""What torch finds on a device of that name, rounded down; of the larger one if a name is sold in two sizes."""


def gpu_memory_gib(told: float | str) -> float:
    """The memory that `run.gpu_memory_gib` means: a number, or the name of a GPU. Raises UserError for anything else."""
    if isinstance(told, str) and told.upper() in GPU_MEMORY_GIB:
        return GPU_MEMORY_GIB[told.upper()]
    if isinstance(told, (int, float)) and not isinstance(told, bool) and told > 0:
        return float(told)
    raise UserError(f"run.gpu_memory_gib={told}: give a number above 0, or one of {', '.join(GPU_MEMORY_GIB)}")


def utilisation(flops: float, seconds: float, world: int, device: torch.device) -> float | None:
    """`flops` in `seconds` as a share of the devices' peak (MFU); None if the peak is unknown."""
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


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """The device that `run.device` means for a process. Raises UserError if it is not available."""
    check_value("run.device", wanted)  # again: the processes need a device before anything else is checked
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "run.device=cuda, but torch finds no CUDA device here: use run.device=cpu, or install a torch build with CUDA"
        )
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # With one visible device per task (srun --gpus-per-task=1) the only index is 0, whatever the local rank is.
    return torch.device("cuda", min(local_rank, torch.cuda.device_count() - 1))


def dtype_of(precision: str) -> torch.dtype:
    """The dtype that activations and forward weights have under `train.precision`."""
    return torch.bfloat16 if precision == "bf16" else torch.float32
