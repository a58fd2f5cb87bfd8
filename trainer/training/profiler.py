"""Records a few steps in detail: what ran when, on the CPU and on the GPU, and what the GPU's memory was used for."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from trainer.config.profile import profiled_steps
from trainer.config.schema import TrainConfig
from trainer.distributed.processes import Processes
from trainer.errors import reason

_log = logging.getLogger(__name__)
PROFILE = "profile"
"""The folder in the run directory."""
_MEMORY_EVENTS = 100_000


class StepProfiler:
    """Profiles the steps of train.profile on the ranks of train.profile_ranks; for all other steps and ranks it does nothing.

    Of the range, it records what this start of the run takes. The step before it warms the profiler up, if there is one.
    """

    def __init__(self, train: TrainConfig, run_dir: Path, processes: Processes, first_step: int) -> None:
        """first_step: how many are done when this start begins."""
        wanted = profiled_steps(train)
        self._steps = range(max(wanted.start, first_step + 1), wanted.stop)
        self._warms_up = self._steps.start > first_step + 1
        self._mine = bool(self._steps) and processes.rank in train.profile_ranks
        self._rank = processes.rank
        self._on_gpu = processes.device.type == "cuda"
        self._folder = run_dir / PROFILE
        self._running: profile | None = None
        self._last = 0

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around each step of the run, by its number."""
        if self._mine and number == self._steps.start - self._warms_up:
            self._start()
        if self._running is None:
            yield
            return
        with record_function(f"step {number}"):
            yield
        self._last = number
        self._running.step()
        if number == self._steps[-1]:
            self.close()

    def close(self) -> None:
        """End now, and write what there is, whether or not all steps were taken."""
        if self._running is None:
            return
        ending, self._running = self._running, None
        try:
            ending.stop()
        finally:
            if self._on_gpu:
                torch.cuda.memory._record_memory_history(enabled=None)

    def told(self, number: int) -> str | None:
        """After the last of the steps, where to find what the ranks have recorded."""
        if not self._steps or number != self._steps[-1]:
            return None
        memory = "memory at pytorch.org/memory_viz" if self._on_gpu else "no memory snapshot: that is for GPUs"
        return f"profile of steps {self._steps[0]} to {number}: {self._place(number)} (traces open at ui.perfetto.dev; {memory})"

    def _place(self, last: int) -> Path:
        return self._folder / f"steps-{self._steps[0]}-{last}"

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, where there is no step to warm up in
            phases = schedule(wait=0, warmup=int(self._warms_up), active=len(self._steps), repeat=1)
            self._running = profile(activities=activities, schedule=phases, on_trace_ready=self._write, record_shapes=True)
            self._running.start()
        if self._on_gpu:
            torch.cuda.memory._record_memory_history(max_entries=_MEMORY_EVENTS)

    def _write(self, recorded: profile) -> None:
        """A failure loses the profile, not the run."""
        place = self._place(max(self._last, self._steps[0]))
        try:
            place.mkdir(parents=True, exist_ok=True)
            recorded.export_chrome_trace(str(place / f"rank-{self._rank}.pt.trace.json.gz"))
            if self._on_gpu:
                torch.cuda.memory._dump_snapshot(str(place / f"rank-{self._rank}.memory.pickle"))
            _log.info("profile of rank %d up to step %d: %s", self._rank, self._last, place)
        except (OSError, RuntimeError) as problem:
            _log.warning("the profile could not be written to %s (%s): training continues without it", place, reason(problem))
