"""Checkpoints belong to the model, not to the layout: what one layout saves, any other can resume from."""

import os
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from tests.distributed.checkpoints import tensors_in
from tests.distributed.setups import Layout, TinyRun, plain_torch, tiny
from tests.distributed.spawn import RanksFailed, run_distributed
from tests.distributed.test_layouts import assert_same_state
from trainer.checkpoint import save as checkpointer_module
from trainer.checkpoint.files import MARKER, checkpoint_path, complete_checkpoints, find_checkpoint
from trainer.checkpoint.load import read_progress
from trainer.checkpoint.save import Checkpointer
from trainer.distributed.processes import Processes
from trainer.engine.state import MOMENTS, WEIGHTS

pytestmark = pytest.mark.slow


def go_on(processes: Processes, layout: Layout, run_dir: Path, steps: int, keep: int = 100) -> list[tuple[float, float]]:
    """Go on from the newest checkpoint, if there is one, and save; (loss, norm) by step."""
    run = TinyRun(tiny(layout), processes, find_checkpoint(run_dir))
    taken = [run.step() for _ in range(steps)]
    run.save(run_dir, keep)
    return taken


@pytest.mark.parametrize(
    "chain",
    [
        [Layout(1, 1, 1), Layout(2, 2, 2), Layout(4, 2, 3), Layout(1, 1, 1)],
        [layout.with_(model__expert_layers=()) for layout in (Layout(2, 1, 3), Layout(1, 1, 2), Layout(2, 1, 1))],
    ],
    ids=["experts", "dense"],
)
def test_a_run_goes_on_in_any_other_layout_as_if_uninterrupted(chain, run_dir):
    steps_each = 2
    config = tiny(chain[0])
    ends = [steps_each * (place + 1) for place in range(len(chain))]
    uninterrupted = plain_torch(config, ends[-1], ends)
    losses, norms = [], []
    for layout, done in zip(chain, ends, strict=True):
        ranks = run_distributed(go_on, layout.world, layout, run_dir, steps_each)
        losses += [loss for loss, _ in ranks[0]]
        norms += [norm for _, norm in ranks[0]]
        saved = tensors_in(checkpoint_path(run_dir, done))
        # Experts in their global shape [E, ...], and expert e's values in row e, or they would not be the reference's.
        assert_same_state(saved, uninterrupted.states[done])
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
        progress = read_progress(checkpoint_path(run_dir, done))
        assert (progress.step, progress.optimizer_steps) == (done, done)
    assert losses == pytest.approx(uninterrupted.losses, rel=1e-5)
    assert norms == pytest.approx(uninterrupted.norms, rel=1e-5)
    experts = [name for name in saved if ".experts." in name]
    assert len(experts) == 3 * 4 * len(config.model.expert_layers)
    assert all(saved[name].shape[0] == config.model.experts for name in experts)


def save_and_forward(processes: Processes, layout: Layout, source: Path | None, target: Path) -> float:
    """Load, or train two steps; save; then the next batch's loss, which shows what weights the forward pass uses."""
    run = TinyRun(tiny(layout), processes, find_checkpoint(source) if source else None)
    if source is None:
        run.step()
        run.step()
    run.save(target)
    return run.step()[0]


def test_bf16_masters_survive_any_layout_to_the_last_bit(run_dir, tmp_path):
    layouts = [Layout(2, 2, 2), Layout(2, 2, 3), Layout(1, 1, 1), Layout(2, 1, 1), Layout(2, 2, 1)]
    places, losses = [], []
    for number, layout in enumerate(layouts):
        places.append(tmp_path / str(number))
        places[-1].mkdir()
        for name in ("tokenizer.model", "config.yaml"):
            (places[-1] / name).write_bytes((run_dir / name).read_bytes())
        source = places[-2] if number else None
        bf16 = layout.with_(train__precision="bf16")
        losses.append(run_distributed(save_and_forward, layout.world, bf16, source, places[-1])[0])
    first, *others = [tensors_in(checkpoint_path(place, 2)) for place in places]
    assert any((value != value.bfloat16().float()).any() for name, value in first.items() if name.startswith(WEIGHTS))
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-2)


