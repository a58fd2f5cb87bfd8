"""Evaluation: every image once, the same number of batches on every rank."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.data.shards_on_disk import jpeg, write_shard
from trainer.config.schema import DataConfig
from trainer.data.batch import EvaluationBatch
from trainer.data.loader import evaluation_batches
from trainer.errors import UserError

COUNTS = (9, 1, 6, 7)  # images of each shard: uneven, and few


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("shards")
    return [
        write_shard(
            folder / f"{shard}.tar",
            [{"jpg": jpeg(shard * 10 + i), "txt": f"{shard} {i}\nagain {i}", "cls": i} for i in range(count)],
        )
        for shard, count in enumerate(COUNTS)
    ]


def all_ranks(shards: list[str], world: int, workers: int, batch_size: int = 4) -> list[list[EvaluationBatch]]:
    """The batches of every rank; the ranks are threads here, so that any_rank is a real meeting."""
    meeting = threading.Barrier(world, timeout=60)
    flags = [False] * world
    made: list[list[EvaluationBatch]] = [[] for _ in range(world)]

    def any_rank(rank: int, flag: bool) -> bool:
        flags[rank] = flag
        meeting.wait()
        anyone = any(flags)
        meeting.wait()
        return anyone

    def one(rank: int) -> None:
        made[rank] = list(
            evaluation_batches(
                DataConfig(workers=workers, caption_lines=True),
                shards=shards,
                image_size=8,
                batch_size=batch_size,
                rank=rank,
                world=world,
                any_rank=lambda flag: any_rank(rank, flag),
            )
        )

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made


@pytest.mark.parametrize(
    ("used", "world", "workers"),  # shards used: fewer and more than the readers
    [*((4, world, workers) for world in (1, 2, 4) for workers in (0, 1, 2)), (1, 1, 2), (1, 4, 0), (1, 2, 1)],
)
def test_every_image_once(shards: list[str], used: int, world: int, workers: int) -> None:
    made = all_ranks(shards[:used], world, workers)
    assert len({len(batches) for batches in made}) == 1
    found: dict[str, tuple[int, list[str]]] = {}
    for batch in (batch for batches in made for batch in batches):
        assert (batch.images.shape, batch.images.dtype) == ((4, 3, 8, 8), torch.uint8)
        assert batch.valid.dtype == torch.bool
        assert batch.labels.dtype == torch.int64
        for row, valid in enumerate(batch.valid.tolist()):
            if valid:
                assert batch.ids[row] not in found
                found[batch.ids[row]] = int(batch.labels[row]), batch.captions[row]
            else:
                assert (batch.ids[row], batch.captions[row], int(batch.labels[row])) == ("", [], -1)
    assert found == {
        f"{shards[shard]}/{i:06}": (i, [f"{shard} {i}", f"again {i}"]) for shard in range(used) for i in range(COUNTS[shard])
    }


def test_the_last_batch_is_filled(shards: list[str]) -> None:
    ((first, second, third),) = all_ranks(shards[:1], 1, 0)
    assert [int(batch.valid.sum()) for batch in (first, second, third)] == [4, 4, 1]


def test_images_are_the_same_for_any_workers(shards: list[str]) -> None:
    def images(workers: int) -> dict[str, torch.Tensor]:
        return {
            i: image for batch in all_ranks(shards, 1, workers)[0] for i, image in zip(batch.ids, batch.images, strict=True) if i
        }

    alone, shared = images(0), images(2)
    assert all(torch.equal(alone[i], shared[i]) for i in alone)


def test_bad_samples_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples: list[dict[str, Any]] = [{"jpg": jpeg(i), "txt": f"{i}"} for i in range(8)]
    samples[1]["jpg"] = jpeg(1)[:200]
    samples[2] = {"jpg": jpeg(2)}
    samples[3] = {"jpg": jpeg(3), "cls": 5}  # no caption, but a class
    samples[4] = {"jpg": jpeg(4), "cls": "frog"}
    shard = write_shard(tmp_path / "a.tar", samples)
    Path(shard).write_bytes(Path(shard).read_bytes()[: Path(shard).read_bytes().index(b"000007.txt") + 100])
    with caplog.at_level(logging.WARNING):
        (batches,) = all_ranks([shard], 1, 0)
    assert [i[-1] for batch in batches for i in batch.ids if i] == ["0", "3", "5", "6"]
    assert (
        f"evaluation: 3 of 7 samples are unusable, most of them in {shard} (3); for example, {shard}/000001: image" in caplog.text
    )
    assert f"evaluation: 1 shard cannot be read to the end; for example, {shard}: damaged header" in caplog.text


def test_negative_workers() -> None:
    with pytest.raises(UserError, match=r"data.workers=-2"):
        next(evaluation_batches(DataConfig(), shards=[], image_size=8, batch_size=1, rank=0, world=1, workers=-2))
