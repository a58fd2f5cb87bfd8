"""Whole runs over several sources: the same pairs at every layout and after every resume, and what is measured of each source."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.distributed.test_data_resume import Data, Ran, ran
from tests.distributed.test_runs import TWO
from tests.trainer.data.shards_on_disk import jpeg, pair, small_tokenizer, write_shard
from trainer.checkpoint.files import checkpoint_path
from trainer.checkpoint.load import read_progress
from trainer.training.directory import METRICS

pytestmark = pytest.mark.slow

BATCH = 16


class Sources(Data):
    """Three: captions under two keys, with small images among them; captions with bad samples among them; and classes."""

    def overrides(self) -> list[str]:
        train = (
            f"data.train={{web: {{shards: {self.folder}/web-{{0..5}}.tar, weight: 3, captions: {{txt: 0.5, other: 0.5}}, "
            f"min_side: 20}}, bad: {self.folder}/bad-*.tar, classes: {{shards: {self.folder}/classes.tar, weight: 2, "
            f"classes: {self.folder}}}}}"
        )
        return [*(name for name in super().overrides() if not name.startswith("data.train=")), train]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    small_tokenizer(folder)
    for shard in range(6):
        samples = [pair(shard * 8 + index) | {"json": b'{"other": "a small set"}'} for index in range(8)]
        samples[2]["jpg"] = jpeg(2, 24, 19)
        samples[3].pop("json")
        write_shard(folder / f"web-{shard}.tar", samples)
    for shard in range(2):
        samples = [pair(100 + shard * 8 + index) for index in range(8)]
        samples[1]["jpg"] = b"no image"
        samples[4].pop("txt")
        write_shard(folder / f"bad-{shard}.tar", samples)
    write_shard(folder / "classes.tar", [{"jpg": jpeg(200 + index), "cls": index % 3} for index in range(10)])
    (folder / "classnames.txt").write_text("picture\nnumber\nset\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a small {c}\nof a {c}\n")
    return Sources(folder)


def rows(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / METRICS).read_text().splitlines()]
    return [line for line in lines if "train/loss" in line]


def source_of(pair_id: str) -> str:
    return Path(pair_id).parent.name.partition("-")[0].removesuffix(".tar")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, sources) -> tuple[Ran, Path]:
    run_dir = tmp_path_factory.mktemp("whole")
    return ran(sources, run_dir, 18, 1, "data.workers=0", "router.capacity_factor=8", "router.noise=0"), run_dir


def test_a_run_goes_on_with_the_same_pairs_at_another_layout(tmp_path, sources, whole):
    expected, undisturbed = whole
    layout = ["router.capacity_factor=8", "router.noise=0"]
    ids = ran(sources, tmp_path / "cut", 7, 2, *TWO, "data.workers=1", *layout).ids
    last = ran(sources, tmp_path / "cut", 18, 1, "data.workers=2", *layout)
    assert ids + last.ids == expected.ids
    assert last.losses == pytest.approx(expected.losses, rel=1e-4)
    progress, other = (read_progress(checkpoint_path(run_dir, 18)) for run_dir in (tmp_path / "cut", undisturbed))
    assert progress == other
    assert progress.mixture == [
        {
            "pairs": 0,
            "parts": {"web": 3, "bad": 1, "classes": 2},
            "asked": {name: {"weight": weight} for name, weight in (("web", 3.0), ("bad", 1.0), ("classes", 2.0))},
        }
    ]
    assert progress.data.left_out > 0
    assert {Path(shard).name for shard in progress.data.bad} == {"bad-0.tar", "bad-1.tar"}, "what is too small is not bad"


def test_pairs_and_losses_of_each_source_are_recorded(whole):
    expected, run_dir = whole
    drawn: Counter[str] = Counter()
    for batch, row in zip(expected.ids, rows(run_dir), strict=True):
        now = Counter(map(source_of, batch))
        drawn += now
        assert {name: row[f"data/source/{name}/pairs"] for name in ("web", "bad", "classes")} == drawn
        total = sum(row[f"train/loss_contrastive/{name}"] * count for name, count in now.items())
        assert total / BATCH == pytest.approx(row["train/loss_contrastive"], rel=1e-5)
        assert 0 < row["data/left_out"] < 0.5
    assert drawn == {"web": 144, "bad": 48, "classes": 96}


@pytest.mark.parametrize("negatives", ["batch", "micro"])
def test_losses_of_sources_add_up_in_micro_batches_on_several_ranks(tmp_path, sources, negatives):
    more = [*TWO, "data.workers=0", "train.accumulate=2", f"train.negatives={negatives}", "log.every=2"]
    found = ran(sources, tmp_path / "run", 3, 2, *more)
    recorded = {row["step"]: row for row in rows(tmp_path / "run")}
    for step, row in recorded.items():
        batch = [pair_id for micro in found.ids[2 * step - 2 : 2 * step] for pair_id in micro]
        losses = [row[f"train/loss_contrastive/{name}"] * count for name, count in Counter(map(source_of, batch)).items()]
        assert sum(losses) / BATCH == pytest.approx(row["train/loss_contrastive"], rel=1e-5)
    assert list(recorded) == [1, 2, 3]
