"""A whole run: everything a training needs is opened in order, then steps, evaluations, checkpoints, and the table at the end."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.limoe import LIMoE
from trainer.checkpoint.load import SavedState, load_state, read_progress, resumed_kinds
from trainer.checkpoint.progress import TrainingProgress
from trainer.checkpoint.save import Checkpointer, SaveReport
from trainer.config.checks import check_layout, check_schedule
from trainer.config.schema import Config
from trainer.distributed.device import dtype_of
from trainer.distributed.processes import Processes
from trainer.distributed.signals import EXIT_INTERRUPTED, EXIT_STOPPED, StopRequest, exit_code
from trainer.engine.build import build_engine, start_deepspeed
from trainer.engine.ema import start_ema
from trainer.engine.placement import layout_rows
from trainer.engine.state import WEIGHTS, ExpertSharding, set_optimizer_state, set_weights
from trainer.errors import UserError, did_you_mean
from trainer.evaluation.encoder import ModelEncoder
from trainer.evaluation.suite import evaluate, is_constant, summary_rows
from trainer.reporting.bar import Progress, duration
from trainer.reporting.journal import Journal
from trainer.reporting.log_lines import log_to_file
from trainer.reporting.tables import layout_table, summary_table
from trainer.reporting.wandb_run import WandbRun, leet_command
from trainer.training.directory import METRICS, initial_weights, open_run_directory, write_config
from trainer.training.inputs import TrainingPairs, find_pairs, locate_data
from trainer.training.position import Position
from trainer.training.step import StepReport, Trainer

_log = logging.getLogger(__name__)


class Recorder:
    """Where rank 0 writes metrics: metrics.jsonl and W&B. On other ranks it does nothing."""

    def __init__(self, config: Config, run_dir: Path, resume_step: int | None, processes: Processes) -> None:
        self._journal: Journal | None = None
        self._wandb: WandbRun | None = None
        if processes.is_first:
            self._journal = Journal(run_dir / METRICS, resume_step)
            self._wandb = WandbRun.start(config.log, run_dir, config.run.name, asdict(config))

    @property
    def has_curves(self) -> bool:
        """Whether W&B files lie in the run directory."""
        return self._wandb is not None and self._wandb.mode != "disabled"

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Record the metrics of a step."""
        if self._journal and self._wandb:
            self._journal.write(step, metrics)
            # A curve of a constant would only stand in the way; metrics.jsonl has them all.
            self._wandb.log(step, {name: value for name, value in metrics.items() if not is_constant(name)})

    def close(self, code: int) -> None:
        """Finish; `code` is the exit code that W&B shows."""
        if self._journal and self._wandb:
            self._journal.close()
            self._wandb.finish(code, stopped=code in (EXIT_STOPPED, EXIT_INTERRUPTED))


class EvaluationStopped(Exception):
    """Some rank was asked to stop during an evaluation; raised on all of them."""