def save_many(processes: Processes, run_dir: Path) -> None:
    """A checkpoint after each of four steps, of which two are kept."""
    run = TinyRun(tiny(Layout(2, 2, 2)), processes)
    for _ in range(4):
        run.step()
        run.save(run_dir, keep=2)


def test_only_the_newest_are_kept(run_dir):
    run_distributed(save_many, 2, run_dir)
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["step-00000003", "step-00000004"]


def branch_off(processes: Processes, run_dir: Path) -> None:
    """Go back to the first of three checkpoints, take a step from there, and save."""
    run = TinyRun(tiny(), processes)
    for _ in range(3):
        run.step()
        run.step()
        run.save(run_dir)
    back = TinyRun(tiny(), processes, checkpoint_path(run_dir, 2))
    back.step()
    back.save(run_dir, keep=2)


def test_a_checkpoint_older_than_others_is_not_deleted_as_soon_as_it_is_written(run_dir):
    run_distributed(branch_off, 1, run_dir)
    assert checkpoint_path(run_dir, 3) in complete_checkpoints(run_dir)


def die_while_saving(processes: Processes, run_dir: Path, moment: str) -> None:
    """A complete checkpoint, a step, and then rank 0 dies in the middle of the next."""
    run = TinyRun(tiny(Layout(2, 2, 2)), processes)
    run.step()
    run.save(run_dir)
    run.step()

    def die(*args: object, **kwargs: object) -> NoReturn:
        os._exit(9)

    moments = {
        "after the tensors": (Checkpointer, "_complete", die),
        "before the marker": (checkpointer_module, "write_marker", die),
        "before the renaming": (checkpointer_module, "publish", die),
    }
    if processes.is_first:
        setattr(*moments[moment])
    run.save(run_dir, keep=1)


@pytest.mark.parametrize("moment", ["after the tensors", "before the marker", "before the renaming"])
def test_a_checkpoint_that_was_cut_off_never_counts(moment, run_dir):
    with pytest.raises(RanksFailed):
        run_distributed(die_while_saving, 2, run_dir, moment)
    assert complete_checkpoints(run_dir) == [checkpoint_path(run_dir, 1)]
    assert find_checkpoint(run_dir) == checkpoint_path(run_dir, 1)
    left = [path for path in (run_dir / "checkpoints").iterdir() if path != checkpoint_path(run_dir, 1)]
    assert len(left) == 1, "it should have been cut off in the middle"
    assert (left[0] / MARKER).exists() == (moment == "before the renaming")
    # The next start resumes from the complete one and writes the same step again, completely.
    run_distributed(go_on, 1, Layout(), run_dir, 1, 2)
    assert complete_checkpoints(run_dir) == [checkpoint_path(run_dir, 1), checkpoint_path(run_dir, 2)]
    assert [path.name for path in (run_dir / "checkpoints").iterdir() if path.name.startswith(".")] == []


def save_unstepped(processes: Processes, layouts: list[Layout], run_dir: Path) -> None:
    """Save before the first step and take one; and take one from what was saved."""
    for number, layout in enumerate(layouts):
        place = run_dir / str(number)
        if processes.is_first:
            place.mkdir()
            for name in ("tokenizer.model", "config.yaml"):
                (place / name).write_bytes((run_dir / name).read_bytes())
        processes.barrier()
        run = TinyRun(tiny(layout), processes)
        saved = run.save(place)
        loss = run.step()
        assert TinyRun(tiny(layout), processes, saved).step() == pytest.approx(loss, rel=1e-6)


def test_a_run_that_has_not_stepped_yet_can_be_saved(run_dir):
    layouts = [Layout(2, 2, 1), Layout(2, 2, 2), Layout(2, 2, 3)]
    run_distributed(save_unstepped, 2, layouts, run_dir)
    for number in range(len(layouts)):
        saved = tensors_in(checkpoint_path(run_dir / str(number), 0))
        assert all(not value.any() for name, value in saved.items() if name.startswith(MOMENTS))
