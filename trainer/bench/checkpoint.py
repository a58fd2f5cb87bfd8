"""The cost of a checkpoint: time and size of saving and resuming by model size, next to DeepSpeed's own for dense models."""

import gc
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from model.limoe import LIMoE
from model.objective import training_losses
from trainer.bench.runs import config_of, measure_each
from trainer.checkpoint.files import CONFIG, TOKENIZER, checkpoint_path
from trainer.checkpoint.load import check_sound, load_state
from trainer.checkpoint.progress import TrainingProgress
from trainer.checkpoint.save import Checkpointer
from trainer.distributed.device import dtype_of
from trainer.distributed.processes import Processes
from trainer.engine.build import build_engine, start_deepspeed
from trainer.engine.state import MOMENTS, WEIGHTS, ExpertSharding, set_optimizer_state, set_weights
from trainer.estimate.rows import readable

MODELS = ["dense_s32", "limoe_s32", "dense_b32", "limoe_b32"]
PAIRS = 8  # per process and step
WARM_UP, STEPS, REPEATS = 2, 5, 3
COLUMNS = (
    *("model", "parameters", "on disk", "step", "copy", "stands still", "blocking", "resume"),
    *("DeepSpeed saves", "loads", "on disk", "stands still / DeepSpeed", "blocking / DeepSpeed"),
)
HEADER = f"""# Checkpoints

*Stands still*: the training time that one checkpoint costs in total: the *copy* of the state to CPU memory, and the extra time of
the steps during the writing. If all cores compute, as here, the writing takes time from them; if cores are idle next to GPUs,
only the copy remains. *Blocking* is the same state written while training waits
(`checkpoint.asynchronous=false`). DeepSpeed's `save_checkpoint` blocks too; of such experts it keeps only one rank's, so it is
measured for dense models. Ours is digested (SHA-256) and synced to the disk, DeepSpeed's is neither; a resume checks the digests.
Same disk, same run, medians of {REPEATS}, ZeRO stage 2, bf16, {PAIRS} pairs per process and step.

| {" | ".join(COLUMNS)} |
|{"---|" * len(COLUMNS)}
"""


@dataclass(frozen=True)
class Row:
    """Seconds, and bytes where it says so; None: not measured."""

    model: str
    parameters: int
    bytes: int
    step: float
    copy: float
    still: float
    blocking: float
    resume: float
    deepspeed: tuple[float, float, int] | None  # save, load, bytes


class _Subject:
    """A model in training on random pairs."""

    def __init__(self, name: str, processes: Processes) -> None:
        self.config = config_of(name, PAIRS, processes)
        self.processes = processes
        ep = self.config.parallel.expert_parallel
        self.peers = start_deepspeed(processes, ep)
        self.sharding = ExpertSharding(processes, ep)
        self.model = LIMoE(self.config.model, self.config.router, self.peers).initialise(0)
        self.parameters = int(processes.sum(torch.tensor(float(self._own_parameters()), device=processes.device)).item())
        self.engine: Any = build_engine(self.config, self.model, processes, self.peers)
        model, device = self.config.model, processes.device
        dtype = dtype_of(self.config.train.precision)
        self.images = torch.randn(PAIRS, 3, model.image_size, model.image_size, device=device).to(dtype)
        self.texts = torch.randint(1, model.vocabulary, (PAIRS, model.text_length), device=device)

    def _own_parameters(self) -> int:
        """This rank's experts, and on rank 0 the dense parameters."""
        sizes = {name: parameter.numel() for name, parameter in self.model.named_parameters()}
        experts = sum(size for name, size in sizes.items() if ".experts." in name)
        copies = self.processes.world // self.config.parallel.expert_parallel
        return experts // copies + (sum(sizes.values()) - experts if self.processes.is_first else 0)

    def step(self) -> float:
        """A training step; the seconds it took."""
        started = time.perf_counter()
        losses = training_losses(
            self.engine(self.images, self.texts), self.config.router.aux, self.config.model.routed_experts, self.peers
        )
        self.engine.backward(losses.total)
        self.engine.step()
        losses.total.item()
        return time.perf_counter() - started