class Run:
    """One training run in one process of many. Build it, `train` it; all ranks do the same things in the same order."""

    def __init__(self, config: Config, processes: Processes) -> None:
        """Open everything. Raises UserError for whatever is wrong with the configuration, the data or the run directory."""
        self.stop = StopRequest(announce=processes.is_first)
        check_layout(config, processes.world)
        check_schedule(config.schedule, config.train.steps)
        self.processes = processes
        self.run_dir, checkpoint = open_run_directory(config, processes)
        log_to_file(self.run_dir, processes.rank)
        weights = None if checkpoint else initial_weights(config, self.run_dir, processes)
        self.config = locate_data(config, processes)
        self.pairs: TrainingPairs = find_pairs(self.config, self.run_dir, processes)
        self.peers = start_deepspeed(processes, config.parallel.expert_parallel)
        self.sharding = ExpertSharding(processes, config.parallel.expert_parallel)
        self.progress = TrainingProgress(seed=config.seed)
        self.engine = self._build_engine(checkpoint, weights)
        self.checkpointer = Checkpointer(self.run_dir, config.checkpoint, processes, self.sharding, checkpoint)
        self.loader = self.pairs.loader(processes, self.progress.pairs, self.progress.streams, self.progress.data)
        self.progress.streams = self.loader.streams
        write_config(config, self.run_dir, processes)
        self.trainer = Trainer(self.config, self.engine, self.loader, self.progress, processes, self.peers)
        self.recorder = Recorder(config, self.run_dir, self.progress.step if checkpoint else None, processes)
        self.first_step = self.progress.step
        self.position = Position(self.first_step, processes.is_first)

    def _build_engine(self, checkpoint: Path | None, weights: Path | None) -> Any:
        model = LIMoE(self.config.model, self.config.router, self.peers).initialise(self.config.seed)
        state: SavedState | None = None
        if checkpoint is not None:
            self.progress = read_progress(checkpoint)
            state = load_state(checkpoint, model, self.sharding, resumed_kinds(checkpoint, self.config.train))
            set_weights(model, state, again=True)
        elif weights is not None:
            set_weights(model, load_state(weights, model, self.sharding, (WEIGHTS,)))
        engine = build_engine(self.config, model, self.processes, self.peers)
        if state is not None:
            set_optimizer_state(engine, state, self.progress.optimizer_steps)
        start_ema(engine, self.config.train, state, self.progress.step, self.processes)
        return engine

    def train(self) -> int:
        """Train to the last step, or until asked to stop; returns the process's exit code."""
        steps = self.config.train.steps
        started = self._saved_at = time.monotonic()
        metrics: dict[str, float] = {}
        last: StepReport | None = None
        with self._progress_bar() as bar:
            if self.progress.step in (0, steps) or self.progress.evaluation_due:
                metrics, signal = self._evaluate(bar)
                if signal:
                    return self._stopped(bar, signal)
                self._is_best(metrics)  # tells now, not after hours, that there is no such metric
            while self.progress.step < steps:
                last = self._step(bar)
                ends, signal, best = last.step == steps, last.stop_signal, False
                self.progress.evaluation_due = ends or _due(last.step, self.config.eval.every)
                # Who asks to stop leaves little time: the next start evaluates.
                if self.progress.evaluation_due and not signal:
                    metrics, signal = self._evaluate(bar)
                    if not signal:
                        self.progress.evaluation_due, best = False, self._is_best(metrics)
                if ends or signal or best or self._checkpoint_due(last.step):
                    self._save()
                if ends or signal:
                    self._record_save(self.checkpointer.wait(must_succeed=True))
                if signal:
                    return self._stopped(bar, signal)
        self._summarise(metrics, last, time.monotonic() - started)
        return 0

    def _step(self, bar: Progress) -> StepReport:
        """Take the next step and tell of it where that is due."""
        self.position.at(self.progress.step + 1)
        self.processes.watchdog.note(f"training step {self.progress.step + 1}")
        last = self.trainer.step(lambda: self.stop.signal, lambda: self.checkpointer.is_written)
        ends = last.step == self.config.train.steps or last.stop_signal != 0
        report = ends or _due(last.step, self.config.log.every) or last.step == self.first_step + 1
        speed = last.metrics["perf/pairs_per_second"]
        bar.update(last.step, loss=last.loss, success=last.success, pairs_per_second=speed, report=report)
        if report:
            self.recorder.write(last.step, last.metrics)
        if last.all_written:
            self._record_save(self.checkpointer.wait())
        return last

    def close(self, code: int) -> None:
        """Stop the loader and finish the records."""
        self.loader.close()
        self.recorder.close(code)

    @contextmanager
    def _progress_bar(self) -> Iterator[Progress]:
        mode = self.config.log.progress if self.processes.is_first else "none"
        if self.processes.is_first:
            layout = layout_rows(self.config, self.processes)
            layout_table(layout)
        else:
            layout_rows(self.config, self.processes)
        with Progress.start(self.config.train.steps, self.first_step, mode) as bar:
            for line in self.pairs.told:
                bar.message(line)
            if self.first_step:
                bar.message(f"going on from step {self.first_step} of {self.config.train.steps}")
            yield bar

    def _evaluate(self, bar: Progress) -> tuple[dict[str, float], int]:
        """The metrics, and 0; or none, and the signal that asked some rank to stop meanwhile."""
        self.processes.watchdog.note(f"evaluating after step {self.progress.step}")
        model = self.engine.module
        model.eval()
        try:
            encoder = ModelEncoder(model, self.config.data, dtype_of(self.config.train.precision), self._heed_stop)
            metrics = evaluate(self.config, encoder, self.pairs.tokenizer, self.processes)
        except EvaluationStopped:
            return {}, max(self.processes.gather_objects(self.stop.signal))
        finally:
            model.train()
        self.recorder.write(self.progress.step, metrics)
        shown = ", ".join(f"{what} {value}" for what, value, _ in summary_rows(metrics)[:3])
        if shown:
            bar.message(f"step {self.progress.step}: {shown}")
        return metrics, 0

    def _heed_stop(self) -> None:
        if self.processes.any(self.stop.signal != 0):
            raise EvaluationStopped

    def _checkpoint_due(self, step: int) -> bool:
        config = self.config.checkpoint
        if _due(step, config.every_steps):
            return True
        if not config.every_minutes:
            return False
        # Clocks differ between ranks: rank 0's counts.
        return bool(self.processes.from_first(time.monotonic() - self._saved_at >= 60 * config.every_minutes))

    def _save(self) -> None:
        self.processes.watchdog.note(f"saving after step {self.progress.step}")
        # A new value, since the old one may be on its way to the disk.
        self.progress.data = self.progress.data.merged(self.processes.gather_objects(self.loader.report()))
        self._record_save(self.checkpointer.save(self.engine, self.progress))
        self._saved_at = time.monotonic()

    def _is_best(self, metrics: dict[str, float]) -> bool:
        """Whether the metric that `checkpoint.best` names is better than ever before."""
        name, best = self.config.checkpoint.best, self.progress.best
        if name is None:
            return False
        if name not in metrics:
            raise UserError(
                f"checkpoint.best={name}: no evaluation measures it{did_you_mean(name, metrics)}; "
                f"choose one of {', '.join(sorted(metric for metric in metrics if not is_constant(metric)))}"
            )
        value = metrics[name]
        better = best is None or (value > best if self.config.checkpoint.best_mode == "max" else value < best)
        if better:
            self.progress.best, self.progress.best_step = value, self.progress.step
        return better

    def _record_save(self, report: SaveReport | None) -> None:
        if report is not None:
            self.position.saved(report.step)
            measured = {"seconds": report.blocked, "write_seconds": report.written, "gib": report.bytes / 2**30}
            self.recorder.write(self.progress.step, {f"perf/checkpoint_{name}": value for name, value in measured.items()})

    def _stopped(self, bar: Progress, number: int) -> int:
        step = self.progress.step
        where = f"after step {step}, which is saved: the same command goes on from there" if step else "before the first step"
        bar.message(f"stopped by signal {number} {where}")
        self.position.stopped(exit_code(number))
        return exit_code(number)

    def _summarise(self, metrics: dict[str, float], last: StepReport | None, seconds: float) -> None:
        if not self.processes.is_first:
            return
        rows = summary_rows(metrics)
        if last is not None:
            rows += [(f"routing success, {name}", f"{value:.1%}", "") for name, value in last.success.items()]
            rows.append(("loss", f"{last.loss:.3f}", ""))
        rows.append(("wall time", duration(seconds), ""))
        notes = [("run directory", str(self.run_dir))]
        if self.recorder.has_curves:
            notes.append(("the curves in this terminal, without an account (q quits)", leet_command(self.run_dir)))
        summary_table(f"{self.config.run.name}: {self.progress.step} steps", rows, notes)


def _due(step: int, every: int | None) -> bool:
    """Whether something that happens every so many steps happens after this one; 0 and null: only at the end."""
    return bool(every) and step % (every or 1) == 0
