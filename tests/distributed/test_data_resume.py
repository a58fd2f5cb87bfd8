"""Whole runs over shards of one's own: what they draw and lose after a resume is what they would have without it."""

import json
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from tests.distributed.spawn import run_distributed
from tests.distributed.test_runs import COMMON, TWO, losses_in
from tests.trainer.data.shards_on_disk import pair, small_tokenizer, write_shard
from trainer.checkpoint.files import checkpoint_path
from trainer.checkpoint.load import read_progress
from trainer.config.compose import compose_config
from trainer.data.batch import Batch
from trainer.data.loader import TrainingLoader
from trainer.distributed.processes import Processes
from trainer.train import train
from trainer.training.directory import METRICS

pytestmark = pytest.mark.slow

SHARDS, EACH, BATCH = 8, 8, 16
EPOCH = SHARDS * EACH // BATCH
"""Steps of an epoch."""

FOUR = ["parallel.expert_parallel=2", "parallel.zero_stage=3"]
NO_DROPS_NO_NOISE = ["router.capacity_factor=8", "router.noise=0"]


@dataclass(frozen=True)
class Data:
    """A folder of shards and a tokenizer."""

    folder: Path

    def overrides(self) -> list[str]:
        """What makes a run train on it."""
        return [
            *(name for name in COMMON if not name.startswith("data")),
            "data=webdataset",
            f"data.train={self.folder}",
            f"data.tokenizer={self.folder / 't.model'}",
            "model.vocabulary=200",
            "data.max_bad_share=0.5",
        ]


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Data:
    """Shards of good pairs."""
    folder = tmp_path_factory.mktemp("clean")
    small_tokenizer(folder)
    for shard in range(SHARDS):
        write_shard(folder / f"{shard}.tar", [pair(shard * EACH + index) for index in range(EACH)])
    return Data(folder)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Data:
    """The same with samples that cannot be used: some that show it at once, and some only when they are decoded."""
    folder = tmp_path_factory.mktemp("damaged")
    small_tokenizer(folder)
    for shard in range(SHARDS):
        samples = [pair(shard * EACH + index) for index in range(EACH)]
        if shard == 1:
            samples[EACH - 1].pop("txt")
            samples[2].pop("jpg")
        if shard in (1, 4):
            samples[3]["jpg"] = b"no image"
            samples[5]["jpg"] = samples[5]["jpg"][:200]
            samples[6]["txt"] = "漢字"  # all unknown to the tokenizer
            samples[0]["txt"] = "picture\0 number 7"
            samples[4] = {"jpg": samples[4]["jpg"], "json": rb'{"caption": "picture \ud83d"}'}
        write_shard(folder / f"{shard}.tar", samples)
    return Data(folder)


@dataclass(frozen=True)
class Ran:
    """Losses by step, of everything that the run directory has seen; ids of the global batches of the last start."""

    losses: list[float]
    ids: list[list[str]]


def ran(data: Data, run_dir: Path, steps: int, world: int, *overrides: str) -> Ran:
    """Train to `steps`, from the checkpoint that is there, if any."""
    arguments = [*data.overrides(), f"run.dir={run_dir}", f"train.steps={steps}", *overrides]
    ranks = run_distributed(drawing, world, arguments)
    return Ran(losses_in(run_dir), [[pair_id for part in parts for pair_id in part] for parts in zip(*ranks, strict=True)])


def drawing(processes: Processes, overrides: list[str]) -> list[list[str]]:
    """What every rank does; the ids of each batch that it drew."""
    ids = []
    draw = TrainingLoader.__next__

    def drawn(loader: TrainingLoader) -> Batch:
        batch = draw(loader)
        ids.append(batch.ids)
        return batch

    with mock.patch.object(TrainingLoader, "__next__", drawn):
        assert train(compose_config(overrides), processes) == 0
    return ids


@pytest.mark.parametrize(
    ("world", "overrides"),
    [
        (2, [*TWO, "data.workers=1", "data.shuffle_buffer=5"]),
        (1, ["data.workers=2", "data.shuffle_buffer=100", "train.accumulate=2"]),
    ],
    ids=["buffer within an epoch", "buffer beyond an epoch, micro-batches"],
)
def test_forty_steps_are_seventeen_and_twenty_three(tmp_path, damaged, world, overrides):
    overrides = [*overrides, "model.text_length=3"]  # which cuts captions
    whole = ran(damaged, tmp_path / "whole", 40, world, *overrides)
    first = ran(damaged, tmp_path / "cut", 17, world, *overrides)
    resumed = ran(damaged, tmp_path / "cut", 40, world, *overrides)
    assert first.ids + resumed.ids == whole.ids
    assert len({pair_id for batch in whole.ids for pair_id in batch}) == SHARDS * EACH - 10
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-6)
    progress, undisturbed = (read_progress(checkpoint_path(tmp_path / name, 40)) for name in ("cut", "whole"))
    assert progress == undisturbed
    rows = [json.loads(line) for line in (tmp_path / "cut" / METRICS).read_text().splitlines()]
    assert [row["data/bad_samples"] for row in rows if "train/loss" in row][-1] == sum(progress.data.bad.values())
    share = [row["data/truncated_captions"] for row in rows if "train/loss" in row][-1]
    assert 0 < share == progress.data.truncated / progress.pairs
    assert progress.data.bad.keys() == {f"{damaged.folder}/1.tar", f"{damaged.folder}/4.tar"}
    assert len(progress.data.lengths) == SHARDS


def test_the_same_losses_whatever_the_ranks_and_workers(tmp_path, clean):
    common = [*NO_DROPS_NO_NOISE, "data.shuffle_buffer=5"]
    expected = ran(clean, tmp_path / "1", 12, 1, *common, "data.workers=0")
    for world, layout in ((1, ["data.workers=2"]), (2, [*TWO, "data.workers=1"]), (4, [*FOUR, "data.workers=0"])):
        other = ran(clean, tmp_path / f"{world} {layout[-1]}", 12, world, *common, *layout)
        assert other.ids == expected.ids
        assert other.losses == pytest.approx(expected.losses, rel=1e-4)


def test_each_sample_once_an_epoch_although_the_processes_change(tmp_path, clean):
    ids = []
    for steps, world, layout in (
        (EPOCH + 2, 2, [*TWO, "data.workers=1"]),
        (2 * EPOCH + 1, 4, [*FOUR, "data.workers=0"]),
        (4 * EPOCH, 1, ["data.workers=2"]),
    ):
        ids += ran(clean, tmp_path / "run", steps, world, "data.shuffle_buffer=20", *layout).ids
    assert len(ids) == 4 * EPOCH
    epochs = [sorted(pair_id for batch in ids[start : start + EPOCH] for pair_id in batch) for start in range(0, len(ids), EPOCH)]
    assert all(len(set(epoch)) == SHARDS * EACH for epoch in epochs)
    assert epochs == [epochs[0]] * 4
