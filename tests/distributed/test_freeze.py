"""Frozen parameters stay as they are to the last bit, in every layout, precision and checkpoint; the others train as ever."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.limoe import LIMoE
from tests.distributed.checkpoints import tensors_in
from tests.distributed.setups import Layout, TinyRun, plain_torch, tiny, whole
from tests.distributed.spawn import run_distributed
from tests.distributed.test_ema import part
from tests.distributed.test_layouts import KEPT, STEPS, assert_same_state, assert_same_training, trained
from tests.distributed.test_runs import in_forks
from trainer.checkpoint.files import checkpoint_path, find_checkpoint
from trainer.checkpoint.load import read_progress
from trainer.distributed.processes import Processes
from trainer.engine.state import EMA, MOMENTS, WEIGHTS

pytestmark = pytest.mark.slow

BELOW = ["patches.*", "tokens.*", "towers.0.blocks.[01].*"]
"""The embeddings and two of three blocks, one of them with experts: no gradient comes there."""
EXPERTS = ["*.experts.*"]
MIXED = ["towers.0.blocks.1.mlp.experts.*", "towers.0.blocks.2.mlp.router.*", "towers.0.blocks.0.*", "scale.*"]
"""Between trained ones: some experts, a router, a dense block, and the logit scale."""


def initial(layout: Layout) -> dict[str, Tensor]:
    """The first weights of a tiny model."""
    config = tiny(layout)
    return {name: value.detach() for name, value in LIMoE(config.model, config.router).initialise(config.seed).named_parameters()}


def assert_kept(state: dict[str, Tensor], layout: Layout) -> None:
    """What is frozen has its first values to the last bit, and no moments; there is some of it, and some of the rest moved."""
    names = {name for name in part(state, WEIGHTS) if f"{MOMENTS[0]}/{name}" not in state}
    assert 0 < len(names) < len(part(state, WEIGHTS))
    for name, value in initial(layout).items():
        assert torch.equal(state[f"{WEIGHTS}/{name}"], value) == (name in names), name


@pytest.mark.parametrize(
    "layouts",
    [
        [Layout(1, 1, 1).with_(train__freeze=BELOW), Layout(1, 1, 3).with_(train__freeze=EXPERTS)],
        [
            Layout(2, ep, stage).with_(train__freeze=freeze)
            for ep, stage, freeze in (
                (2, 1, BELOW),
                (2, 2, EXPERTS),
                (2, 3, MIXED),
                (1, 1, MIXED),
                (1, 3, BELOW),
            )
        ],
        [Layout(4, 2, stage).with_(train__freeze=freeze) for stage, freeze in ((1, EXPERTS), (3, MIXED))],
    ],
    ids=lambda layouts: f"world{layouts[0].world}",
)
def test_the_others_train_like_plain_torch_in_every_layout(layouts):
    for layout, result in zip(layouts, trained(layouts), strict=True):
        print(layout)
        assert_same_training(result, plain_torch(tiny(layout), STEPS, KEPT))
        assert_kept(result.states[STEPS], layout)


def test_recomputed_blocks_give_the_same_gradients():
    """Reentrant checkpoints of torch would give none where no input has one, as in the first block above frozen ones."""
    cases = ((2, BELOW, "blocks"), (3, MIXED, "blocks"), (3, BELOW, "offload"))
    layouts = [
        Layout(2, 2, stage).with_(train__freeze=freeze, train__activation_checkpointing=how) for stage, freeze, how in cases
    ]
    for layout, result in zip(layouts, trained(layouts), strict=True):
        print(layout)
        assert_same_training(result, plain_torch(tiny(layout), STEPS, KEPT))


def test_a_batch_in_pieces_trains_alike():
    layout = Layout(2, 2, 3).with_(train__freeze=MIXED, train__accumulate=2)
    assert_same_training(trained([layout])[0], plain_torch(tiny(layout), STEPS, KEPT))


def test_a_frozen_tower_of_two_trains_the_other_one():
    """LiT (Zhai et al. 2022, arXiv 2111.07991)."""
    changes = {"model__expert_layers": (), "model__towers": 2, "train__freeze": ["patches.*", "towers.0.*"]}
    layout = Layout(2, 1, 3).with_(**changes)
    (result,) = trained([layout])
    assert_same_training(result, plain_torch(tiny(layout), STEPS, KEPT))
    assert_kept(result.states[STEPS], layout)


def go_on(processes: Processes, layout: Layout, run_dir: Path) -> tuple[dict, list[tuple[float, float]], dict]:
    """Go on from the newest checkpoint, if there is one, for two steps, and save; this rank's share before and after."""
    run = TinyRun(tiny(layout), processes, find_checkpoint(run_dir))
    before = run.share()
    taken = [run.step() for _ in range(2)]
    run.save(run_dir)
    return before, taken, run.share()