def bench(processes: Processes, models: list[str]) -> str:
    """The table in Markdown. A collective."""
    return HEADER + "".join(map(_line, measure_each(models or MODELS, _measure, processes)))


def _measure(name: str, folder: Path, processes: Processes) -> Row:
    gc.collect()  # the model before
    subject = _Subject(name, processes)
    if processes.is_first:
        folder.mkdir()
        for file in (TOKENIZER, CONFIG):
            (folder / file).touch()
    processes.barrier()
    for _ in range(WARM_UP):
        subject.step()
    checkpointer = Checkpointer(folder, subject.config.checkpoint, processes, subject.sharding)

    def save_and_wait() -> None:
        checkpointer.save(subject.engine, TrainingProgress(step=1))
        checkpointer.wait()

    blocking = median(_timed(save_and_wait, processes) for _ in range(REPEATS))
    deepspeed = None if subject.config.model.expert_layers else _measure_deepspeed(subject, folder / "deepspeed", processes)
    beside = [_beside(subject, checkpointer) for _ in range(REPEATS)]
    step, copy, still = (median(values) for values in zip(*(figures for figures, _ in beside), strict=True))
    resume = median(_timed(lambda: _resume(subject, checkpoint_path(folder, 2)), processes) for _ in range(REPEATS))
    if processes.is_first:
        shutil.rmtree(folder)
    return Row(name, subject.parameters, beside[0][1], step, copy, still, blocking, resume, deepspeed)


def _beside(subject: _Subject, checkpointer: Checkpointer) -> tuple[tuple[float, float, float], int]:
    """Seconds of a step, of the copy, and of the total cost of a checkpoint during training; and its bytes."""
    step = median(subject.step() for _ in range(STEPS))
    started, steps = time.perf_counter(), 0
    checkpointer.save(subject.engine, TrainingProgress(step=2))
    copied = time.perf_counter() - started
    while not steps or subject.processes.any(not checkpointer.is_written):
        subject.step()
        steps += 1
    report = checkpointer.wait()
    assert report is not None  # or wait would have raised
    return (step, copied, time.perf_counter() - started - steps * step), report.bytes


def _resume(subject: _Subject, checkpoint: Path) -> None:
    check_sound(checkpoint, subject.processes)
    fresh = LIMoE(subject.config.model, subject.config.router, subject.peers)
    state = load_state(checkpoint, fresh, subject.sharding, (WEIGHTS, *MOMENTS))
    set_weights(fresh, state, again=True)
    set_optimizer_state(subject.engine, state, 1)


def _measure_deepspeed(subject: _Subject, folder: Path, processes: Processes) -> tuple[float, float, int]:
    save = median(_timed(lambda: subject.engine.save_checkpoint(str(folder), tag="it"), processes) for _ in range(REPEATS))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    load = median(_timed(lambda: subject.engine.load_checkpoint(str(folder), tag="it"), processes) for _ in range(REPEATS))
    if processes.is_first:
        shutil.rmtree(folder)
    return save, load, size


def _timed(work: Callable[[], object], processes: Processes) -> float:
    """Seconds until all ranks have done it."""
    processes.barrier()
    started = time.perf_counter()
    work()
    processes.barrier()
    return time.perf_counter() - started


def _line(row: Row) -> str:
    cells = [row.model, readable(row.parameters), _size(row.bytes)]
    cells += [f"{seconds:.2f} s" for seconds in (row.step, row.copy, row.still, row.blocking, row.resume)]
    if row.deepspeed is not None:
        save, load, size = row.deepspeed
        cells += [f"{save:.2f} s", f"{load:.2f} s", _size(size), f"{row.still / save:.2f}", f"{row.blocking / save:.2f}"]
    cells += [""] * (len(COLUMNS) - len(cells))
    return f"| {' | '.join(cells)} |\n"


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"
