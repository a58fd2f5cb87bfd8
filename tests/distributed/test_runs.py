"""Whole runs by the program itself: the same seed gives the same losses, and a resumed run those of the uninterrupted one."""

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from torch import Tensor

from tests.distributed.program import torchrun
from tests.distributed.spawn import RanksFailed, run_distributed
from trainer.checkpoint.files import checkpoint_path, complete_checkpoints
from trainer.checkpoint.load import read_progress
from trainer.checkpoint.progress import TrainingProgress
from trainer.config.compose import compose_config
from trainer.config.schema import Config
from trainer.distributed.processes import Processes
from trainer.distributed.signals import EXIT_STOPPED
from trainer.evaluation.encoder import ModelEncoder
from trainer.reporting.log_lines import log_to_terminal
from trainer.train import train
from trainer.training.opening import OpenRun
from trainer.training.passes import Piece
from trainer.training.run import Run
from trainer.training.saver import Saver
from trainer.training.step import Trainer

pytestmark = pytest.mark.slow

STEPS = 12
EVERY = 5
"""Steps between checkpoints, and those of a run that is cut short."""

COMMON = [
    "data=shapes",
    "data.shapes_train=160",
    "data.shapes_val=16",
    "data.shuffle_buffer=20",
    "model.width=32",
    "model.mlp=64",
    "model.embedding=32",
    "model.layers=2",
    "model.expert_layers=[1]",
    "model.image_size=16",
    "model.patch=8",
    "model.vocabulary=120",
    "train.batch_size=16",
    "train.precision=fp32",
    "eval.batch_size=16",
    "eval.every=0",
    "eval.retrieval=false",
    "eval.zeroshot={}",
    "eval.fewshot={}",
    f"checkpoint.every_steps={EVERY}",
    "checkpoint.keep=9",
    # A rate that does not depend on the number of steps, so that a run can be cut short by asking for fewer.
    "schedule=rsqrt",
    "schedule.warmup_steps=3",
    "schedule.cooldown_steps=0",
    "optim.lr=0.003",
    "optim.eps=1e-4",
    "log.every=1",
    "log.wandb=disabled",
    "log.report=false",
    "log.progress=none",
    "run.device=cpu",
]
TWO = ["parallel.expert_parallel=2", "parallel.zero_stage=2"]
NO_DROPS_NO_NOISE = ["router.capacity_factor=8", "router.noise=0", "data.workers=0"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where the embedded data set is written, once for all runs."""
    return tmp_path_factory.mktemp("cache")


def under_torchrun(world: int, run_dir: Path, cache: Path, *overrides: str) -> list[float]:
    """Run the program under torchrun; the losses in metrics.jsonl."""
    ended = torchrun(world, "trainer.train", [*COMMON, f"data.cache={cache}", f"run.dir={run_dir}", *overrides])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return losses_in(run_dir)


def in_forks(world: int, run_dir: Path, cache: Path, *overrides: str) -> list[float]:
    """The same without torchrun, whose processes take long to start."""
    codes = run_distributed(run_program, world, [*COMMON, f"data.cache={cache}", f"run.dir={run_dir}", *overrides])
    assert codes == [0] * world
    return losses_in(run_dir)


def run_program(processes: Processes, overrides: list[str]) -> int:
    """What every rank does."""
    log_to_terminal(processes.rank)
    return train(compose_config(overrides), processes)


def losses_in(run_dir: Path) -> list[float]:
    """The loss of every step that metrics.jsonl holds, in order."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    first = min(losses)
    assert list(losses) == list(range(first, first + len(losses))), "every step once, in order"
    return list(losses.values())


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path, cache):
    whole = in_forks(2, tmp_path / "whole", cache, *TWO, f"train.steps={STEPS}")
    assert len(whole) == STEPS
    short = in_forks(2, tmp_path / "cut", cache, *TWO, f"train.steps={EVERY}")
    assert short == pytest.approx(whole[:EVERY], rel=1e-6), "the same seed and layout, the same losses"
    resumed = under_torchrun(2, tmp_path / "cut", cache, *TWO, f"train.steps={STEPS}")
    assert resumed == pytest.approx(whole, rel=1e-6)
    assert whole[-1] < whole[0], "it learns"