def test_bfloat16_does_not_round_what_is_frozen(run_dir):
    """From checkpoint to checkpoint, through other layouts."""
    for number, layout in enumerate((Layout(2, 2, 1), Layout(2, 2, 3), Layout(1, 1, 2)), start=1):
        layout = layout.with_(train__freeze=MIXED, train__precision="bf16", router__noise=1.0)
        ranks = run_distributed(go_on, layout.world, layout, run_dir)
        saved = tensors_in(checkpoint_path(run_dir, 2 * number))
        assert {value.dtype for value in saved.values()} == {torch.float32}
        assert_kept(saved, layout)
        assert_kept(whole(share for _, _, share in ranks), layout)
    frozen = [value for name, value in part(saved, WEIGHTS).items() if f"{MOMENTS[0]}/{name}" not in saved]
    assert any((value != value.bfloat16().float()).any() for value in frozen), "there was nothing to round"


def test_freezing_and_unfreezing_in_the_middle(run_dir):
    """With Adam's own count of steps for what starts anew, and the average of the frozen equal to them."""
    chain = [
        (Layout(2, 2, 2), BELOW),
        (Layout(2, 1, 3), BELOW),
        (Layout(1, 1, 1), MIXED),
        (Layout(2, 2, 3), []),
        (Layout(2, 2, 1), EXPERTS),
    ]
    freezes = [freeze for _, freeze in chain for _ in range(2)]
    ends = [2 * number for number in range(1, len(chain) + 1)]
    wanted = plain_torch(tiny(), ends[-1], ends, freezes=freezes)
    for number, ((layout, freeze), end) in enumerate(zip(chain, ends, strict=True)):
        print(layout, freeze)
        ranks = run_distributed(go_on, layout.world, layout.with_(train__freeze=freeze, train__ema=0.9), run_dir)
        losses, norms = zip(*ranks[0][1], strict=True)
        assert losses == pytest.approx(wanted.losses[end - 2 : end], rel=1e-5)
        assert norms == pytest.approx(wanted.norms[end - 2 : end], rel=1e-5)
        saved = tensors_in(checkpoint_path(run_dir, end))
        averages = part(saved, EMA)
        assert averages.keys() == part(saved, MOMENTS[0]).keys()
        assert_same_state({name: value for name, value in saved.items() if not name.startswith(EMA)}, wanted.states[end])
        assert number == 0 or any(name not in averages for name in part(saved, WEIGHTS)) == bool(freeze)
    since = read_progress(checkpoint_path(run_dir, ends[-1])).trained_since
    assert since["patches.position"] == 4 and since["scale.log_scale"] == 6 and "heads.text.weight" not in since
    assert not any(".experts." in name for name in since)


def test_a_locked_tower_from_a_run_on_half_of_the_patches(tmp_path):
    """As the docs show it: a cheap first stage, a second at a higher resolution with the image tower locked, and then let go."""
    cache, first, second = tmp_path / "cache", tmp_path / "first", tmp_path / "second"
    two = ("model.towers=2", "model.expert_layers=[]", "schedule.warmup_steps=1")
    in_forks(1, first, cache, *two, "train.steps=2", "train.patch_dropout=0.5")
    locked = ("patches.*", "towers.0.*")
    start = (*two, f"init_from={first}", "model.image_size=32", "train.precision=bf16")
    in_forks(2, second, cache, *start, "train.steps=2", f"train.freeze=[{','.join(locked)}]", "parallel.zero_stage=3")
    was, now = tensors_in(checkpoint_path(first, 2)), tensors_in(checkpoint_path(second, 2))
    assert was["model/patches.position"].shape[0] < now["model/patches.position"].shape[0]
    for name, value in part(now, WEIGHTS).items():
        if name.startswith(("patches.", "towers.0.")) and name != "patches.position":
            assert torch.equal(value, was[f"{WEIGHTS}/{name}"]) and f"{MOMENTS[0]}/{name}" not in now, name
        elif name.startswith("towers.1.") and name.endswith("weight"):
            assert not torch.equal(value, was[f"{WEIGHTS}/{name}"]), name
    in_forks(1, second, cache, *start, "train.steps=3")
    said = (second / "train.log").read_text()
    assert "train.freeze: ['patches.*', 'towers.0.*'] -> []" in said
    assert "trained from step 3 on, with new moments" in said and "such as patches.position" in said
    freed = tensors_in(checkpoint_path(second, 3))
    assert not torch.equal(freed["model/patches.position"], now["model/patches.position"])
