"""Pictures of the experts while they are trained: all ranks measure with the model that is in memory, rank 0 draws."""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from trainer.distributed.agree import first_reads
from trainer.distributed.device import dtype_of
from trainer.errors import UserError, check_extra, reason
from trainer.evaluation.expert_findings import Findings, Looked, measure_experts
from trainer.evaluation.expert_samples import ExpertSamples, read_samples
from trainer.reporting.background import Background
from trainer.reporting.loads import LOADS
from trainer.training.directory import EXPERTS
from trainer.training.opening import OpenRun
from trainer.training.saver import due

_log = logging.getLogger(__name__)
T = TypeVar("T")
DRAWING_SECONDS = 120.0
"""How long a run that ends waits for its last pictures."""


class Draw(Protocol):
    """Draws the pictures (trainer.report.expert_page, which training does not know)."""

    def __call__(self, findings: Findings, command: str, folder: Path, loads: Path) -> dict[str, Path]:
        """Write them and their page into a folder; those to show elsewhere by name, such as `layer03/atlas`.

        loads: the file with the loads so far. Raises UserError if they cannot be written.
        """
        ...


class ExpertPictures:
    """Makes the pictures of a run. What cannot be read, drawn or written leaves out pictures, and nothing else."""

    def __init__(self, run: OpenRun, draw: Draw | None) -> None:
        """draw: None for no pictures, whatever the configuration says. A collective."""
        self._run, self._draw = run, draw
        self._samples: ExpertSamples | None = None
        self._drawer: Background | None = None
        asked = draw is not None and run.config.log.every_images is not None
        self._is_on = asked and self._try(self._check) is not None

    def is_due(self, step: int, ends: bool) -> bool:
        """Whether pictures are wanted after this step; ends: it is the last one."""
        return self._is_on and (ends or due(step, self._run.config.log.every_images))

    def make(self, before_each: Callable[[], None]) -> None:
        """Measure now, and draw in the background. A collective.

        before_each: called before each batch on all ranks, and may raise to end it: then there are no pictures of this step.
        """
        self._samples = self._samples or self._try(self._read)
        if self._samples is None:
            self._is_on = False
            return
        config, step, model = self._run.config, self._run.progress.step, self._run.engine.module
        looked = Looked(
            model,
            self._run.pairs.tokenizer,
            config,
            f"{config.run.name}, step {step}",
            step,
            dtype_of(config.train.precision),
            self._run.processes,
            before_each,
        )
        model.eval()
        try:
            findings = measure_experts(looked, self._samples, with_atlas=True)
        finally:
            model.train()
        if self._run.processes.is_first:
            self._drawer = self._drawer or Background("pictures")
            self._drawer.do(partial(self._show, findings, step))

    def close(self) -> None:
        """Wait for what is being drawn."""
        if self._drawer is not None and not self._drawer.wait(DRAWING_SECONDS):
            _log.warning("the last pictures of the experts are not drawn yet, and are left out")

    def _check(self) -> bool:
        """True; raises UserError where there can be no pictures."""
        config = self._run.config
        if not config.model.expert_layers:
            raise UserError(f"{config.model.name} has no expert layers")
        check_extra("matplotlib", "report", "pictures need matplotlib")
        return True

    def _read(self) -> ExpertSamples:
        config = self._run.config
        try:
            return read_samples(config, config.log.image_samples)
        except UserError:
            raise
        except Exception as problem:
            raise UserError(reason(problem)) from problem

    def _try(self, work: Callable[[], T]) -> T | None:
        """What rank 0 gets from this, on every rank; None, after a warning, if it raises UserError. A collective."""
        try:
            return first_reads(work, self._run.processes)
        except UserError as problem:
            if self._run.processes.is_first:
                _log.warning("log.every_images: no pictures of the experts: %s", problem)
            return None

    def _show(self, findings: Findings, step: int) -> None:
        """In the background, on rank 0: draw, and tell W&B."""
        assert self._draw is not None  # or nothing would be due
        command = f"python -m trainer.train run.name={self._run.config.run.name}"
        folder = self._run.run_dir / EXPERTS / f"step-{step:08d}"
        started = time.monotonic()
        try:
            drawn = self._draw(findings, command, folder, self._run.run_dir / LOADS)
        except Exception as problem:  # of the disk, or of a drawing library: no reason to end a run
            _log.warning("no pictures of the experts of step %d (%s): training continues without them", step, reason(problem))
            return
        _log.info("drew the experts of step %d into %s in %.0f s", step, folder, time.monotonic() - started)
        self._run.recorder.write_images(step, {f"experts/{name}": path for name, path in drawn.items()})
