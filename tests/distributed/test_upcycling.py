"""A model with experts that starts from a dense run: the same in every layout, and a run of its own from then on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from model.limoe import LIMoE
from tests.distributed.checkpoints import tensors_in
from tests.distributed.setups import Layout, TinyRun, batch, tiny, whole
from tests.distributed.spawn import run_distributed
from tests.distributed.test_runs import TWO, in_forks
from trainer.checkpoint.files import CONFIG, checkpoint_path
from trainer.checkpoint.start import start_from
from trainer.config.schema import Config
from trainer.distributed.processes import Processes
from trainer.engine.state import EMA, WEIGHTS
from trainer.training.directory import NEW_WEIGHTS

pytestmark = pytest.mark.slow

NOISE = 0.2


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where the embedded data set is written, once for both runs."""
    return tmp_path_factory.mktemp("cache")


def dense_run(processes: Processes, run_dir: Path) -> None:
    """Two steps of the dense twin, saved."""
    run = TinyRun(tiny(Layout().with_(model__expert_layers=[])), processes)
    run.step()
    run.step()
    run.save(run_dir)


def sparse(layout: Layout, noise: float) -> Config:
    return tiny(layout.with_(router__normalise_gates=True, router__top_k=2, upcycle_noise=noise, train__ema=0.9))


def start(processes: Processes, layouts: list[Layout], dense: Path) -> list[tuple[dict[str, Any], float]]:
    """Under each layout, this rank's share of the first state and the loss of the first step."""
    results = []
    for layout in layouts:
        run = TinyRun(sparse(layout, NOISE), processes, source=dense)
        results.append((run.share(), run.step()[0]))
    return results


def embeddings(config: Config, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What a model with these weights makes of the third batch."""
    model = LIMoE(config.model, config.router)
    model.load_state_dict({name.removeprefix(f"{WEIGHTS}/"): value for name, value in state.items() if name.startswith(WEIGHTS)})
    output = model.eval()(*batch(2, config))
    assert output.images is not None and output.texts is not None
    return output.images.detach(), output.texts.detach()


def test_it_starts_alike_in_every_layout_and_near_the_dense_model(run_dir: Path):
    dense_config = tiny(Layout().with_(model__expert_layers=[]))
    (run_dir / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(dense_config)))
    run_distributed(dense_run, 1, run_dir)
    dense = checkpoint_path(run_dir, 2)
    assert start_from(dense, sparse(Layout(), 0.0), NEW_WEIGHTS).upcycled == [1, 2]
    starts = []
    for layouts in ([Layout(1, 1, 1)], [Layout(2, 2, 1), Layout(2, 2, 3), Layout(2, 1, 2)]):
        ranks = run_distributed(start, layouts[0].world, layouts, dense)
        starts += [(whole(rank[number][0] for rank in ranks), ranks[0][number][1]) for number in range(len(layouts))]
    (first, loss), *others = starts
    saved = tensors_in(dense)
    for state, other_loss in others:
        assert state.keys() == first.keys()
        assert all(torch.equal(state[name], value) for name, value in first.items())
        assert other_loss == pytest.approx(loss, rel=1e-5)
    weights = {name.removeprefix(f"{WEIGHTS}/"): value for name, value in first.items() if name.startswith(f"{WEIGHTS}/")}
    for name, value in weights.items():
        assert torch.equal(first[f"{EMA}/{name}"], value), "the average starts from the weights"
        assert not first[f"exp_avg/{name}"].any(), "the optimizer is new"
        if f"{WEIGHTS}/{name}" in saved:
            assert torch.equal(value, saved[f"{WEIGHTS}/{name}"])

    exact = LIMoE(sparse(Layout(), 0.0).model, sparse(Layout(), 0.0).router).initialise(0)
    start_from(dense, sparse(Layout(), 0.0), NEW_WEIGHTS).load(exact, None)
    before = embeddings(dense_config, saved)
    after = embeddings(sparse(Layout(), 0.0), {f"{WEIGHTS}/{name}": value for name, value in exact.state_dict().items()})
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    noisy = embeddings(sparse(Layout(), NOISE), first)
    assert 1e-3 < (noisy[0] - before[0]).abs().max() < 0.5


FITTED = {
    "model__image_size": 32,
    "model__patch": 16,
    "model__text_length": 12,
    "model__layers": 4,
    "init_blocks": [0, 2, 1, None],
}


def sparse_run(processes: Processes, run_dir: Path) -> None:
    """Two steps of a model with experts, and their biases, saved."""
    run = TinyRun(tiny(BIASED), processes)
    run.step()
    run.step()
    run.save(run_dir)


BIASED = Layout().with_(router__bias__kind="modality", router__aux__load=0.0)


def refit(processes: Processes, layouts: list[Layout], source: Path) -> list[dict[str, Any]]:
    """This rank's share of the first state of a model of another size, under each layout."""
    return [TinyRun(tiny(layout.with_(**FITTED)), processes, source=source).share() for layout in layouts]


def test_weights_are_fitted_alike_in_every_layout(run_dir: Path):
    (run_dir / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.structured(tiny(BIASED))))
    run_distributed(sparse_run, 1, run_dir)
    source = checkpoint_path(run_dir, 2)
    (alone,) = run_distributed(refit, 1, [BIASED], source)
    layouts = [replace(BIASED, world=2, expert_parallel=2, zero_stage=3), replace(BIASED, world=2, zero_stage=2)]
    ranks = run_distributed(refit, 2, layouts, source)
    first = whole(alone)
    for number in range(len(layouts)):
        state = whole(rank[number] for rank in ranks)
        assert state.keys() == first.keys()
        assert all(torch.equal(state[name], value) for name, value in first.items())
    saved, block = tensors_in(source), f"{WEIGHTS}/towers.0.blocks."
    assert torch.equal(first[f"{block}1.mlp.experts.up"], saved[f"{block}2.mlp.experts.up"])
    assert saved[f"{block}2.mlp.router.bias"].any()
    assert torch.equal(first[f"{block}1.mlp.router.bias"], saved[f"{block}2.mlp.router.bias"])


def losses_in(run_dir: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss_contrastive"] for row in rows if "train/loss_contrastive" in row]


def test_a_run_continues_where_the_dense_one_ended_and_needs_it_no_more(tmp_path, cache):
    is_dense, source = "model.expert_layers=[]", f"init_from={tmp_path / 'dense'}"
    in_forks(1, tmp_path / "dense", cache, is_dense, "train.steps=12")
    in_forks(1, tmp_path / "dense_on", cache, is_dense, source, "train.steps=1", "schedule.warmup_steps=1")
    start = ("router.normalise_gates=true", "router.top_k=2", "router.capacity_factor=4", source)  # as many slots as tokens
    in_forks(2, tmp_path / "sparse", cache, *start, "train.steps=3", *TWO)
    assert (tmp_path / "sparse" / "tokenizer.model").read_bytes() == (tmp_path / "dense" / "tokenizer.model").read_bytes()
    dense, dense_on, upcycled = (losses_in(tmp_path / name) for name in ("dense", "dense_on", "sparse"))
    assert dense_on[0] < dense[0] - 0.2, "it has learned too little to tell"
    assert upcycled[0] == pytest.approx(dense_on[0], rel=1e-4), "the same pairs, the same function"
    shutil.rmtree(tmp_path / "dense")
    in_forks(1, tmp_path / "sparse", cache, *start, "train.steps=5")
    assert len(losses_in(tmp_path / "sparse")) == 5