def test_a_run_goes_on_with_other_processes(tmp_path, cache):
    alone = in_forks(1, tmp_path / "alone", cache, *NO_DROPS_NO_NOISE, f"train.steps={STEPS}")
    start = f"resume={tmp_path / 'alone' / 'checkpoints' / f'step-{EVERY:08d}'}"
    together = in_forks(2, tmp_path / "two", cache, *NO_DROPS_NO_NOISE, *TWO, f"train.steps={STEPS}", start)
    assert len(together) == STEPS - EVERY
    assert together == pytest.approx(alone[EVERY:], rel=1e-4)


def test_the_best_checkpoint_and_those_of_every_so_many_steps_are_kept(tmp_path, cache):
    keeping = [
        "checkpoint.keep=1",
        "checkpoint.keep_every=4",
        "checkpoint.every_steps=2",
        "checkpoint.best=eval/retrieval/i2t_r5",
    ]
    in_forks(2, tmp_path / "run", cache, *TWO, f"train.steps={STEPS}", "eval.every=3", "eval.retrieval=true", *keeping)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    values = {row["step"]: row["eval/retrieval/i2t_r5"] for row in rows if "eval/retrieval/i2t_r5" in row}
    assert list(values) == [0, 3, 6, 9, 12]
    folder = tmp_path / "run" / "checkpoints"
    kept = {path.name for path in folder.iterdir()}
    expected = {f"step-{step:08d}" for step in (4, 8, STEPS)}
    best = max(values, key=lambda step: values[step])  # the first of equal ones
    if best:
        assert (folder / "best").resolve().name == f"step-{best:08d}"
        expected |= {"best", f"step-{best:08d}"}
    assert kept == expected


def stop_while_stepping(processes: Processes, overrides: list[str], step: int) -> int:
    """The program; one rank gets a signal while it takes a step, so many steps done before."""
    kept = Trainer._micro_batches

    def signalled(trainer: Trainer) -> Iterator[Piece]:
        if trainer.progress.step == step and processes.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return kept(trainer)

    Trainer._micro_batches = signalled  # type: ignore[method-assign]
    return run_program(processes, overrides)


def test_a_stop_saves_the_step_it_came_in_and_leaves_its_evaluation_to_the_next_start(tmp_path, cache):
    run_dir = tmp_path / "run"
    overrides = [*TWO, "train.steps=5", "eval.every=3", "eval.retrieval=true", "checkpoint.best=eval/retrieval/i2t_r5"]
    whole = [*COMMON, f"data.cache={cache}", f"run.dir={run_dir}", *overrides]
    assert run_distributed(stop_while_stepping, 2, whole, 2) == [EXIT_STOPPED] * 2
    assert [path.name for path in complete_checkpoints(run_dir)] == ["step-00000003"]
    assert evaluated(run_dir) == [0]
    in_forks(2, run_dir, cache, *overrides)
    assert evaluated(run_dir) == [0, 3, 5]
    assert read_progress(checkpoint_path(run_dir, 5)).evaluation_due is False


def stop_while_evaluating(processes: Processes, overrides: list[str], step: int) -> int:
    """The program; one rank gets a signal while it evaluates after a step."""
    kept = ModelEncoder.texts

    def signalled(encoder: ModelEncoder, tokens: Tensor) -> Tensor:
        if runs[0].progress.step == step and processes.rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return kept(encoder, tokens)

    runs: list[Run] = []
    began = Run.train

    def train(run: Run) -> int:
        runs.append(run)
        return began(run)

    ModelEncoder.texts, Run.train = signalled, train  # type: ignore[method-assign]
    return run_program(processes, overrides)


