"""A gradient that is not finite on one rank alone: no rank takes the step, it is counted, and too many end the run."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from tests.distributed.setups import Layout, NothingUnusable, TinyRun, batch, rows_of, tiny
from tests.distributed.spawn import run_distributed
from tests.distributed.test_runs import COMMON, TWO, run_program
from trainer.config.compose import compose_config
from trainer.data.batch import Batch
from trainer.data.loader import TrainingLoader
from trainer.distributed.processes import Processes
from trainer.engine.state import EMA, MOMENTS, WEIGHTS
from trainer.errors import UserError
from trainer.training.run import train
from trainer.training.step import StepOutcome, Trainer

pytestmark = pytest.mark.slow

STEADY = {"schedule__kind": "rsqrt", "schedule__warmup_steps": 0, "schedule__timescale": 10**12}
"""The same learning rate whatever the step, so that runs with and without a skipped step can be compared."""


@dataclass(frozen=True)
class Case:
    """A parameter that is spoilt on rank 1 in one of three steps."""

    layout: Layout
    victim: str
    bad_step: int


EXPERT = "towers.0.blocks.2.mlp.experts.down"
DENSE = "towers.0.blocks.0.attention.qkv.weight"


class Batches(NothingUnusable):
    """A TrainingLoader that gives the batches of these numbers."""

    def __init__(self, numbers: list[int], run: TinyRun) -> None:
        super().__init__()
        self._numbers = iter(numbers)
        self._run = run

    def __next__(self) -> Batch:
        """This rank's rows of the next batch."""
        images, texts = batch(next(self._numbers), self._run.config)
        # To pixels, which the trainer normalises.
        pixels = (images.float().clamp(-1, 1) * 127.5 + 127.5).to(torch.uint8)
        pixels, texts = rows_of(self._run.processes.rank, self._run.processes.world, pixels, texts)
        return Batch(pixels, texts, [str(row) for row in range(len(texts))])


class Spoiler:
    """Puts an infinity into one gradient of one parameter for as long as it is on."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.on = False
        self.hits = 0
        parameter.register_hook(self)

    def __call__(self, grad: Tensor) -> Tensor:
        """The gradient, spoilt in one element."""
        if not self.on:
            return grad
        self.hits += 1
        spoilt = grad.clone()
        spoilt.view(-1)[3] = float("inf")
        return spoilt


def trainer_of(run: TinyRun, numbers: list[int]) -> Trainer:
    """A trainer that takes these batches."""
    loader = cast(TrainingLoader, Batches(numbers, run))
    return Trainer(run.config, run.engine, loader, run.progress, run.processes, run.peers)


def held(run: TinyRun) -> list[Tensor]:
    """Copies of all that a step changes and this rank holds: forward weights, masters, moments, averages and routers' biases."""
    optimizer = run.engine.optimizer
    masters = getattr(optimizer, "fp32_partitioned_groups_flat", None) or optimizer.single_partition_of_fp32_groups
    moments = [tensor for master in masters for _, tensor in sorted(optimizer.optimizer.state[master].items())]
    weights = [getattr(parameter, "ds_tensor", parameter).detach() for parameter in run.engine.module.parameters()]
    return [tensor.detach().clone() for tensor in (*weights, *masters, *moments, *run.engine.module.buffers())]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether all tensors are equal to the last bit."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


def skip(processes: Processes, case: Case) -> list[tuple[float, float, float]]:
    """Train with a bad step among good ones, and without it; checks on each rank, and what was reported."""
    run = TinyRun(tiny(case.layout), processes)
    trainer = trainer_of(run, list(range(3)))
    spoiler = Spoiler(dict(run.engine.module.named_parameters())[case.victim])
    reports = []
    for number in range(3):
        bad = number == case.bad_step
        spoiler.on = bad and processes.rank == 1
        before = held(run)
        outcome = trainer.step()
        report = trainer.conclude(outcome)
        metrics = trainer.measure(outcome, report)
        reports.append((report.loss, metrics["train/grad_norm"], metrics["train/skipped_steps"]))
        assert same(before, held(run)) == bad
        assert run.progress.step == number + 1
        assert run.progress.skipped_steps == (number >= case.bad_step)
    assert spoiler.hits == (processes.rank == 1)
    assert run.progress.optimizer_steps == 2

    clean = TinyRun(tiny(case.layout), processes)
    good = trainer_of(clean, [number for number in range(3) if number != case.bad_step])
    for _ in range(2):
        good.conclude(good.step())
    spoilt_once, never = run.share(), clean.share()  # not `held`: ZeRO-3 pads with what lay in memory
    assert {name.partition("/")[0] for name in never} == {WEIGHTS, *MOMENTS, EMA}
    for name, value in never.items():
        expected, actual = (value, spoilt_once[name]) if isinstance(value, Tensor) else (value[1], spoilt_once[name][1])
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9, msg=name)
    return reports


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_no_rank_takes_a_step_that_one_rank_spoilt(stage, precision):
    layout = Layout(2, 2, stage).with_(**STEADY, train__precision=precision, train__ema=0.9)
    biased = layout.with_(router__bias__kind="modality", router__aux__load=0.0)
    for case in (Case(layout, EXPERT, 1), Case(layout, DENSE, 0), Case(biased, EXPERT, 1)):
        print(case)
        first, second = run_distributed(skip, 2, case)
        assert first == second
        assert [skipped for _, _, skipped in first] == [float(number >= case.bad_step) for number in range(3)]


