"""When a run is saved: at regular steps or times, and when an evaluation is the best so far."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from trainer.checkpoint.save import SaveReport
from trainer.errors import UserError, did_you_mean
from trainer.evaluation.suite import is_constant
from trainer.reporting.alerts import Alert
from trainer.training.boundary import Boundary
from trainer.training.opening import OpenRun

_log = logging.getLogger(__name__)


class Saver:
    """Saves a run when due, and records the cost. All ranks call its methods, but not its properties, together."""

    def __init__(self, run: OpenRun) -> None:
        self._run = run
        self._config = run.config.checkpoint
        self._saved_at = time.monotonic()
        self._is_told = False
        """Whether an alert was raised since a checkpoint was written the last time."""

    @property
    def is_written(self) -> bool:
        """Whether this rank is done with a checkpoint that `collect` has not been called for."""
        return self._run.checkpointer.is_written

    @property
    def minutes_over(self) -> bool:
        """Whether `checkpoint.every_minutes` have passed since the last checkpoint, by this rank's clock."""
        minutes = self._config.every_minutes
        return bool(minutes) and time.monotonic() - self._saved_at >= 60 * (minutes or 0)

    def is_due(self, step: int, boundary: Boundary) -> bool:
        """Whether the configuration wants a checkpoint after this step."""
        return boundary.minutes_over or due(step, self._config.every_steps)

    def is_best(self, metrics: dict[str, float]) -> bool:
        """Whether the metric that `checkpoint.best` names is better than ever before; the progress then says so.

        Raises UserError when no evaluation produces it.
        """
        name, progress = self._config.best, self._run.progress
        if name is None:
            return False
        if name not in metrics:
            raise UserError(
                f"checkpoint.best={name}: no evaluation produces this metric{did_you_mean(name, metrics)}; "
                f"choose one of {', '.join(sorted(metric for metric in metrics if not is_constant(metric)))}"
            )
        value, best = metrics[name], progress.best
        better = best is None or (value > best if self._config.best_mode == "max" else value < best)
        if better:
            progress.best, progress.best_step = value, progress.step
        return better

    def save(self) -> None:
        """Begin to write a checkpoint. Raises UserError as `Checkpointer.save` does."""
        run, progress = self._run, self._run.progress
        run.processes.watchdog.note(f"saving after step {progress.step}")
        # A new value, since the old one may be on its way to the disk.
        progress.data = progress.data.merged(run.processes.gather_objects(run.loader.report()))
        with self._alerting():
            self._record(run.checkpointer.save(run.engine, progress))
        self._saved_at = time.monotonic()

    def collect(self, must_succeed: bool = False) -> None:
        """Wait for the checkpoint that is being written, if any. Raises UserError as `Checkpointer.wait` does."""
        with self._alerting():
            self._record(self._run.checkpointer.wait(must_succeed))

    def settle(self) -> None:
        """Let a checkpoint that is being written be completed, if the run ends for a reason other than the disk."""
        try:
            self.collect()
        except UserError as problem:
            if self._run.processes.is_first:
                _log.warning("%s", problem)

    @contextmanager
    def _alerting(self) -> Iterator[None]:
        """Raise an alert if a checkpoint turns out not to be written, and the last one that was tried before was."""
        try:
            yield
        finally:
            problem = self._run.checkpointer.problem
            if problem and not self._is_told:
                self._run.recorder.alert(Alert("A checkpoint was not written", problem), is_told=True)
            self._is_told = problem is not None

    def _record(self, report: SaveReport | None) -> None:
        if report is not None:
            self._run.position.saved(report.step)
            measured = {"seconds": report.blocked, "write_seconds": report.written, "gib": report.bytes / 2**30}
            metrics = {f"perf/checkpoint_{name}": value for name, value in measured.items()}
            self._run.recorder.write(self._run.progress.step, metrics)


def due(step: int, every: int | None) -> bool:
    """Whether something that happens every `every` steps happens after this one; 0 and null: only at the end."""
    return bool(every) and step % (every or 1) == 0
