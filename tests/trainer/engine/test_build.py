"""What DeepSpeed is told before it starts. Whole engines are in tests/distributed/."""

import os
from types import SimpleNamespace

import pytest
import torch

from trainer.distributed.device import choose_device
from trainer.engine.build import _import_deepspeed, _tell_device


class Accelerator:
    """A host's GPUs, as DeepSpeed's accelerator shows them; `used`: the number of the one that was taken."""

    def __init__(self, visible: int) -> None:
        self.visible = visible
        self.used: int | None = None

    def set_device(self, number: int) -> None:
        if number >= self.visible:
            raise RuntimeError("CUDA error: invalid device ordinal")
        self.used = number

    def device_name(self, number: int) -> str:
        return f"cuda:{number}"


@pytest.mark.parametrize(("visible", "local_rank", "number"), [(1, 0, 0), (1, 3, 0), (4, 0, 0), (4, 3, 3)])
def test_deepspeed_takes_the_device_of_the_process(monkeypatch: pytest.MonkeyPatch, visible: int, local_rank: int, number: int):
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    device = choose_device("auto", local_rank)
    assert device == torch.device("cuda", number)
    _tell_device(device)

    deepspeed = _import_deepspeed()
    accelerator, engine = Accelerator(visible), SimpleNamespace()
    monkeypatch.setattr(deepspeed.runtime.engine, "get_accelerator", lambda: accelerator)
    monkeypatch.setattr(deepspeed.runtime.engine, "dist", SimpleNamespace(get_world_size=lambda: 8, get_rank=lambda: 5))
    deepspeed.DeepSpeedEngine._configure_with_arguments(engine, None, None)
    deepspeed.DeepSpeedEngine._set_distributed_vars(engine, None)
    assert (accelerator.used, engine.device) == (number, device)


def test_on_cpus_the_rank_on_the_host_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    _tell_device(torch.device("cpu"))
    assert os.environ["LOCAL_RANK"] == "3"
