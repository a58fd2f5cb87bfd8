"""What checkpoints and resumes take of the host's memory, measured in real processes, against what the dry run says."""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.tensor import DTensor

from model.limoe import LIMoE
from tests.distributed.setups import Layout, TinyRun, tiny
from tests.distributed.spawn import run_distributed
from trainer.checkpoint.load import load_state
from trainer.distributed.processes import Processes
from trainer.engine.state import MOMENTS, WEIGHTS, read_state
from trainer.estimate.memory import checkpoint_bytes, estimate_host_memory

pytestmark = pytest.mark.slow

LAYOUT = Layout(4, 2, 2).with_(model__width=256, model__mlp=1024, model__vocabulary=5000)
"""12M parameters, 8.4M of them experts in two groups; the largest tensor, a table of 5 MiB, is dense."""
LARGEST = 4 * 5000 * 256
PASSING = 3 * LARGEST + 4 * 2**20
"""A whole tensor while it is gathered or handed round, gloo's copies of it, and what else a process allocates."""
STAYING = 2 * LARGEST
"""What of that the allocator may keep."""


def _status(name: str) -> int:
    """Bytes that /proc says of this process."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return 1024 * int(found[1])


@contextmanager
def peak() -> Iterator[list[int]]:
    """How far the resident memory rises above what it is at the beginning."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is what it is now
    before, risen = _status("VmRSS"), [0]
    yield risen
    risen[0] = _status("VmHWM") - before


def save_and_load(processes: Processes, run_dir: Path) -> dict[str, Any]:
    """Peaks of reading the state for a checkpoint, and of reading one back, which is looked at tensor by tensor."""
    # Whatever is freed goes back to the system at once, and what is allocated is new memory.
    libc, mmap_threshold = ctypes.CDLL(None), -3
    libc.mallopt(mmap_threshold, 2**16)
    config = tiny(LAYOUT)
    run = TinyRun(config, processes)
    run.step()
    libc.malloc_trim(0)
    before = _status("VmRSS")
    with peak() as saving:
        share = read_state(run.engine, processes, run.sharding)
    stays = _status("VmRSS") - before
    held = sum((v.to_local() if isinstance(v, DTensor) else v).nbytes for v in share.values())
    share.clear()
    saved = run.save(run_dir)
    model = LIMoE(config.model, config.router, run.peers)
    read: list[str] = []
    state = load_state(saved, model, run.sharding, (WEIGHTS, *MOMENTS))
    original = state._read

    def note(kind: str) -> Any:
        found = original(kind)
        read.extend(f"{kind}/{name}" for name in found)
        return found

    state._read = note  # type: ignore[method-assign]
    peaks = []
    for kind, again in ((WEIGHTS, True), (WEIGHTS, False), *((moment, False) for moment in MOMENTS)):
        with peak() as loading:
            for _ in state.tensors(kind, again):
                pass
        peaks.append(loading[0])
    return {"saving": saving[0], "stays": stays, "held": held, "loading": max(peaks), "read": read}


def test_every_rank_holds_its_share_alone_and_reads_it_alone(run_dir: Path) -> None:
    config = tiny(LAYOUT)
    ranks = run_distributed(save_and_load, LAYOUT.world, run_dir)
    host = estimate_host_memory(config, LAYOUT.world)
    # Together they hold each tensor once, experts of two groups too; and the largest share is what the dry run says.
    assert sum(rank["held"] for rank in ranks) == checkpoint_bytes(config)
    assert max(rank["held"] for rank in ranks) == host.checkpoint
    for rank in ranks:
        assert abs(rank["stays"] - rank["held"]) < STAYING, f"{rank['stays'] / 2**20:.0f} MiB for {rank['held'] / 2**20:.0f}"
        assert rank["saving"] < rank["held"] + PASSING, f"{rank['saving'] / 2**20:.0f} MiB for {rank['held'] / 2**20:.0f}"
        assert rank["loading"] < host.checkpoint / 3 + PASSING, f"{rank['loading'] / 2**20:.0f} MiB"
    # Each dense tensor is read by one of all ranks, each expert tensor by one group, and every kind once.
    model = LIMoE(config.model, config.router)
    for name, _ in model.named_parameters():
        for kind in (WEIGHTS, *MOMENTS):
            readers = [number for number, rank in enumerate(ranks) if f"{kind}/{name}" in rank["read"]]
            assert readers in ([[0, 1], [2, 3]] if ".experts." in name else [[0], [1], [2], [3]]), (name, readers)
            assert all(rank["read"].count(f"{kind}/{name}") <= 1 for rank in ranks)