def count_in_a_row(processes: Processes, layout: Layout) -> list[tuple[int, int, int]]:
    """Two bad steps, a good one, then only bad ones: what the progress counts after each."""
    run = TinyRun(tiny(layout), processes)
    trainer = trainer_of(run, list(range(5)))
    spoiler = Spoiler(dict(run.engine.module.named_parameters())[EXPERT])
    counts = []
    for number in range(5):
        spoiler.on = number != 2 and processes.rank == 1
        trainer.conclude(trainer.step())
        counts.append((run.progress.nonfinite_in_a_row, run.progress.skipped_steps, run.progress.optimizer_steps))
    return counts


def test_bad_steps_in_a_row_are_counted_alike_on_every_rank():
    first, second = run_distributed(count_in_a_row, 2, Layout(2, 2, 2))
    assert first == second == [(1, 1, 0), (2, 2, 0), (0, 2, 1), (1, 3, 1), (2, 4, 1)]


def diverge(processes: Processes, overrides: list[str], after: int) -> str:
    """The program, in which every step after so many is bad on rank 0; what it ends with."""
    took = Trainer.step
    spoilers: list[Spoiler] = []

    def step(trainer: Trainer) -> StepOutcome:
        if not spoilers:
            spoilers.append(Spoiler(dict(trainer.engine.module.named_parameters())["towers.0.blocks.0.attention.qkv.weight"]))
        spoilers[0].on = trainer.progress.step >= after and processes.is_first
        return took(trainer)

    Trainer.step = step  # type: ignore[method-assign]
    try:
        train(compose_config(overrides), processes)
    except UserError as problem:
        return str(problem)
    return ""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_checkpoints_from_before_stay_and_the_advice_to_go_back_works_again_and_again(tmp_path: Path):
    run_dir = tmp_path / "a run"
    overrides = [*COMMON, *TWO, f"data.cache={tmp_path / 'cache'}", f"run.dir='{run_dir}'", "train.steps=12"]
    overrides += ["train.max_nonfinite_steps=4", "checkpoint.every_steps=1", "checkpoint.keep=2"]
    advised: list[str] = []
    for turn in (1, 2):
        told = run_distributed(diverge, 2, [*overrides, *advised], 5)
        assert told[0] == told[1]
        assert "not finite in 4 steps in a row, up to step 9: go back to the checkpoint from before them" in told[0]
        assert names(run_dir / "checkpoints") == ["step-00000004", "step-00000005"]
        aside = run_dir / f"earlier-{turn}"
        assert told[0].endswith(f"(checkpoints since then are now in {aside})")
        assert json.loads((aside / "step-00000008" / "progress.json").read_text())["nonfinite_in_a_row"] == 3
        advised = [word for word in shlex.split(told[0].replace(",", "")) if word.startswith("resume=")]
        assert advised == [f"resume={run_dir}/checkpoints/step-00000005"]
    assert run_distributed(run_program, 2, [*overrides, *advised, "optim.lr=0.001"]) == [0, 0]
    assert list(losses_by_step(run_dir)) == list(range(1, 13))


def losses_by_step(run_dir: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def test_without_a_checkpoint_from_before_the_same_command_begins_anew(tmp_path: Path):
    run_dir = tmp_path / "run"
    overrides = [*COMMON, *TWO, f"data.cache={tmp_path / 'cache'}", f"run.dir={run_dir}", "train.steps=4"]
    overrides += ["train.max_nonfinite_steps=3", "checkpoint.every_steps=1"]
    told = run_distributed(diverge, 2, overrides, 0)
    assert "no checkpoint from before them is left, so start over with the same command" in told[0]
    assert run_distributed(run_program, 2, overrides) == [0, 0]
    assert list(losses_by_step(run_dir)) == [1, 2, 3, 4]