@pytest.mark.parametrize("step", [0, 3, 5], ids=["before the first step", "on the way", "after the last step"])
def test_a_stop_during_an_evaluation_does_not_wait_for_its_end(tmp_path, cache, step):
    run_dir = tmp_path / "run"
    overrides = [*TWO, "train.steps=5", "eval.every=3", "eval.retrieval=true", "schedule.cooldown_steps=0"]
    whole = [*COMMON, f"data.cache={cache}", f"run.dir={run_dir}", *overrides]
    assert run_distributed(stop_while_evaluating, 2, whole, step) == [EXIT_STOPPED] * 2
    assert [path.name for path in complete_checkpoints(run_dir)][-1:] == ([f"step-{step:08d}"] if step else [])
    assert evaluated(run_dir) == [before for before in (0, 3, 5) if before < step]
    in_forks(2, run_dir, cache, *overrides)
    assert evaluated(run_dir) == [0, 3, 5]


def evaluated(run_dir: Path) -> list[int]:
    """The steps that metrics.jsonl has an evaluation of, in order."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "eval/retrieval/i2t_r5" in row]


@pytest.mark.parametrize(("mode", "values", "best"), [("max", [1, math.nan, 3, 2], 2), ("min", [5, math.nan, 3, 4], 2)])
def test_a_value_that_is_no_number_is_never_the_best(mode: str, values: list[float], best: int):
    run = SimpleNamespace(config=Config(), progress=TrainingProgress())
    run.config.checkpoint.best, run.config.checkpoint.best_mode = "eval/some", mode
    saver = Saver(cast(OpenRun, run))
    for step, value in enumerate(values):
        run.progress.step = step
        saver.is_best({"eval/some": value})
    assert (run.progress.best, run.progress.best_step) == (values[best], best)


def test_a_metric_that_no_evaluation_measures_cannot_be_the_best(tmp_path, cache):
    with pytest.raises(
        RanksFailed, match=r"checkpoint.best=eval/top1: no evaluation produces this metric.*eval/retrieval/i2t_r1"
    ):
        in_forks(1, tmp_path / "run", cache, "eval.retrieval=true", "checkpoint.best=eval/top1", "train.steps=3")


def test_a_run_may_start_with_the_weights_of_another(tmp_path, cache):
    first = in_forks(2, tmp_path / "first", cache, *TWO, f"train.steps={STEPS}")
    start = f"init_from={tmp_path / 'first'}"
    after = in_forks(1, tmp_path / "after", cache, start, "train.steps=4")
    assert list(after) != list(first[:4])
    assert after[0] < first[0] - 0.1, "it does not begin where an untrained one does"
    assert (tmp_path / "after" / "tokenizer.model").read_bytes() == (tmp_path / "first" / "tokenizer.model").read_bytes()
    assert json.loads((tmp_path / "after" / "metrics.jsonl").read_text().splitlines()[0])["step"] <= 1, "its steps are its own"


def test_a_run_that_is_done_says_what_to_set_and_a_resume_what_is_different(tmp_path, cache):
    run_dir, short = tmp_path / "run", "schedule.warmup_steps=1"
    in_forks(1, run_dir, cache, short, "train.steps=3", "train.ema=0.9")
    for steps in (3, 2):
        (run_dir / "train.log").unlink()
        in_forks(1, run_dir, cache, short, f"train.steps={steps}", "train.ema=0.9")
        log = (run_dir / "train.log").read_text()
        assert f"train.steps={steps}, but step 3 is done already" in log
        assert "set train.steps above 3 to train more" in log
    (run_dir / "train.log").unlink()
    in_forks(1, run_dir, cache, short, "train.steps=5", "optim.lr=0.001", "train.ema=null")
    warned = [line for line in (run_dir / "train.log").read_text().splitlines() if "WARNING trainer.training" in line]
    assert len(warned) == 2
    assert "train.steps: 3 -> 5, train.ema: 0.9 -> null, optim.lr: 0.003 -> 0.001" in warned[0]
    assert "train.ema is off, but step-00000003 has a moving average" in warned[1]
