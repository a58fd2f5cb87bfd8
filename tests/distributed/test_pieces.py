"""A batch in pieces trains like the same batch in one piece that is routed in the same groups, in every layout: with noise, with
tokens dropped, with clipping, with the average of the weights, and across a checkpoint."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.setups import BATCH, Layout, TinyRun, batch, rows_of, tiny, whole
from tests.distributed.spawn import run_distributed
from trainer.distributed.processes import Processes

pytestmark = pytest.mark.slow

STEPS, SAVED = 3, 1
PIECES = 2
PRESSED = {"router__noise": 3.0, "router__capacity_factor": 0.5, "train__ema": 0.9}


class OnePiece(TinyRun):
    """A run that takes the pairs of all pieces at once."""

    def _rows(self, micro: int) -> tuple[Tensor, Tensor]:
        config = replace(self.config, train=replace(self.config.train, accumulate=PIECES))
        pieces = [batch(self.progress.step, config, number) for number in range(PIECES)]
        rows = [rows_of(self.processes.rank, self.processes.world, *piece) for piece in pieces]
        return torch.cat([images for images, _ in rows]), torch.cat([texts for _, texts in rows])


def steps(run: TinyRun, count: int) -> list[tuple[float, float]]:
    """Loss and norm of each of the next steps."""
    return [run.step() for _ in range(count)]


def train_both(processes: Processes, layouts: list[Layout], folder: Path) -> list[dict[str, Any]]:
    """By layout, in one piece and in pieces: losses and norms, and this rank's share of the state at the end.

    The pieces are saved in the middle, and another run goes on from there.
    """
    results = []
    for number, layout in enumerate(layouts):
        group_size = BATCH // PIECES // layout.world
        at_once = OnePiece(tiny(layout.with_(router__group_size=group_size)), processes)
        expected = steps(at_once, STEPS)
        config = tiny(layout.with_(train__accumulate=PIECES))
        first = TinyRun(config, processes)
        actual = steps(first, SAVED)
        checkpoint = first.save(folder / str(number))
        resumed = TinyRun(config, processes, checkpoint)
        actual += steps(resumed, STEPS - SAVED)
        results.append(
            {"expected": expected, "actual": actual, "expected state": at_once.share(), "actual state": resumed.share()}
        )
    return results


def check(layouts: list[Layout], run_dir: Path, folder: Path) -> None:
    """Losses, norms, parameters, moments and averages to 1e-6."""
    for number in range(len(layouts)):
        shutil.copytree(run_dir, folder / str(number))
    pressed = [layout.with_(**PRESSED) for layout in layouts]
    ranks = run_distributed(train_both, layouts[0].world, pressed, folder)
    for number, layout in enumerate(pressed):
        print(layout)  # pytest shows it when the comparison fails
        one = ranks[0][number]
        torch.testing.assert_close(torch.tensor(one["actual"]), torch.tensor(one["expected"]), rtol=1e-6, atol=1e-6)
        assert min(norm for _, norm in one["expected"]) > tiny(layout).optim.clip_norm, "clipping is not active"
        expected, actual = (whole(rank[number][of] for rank in ranks) for of in ("expected state", "actual state"))
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_alone(run_dir, tmp_path_factory):
    check([Layout(1, 1, 2).with_(router__top_k=2, train__patch_dropout=0.4)], run_dir, tmp_path_factory.mktemp("runs"))


def test_in_every_layout(run_dir, tmp_path_factory):
    check(
        [
            Layout(2, 1, 1),
            Layout(2, 2, 1).with_(router__priority="order"),
            Layout(2, 2, 2).with_(router__top_k=2),
            Layout(2, 2, 3).with_(router__top_k=2, router__priority="order", train__activation_checkpointing="blocks"),
            Layout(2, 1, 3).with_(router__aux__scale=1.0),
        ],
        run_dir,
        tmp_path_factory.mktemp("runs"),
    )


def test_with_the_sigmoid_loss(run_dir, tmp_path_factory):
    layout = Layout(2, 2, 3).with_(model__loss="sigmoid", train__loss_chunk=3)
    check([layout], run_dir, tmp_path_factory.mktemp("runs"))
