"""A whole run: steps, evaluations and checkpoints in turn, and the table at the end."""

import logging
import shlex
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from trainer.config.schema import Config
from trainer.distributed.device import dtype_of
from trainer.distributed.processes import Processes
from trainer.distributed.signals import exit_code
from trainer.engine.placement import layout_rows
from trainer.errors import UserError
from trainer.evaluation.encoder import ModelEncoder
from trainer.evaluation.suite import Memory, evaluate, summary_rows
from trainer.reporting.bar import Progress, duration
from trainer.reporting.example_tables import ExampleTable
from trainer.reporting.leet import leet_command
from trainer.reporting.tables import layout_table, summary_table
from trainer.training.directory import leave_nonfinite
from trainer.training.expert_pictures import Draw, ExpertPictures
from trainer.training.opening import OpenRun, open_run
from trainer.training.profiler import StepProfiler
from trainer.training.saver import Saver, due
from trainer.training.step import StepReport, Trainer

_log = logging.getLogger(__name__)


def train(config: Config, processes: Processes, draw: Draw | None = None) -> int:
    """A whole run in one process of many; returns the process's exit code. All ranks do the same things in the same order.

    draw: what draws the pictures of the experts, if log.every_images asks for them.
    Raises UserError for problems with the configuration, the data, the run directory or the disk, and when training
    cannot continue.
    """
    with open_run(config, processes) as opened, closing(ExpertPictures(opened, draw)) as experts:
        opened.recorder.exit_code = code = Run(opened, experts).train()
    return code


class EvaluationStopped(Exception):
    """Some rank was asked to stop during an evaluation; raised on all of them."""


