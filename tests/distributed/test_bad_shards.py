"""Whole runs of which some shards cannot be read: one is let pass and counted, many end the run, at once and in one line."""

import json
from pathlib import Path

import pytest

from tests.distributed.program import TINY, Ended, run
from tests.trainer.data.shards_on_disk import pair, write_shard, write_shards
from trainer.training.directory import METRICS

pytestmark = pytest.mark.slow

SHARDS = 8


def start(folder: Path, dead: int, *overrides: str, ranks: int = 1) -> Ended:
    """Train on shards of which the last ones but one are dead."""
    shards = write_shards(folder, SHARDS, 12)
    names = [*shards[: SHARDS - 1 - dead], *(f"pipe:echo lost {number} >&2; exit 3" for number in range(dead)), shards[-1]]
    arguments = [
        *TINY,
        "data=webdataset",
        f"data.train={json.dumps(names)}",
        "model.vocabulary=200",
        "data.tokenizer_captions=50",
        "data.shuffle_buffer=4",
        "data.remote_tries=1",
        f"run.dir={folder / 'run'}",
        "train.steps=20",
        *overrides,
    ]
    return run(arguments, folder / "log", ranks=ranks)


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "run" / METRICS).read_text().splitlines()]


def test_one_dead_shard_is_counted_and_told_with_the_commands_last_line(tmp_path: Path):
    done = start(tmp_path, 1)
    assert done.code == 0, done.output
    last = [row for row in rows(tmp_path) if "train/loss" in row][-1]
    assert 1 <= last["data/bad_shards"] <= 3, "once an epoch of 84 pairs"
    assert "data/bad_samples" not in last
    assert done.output.count("the shard ends early: the command ended with exit code 3: lost 0") == 1
    assert "data.train: 8 shards, " in done.output


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 0)])
def test_half_of_the_shards_dead_end_the_run(tmp_path: Path, ranks: int, workers: int):
    done = start(tmp_path, 4, f"data.workers={workers}", ranks=ranks)
    assert done.code == (2 if ranks == 1 else 1), done.output
    (line,) = done.errors
    assert "of 8 shards cannot be read to their end, more than data.max_bad_shards=0.05" in line
    assert "pipe:echo lost" in line


def test_a_higher_limit_lets_it_pass_as_the_message_says(tmp_path: Path):
    assert start(tmp_path, 4, "data.max_bad_shards=0.6").code == 0


def test_half_of_a_gallery_is_no_result(tmp_path: Path):
    gallery = [write_shard(tmp_path / f"val-{number}.tar", [pair(100 + number)] * 4) for number in range(2)]
    content = Path(gallery[1]).read_bytes()
    Path(gallery[1]).write_bytes(content[: len(content.rstrip(b"\0")) // 2])
    wanted = [f"data.val={json.dumps(gallery)}", "eval.retrieval=true", "train.steps=1"]
    done = start(tmp_path, 0, *wanted)
    assert done.code == 2, done.output
    assert "1 shard cannot be read to the end" in done.errors[0]
    assert "more than data.max_bad_shards=0.05 of 2" in done.errors[0]
    done = start(tmp_path, 0, *wanted, "data.max_bad_shards=0.5")
    assert done.code == 0, done.output
    assert [row["eval/retrieval/bad_shards"] for row in rows(tmp_path) if "eval/retrieval/i2t_r1" in row] == [1, 1]
