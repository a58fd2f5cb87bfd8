"""Where a run's measurements go: metrics.jsonl and Weights & Biases."""

from dataclasses import asdict
from pathlib import Path

from trainer.config.schema import Config
from trainer.distributed.agree import raise_together
from trainer.distributed.processes import Processes
from trainer.distributed.program import EXIT_FAILURE
from trainer.distributed.signals import EXIT_INTERRUPTED, EXIT_STOPPED
from trainer.errors import UserError
from trainer.evaluation.suite import is_constant
from trainer.reporting.journal import Journal
from trainer.reporting.wandb_run import WandbRun
from trainer.training.directory import METRICS


class Recorder:
    """Writes metrics on rank 0; on other ranks it does nothing."""

    def __init__(self, config: Config, run_dir: Path, resume_step: int | None, processes: Processes) -> None:
        """Open both; `resume_step` as in `Journal`. A collective: what rank 0 cannot open is a UserError on every rank."""
        self.exit_code = EXIT_FAILURE
        """The state that W&B shows at the end: failed, unless the run says otherwise before it is closed."""
        self._journal: Journal | None = None
        self._wandb: WandbRun | None = None
        problem = None
        try:
            if processes.is_first:
                self._journal = Journal(run_dir / METRICS, resume_step)
                self._wandb = WandbRun.start(config.log, run_dir, config.run.name, asdict(config))
        except UserError as error:
            problem = str(error)
            self.close()
        raise_together(problem, processes)

    @property
    def has_curves(self) -> bool:
        """Whether W&B files are in the run directory."""
        return self._wandb is not None and self._wandb.mode != "disabled"

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of a step."""
        if self._journal and self._wandb:
            self._journal.write(step, metrics)
            # A curve of a constant would only be in the way; metrics.jsonl has them all.
            self._wandb.log(step, {name: value for name, value in metrics.items() if not is_constant(name)})

    def close(self) -> None:
        """Finish what is open; no `write` may follow."""
        try:
            if self._journal:
                self._journal.close()
        finally:
            if self._wandb:
                self._wandb.finish(self.exit_code, stopped=self.exit_code in (EXIT_STOPPED, EXIT_INTERRUPTED))