class Run:
    """One training run, open."""

    def __init__(self, opened: OpenRun, experts: ExpertPictures) -> None:
        self.opened = opened
        self.experts = experts
        self.config = opened.config
        self.processes = opened.processes
        self.progress = opened.progress
        self.first_step = opened.progress.step
        self.trainer = Trainer(opened.config, opened.engine, opened.loader, opened.progress, opened.processes, opened.peers)
        self.profiler = StepProfiler(opened.config.train, opened.run_dir, opened.processes, self.first_step)
        self.saver = Saver(opened)
        self.metrics: dict[str, float] = {}
        """Of the last evaluation."""
        self.memory = Memory()
        """What the next evaluation need not find out again."""
        self.last: StepReport | None = None
        self.success: dict[str, float] = {}
        """Of the last step that was recorded, by modality."""

    def train(self) -> int:
        """Train to the last step, or until asked to stop; returns the process's exit code."""
        started = time.monotonic()
        self._tell_if_done()
        with self._progress_bar() as bar, closing(self.profiler):
            signal = self._first_evaluation(bar)
            while not signal and self.progress.step < self.config.train.steps:
                signal = self._advance(bar)
            if signal:
                return self._stopped(bar, signal)
        self._summarise(time.monotonic() - started)
        return 0

    def _tell_if_done(self) -> None:
        done, steps = self.progress.step, self.config.train.steps
        if self.processes.is_first and done >= steps:
            _log.warning(
                "train.steps=%d, but step %d is done already: nothing is left to do; set train.steps above %d to train more, or "
                "another run.name for a new run",
                *(steps, done, done),
            )

    def _first_evaluation(self, bar: Progress) -> int:
        """Evaluate before the first step, at the end, and if an earlier start left it to do; the signal to stop, or 0."""
        if self.progress.step not in (0, self.config.train.steps) and not self.progress.evaluation_due:
            return 0
        signal = self._evaluate(bar)
        if not signal:
            self.saver.is_best(self.metrics)  # reports now, not after hours, that there is no such metric
        return signal

    def _advance(self, bar: Progress) -> int:
        """A step, then an evaluation and a checkpoint if due; the signal that asks to stop, or 0."""
        report = self.last = self._step(bar)
        ends, signal, best = report.step == self.config.train.steps, report.boundary.stop_signal, False
        self.progress.evaluation_due = ends or due(report.step, self.config.eval.every)
        # A request to stop leaves little time: the next start evaluates.
        if self.progress.evaluation_due and not signal:
            signal = self._evaluate(bar)
            if not signal:
                self.progress.evaluation_due, best = False, self.saver.is_best(self.metrics)
        if not signal and self.experts.is_due(report.step, ends):
            signal = self._show_experts()
        if ends or signal or best or self.saver.is_due(report.step, report.boundary):
            self.saver.save()
        if ends or signal:
            self.saver.collect(must_succeed=True)
        return signal

    def _step(self, bar: Progress) -> StepReport:
        """Take the next step, and report it when due."""
        number = self.progress.step + 1
        self.opened.position.at(number)
        self.processes.watchdog.note(f"training step {number}")
        with self.profiler.step(number):
            outcome = self.trainer.step()
            report = self.trainer.conclude(outcome, self.opened.stop.signal, self.saver.is_written, self.saver.minutes_over)
        self._check_finite()
        ends = number == self.config.train.steps or report.boundary.stop_signal != 0
        told = ends or self.trainer.is_recorded(number)
        if told:
            metrics = self.trainer.measure(outcome, report)
            self.success = _success(metrics)
            self.opened.recorder.write(number, metrics, self.trainer.loads(outcome))
        bar.update(number, loss=report.loss, success=self.success, pairs_per_second=report.pairs_per_second, report=told)
        if profiled := self.profiler.told(number):
            bar.message(profiled)
        if report.boundary.all_written:
            self.saver.collect()
        return report

    def _check_finite(self) -> None:
        """Raise UserError after too many steps in a row that were not finite; it says which checkpoint to go back to."""
        in_a_row = self.progress.nonfinite_in_a_row
        if in_a_row < self.config.train.max_nonfinite_steps:
            return
        self.saver.settle()
        good, aside = leave_nonfinite(self.opened.run_dir, self.processes)
        if good:
            back = f"go back to the checkpoint from before them with {shlex.quote(f'resume={good}')}"
        else:
            back = "no checkpoint from before them is left, so start over with the same command"
        raise UserError(
            f"the loss or its gradient was not finite in {in_a_row} steps in a row, up to step {self.progress.step}: "
            f"{back}, and lower optim.lr, lengthen schedule.warmup_steps, or use train.precision=fp32"
            + (f" (checkpoints since then are now in {aside})" if aside else "")
        )

    def _evaluate(self, bar: Progress) -> int:
        """Evaluate into `metrics`; 0, or the signal that asked a rank to stop meanwhile, which leaves them unchanged."""
        step = self.progress.step
        self.processes.watchdog.note(f"evaluating after step {step}")
        model = self.opened.engine.module
        model.eval()
        tables: dict[str, ExampleTable] = {}
        try:
            encoder = ModelEncoder(model, self.config.data, dtype_of(self.config.train.precision), self._heed_stop)
            tokenizer = self.opened.pairs.tokenizer
            self.metrics = evaluate(self.config, encoder, tokenizer, self.processes, self.memory, tables=tables)
        except EvaluationStopped:
            return self._signal()
        finally:
            model.train()
        self.opened.recorder.write(step, self.metrics)
        self.opened.recorder.write_tables(step, tables)
        shown = ", ".join(f"{what} {value}" for what, value, _ in summary_rows(self.metrics)[:3])
        if shown:
            bar.message(f"step {step}: {shown}")
        return 0

    def _show_experts(self) -> int:
        """Make pictures of the experts; 0, or the signal that asked a rank to stop meanwhile, which leaves them out."""
        self.processes.watchdog.note(f"looking at the experts after step {self.progress.step}")
        try:
            self.experts.make(self._heed_stop)
        except EvaluationStopped:
            return self._signal()
        return 0

    def _signal(self) -> int:
        """The greatest signal that any rank was sent."""
        return max(self.processes.gather_objects(self.opened.stop.signal))

    def _heed_stop(self) -> None:
        if self.processes.any(self.opened.stop.signal != 0):
            raise EvaluationStopped

    @contextmanager
    def _progress_bar(self) -> Iterator[Progress]:
        layout = layout_rows(self.config, self.processes)
        if self.processes.is_first:
            layout_table(layout)
        mode = self.config.log.progress if self.processes.is_first else "none"
        with Progress.start(self.config.train.steps, self.first_step, mode) as bar:
            for line in self.opened.pairs.told:
                bar.message(line)
            if self.first_step:
                bar.message(f"continuing from step {self.first_step} of {self.config.train.steps}")
            yield bar

    def _stopped(self, bar: Progress, number: int) -> int:
        step = self.progress.step
        where = f"after step {step}, which is saved: run the same command again to continue" if step else "before the first step"
        bar.message(f"stopped by signal {number} {where}")
        self.opened.position.stopped(exit_code(number))
        return exit_code(number)

    def _summarise(self, seconds: float) -> None:
        if not self.processes.is_first:
            return
        rows = summary_rows(self.metrics)
        if self.last is not None:
            rows += [(f"routing success, {name}", f"{value:.1%}", "") for name, value in self.success.items()]
            rows.append(("loss", f"{self.last.loss:.3f}", ""))
        rows.append(("wall time", duration(seconds), ""))
        run_dir = self.opened.run_dir
        notes = [("run directory", str(run_dir))]
        if self.opened.recorder.has_curves:
            notes.append(("to see the curves in this terminal, without an account (q quits)", leet_command(run_dir)))
        summary_table(f"{self.config.run.name}: {self.progress.step} steps", rows, notes)


def _success(metrics: dict[str, float]) -> dict[str, float]:
    """The routing success in a step's metrics, by modality; empty for a dense model."""
    prefix = "routing/success/"
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
