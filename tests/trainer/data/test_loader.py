"""The training loader: the same global batches for every number of processes, from any starting position, whatever the data."""

import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.data.shards_on_disk import jpeg, pair, small_tokenizer, write_shard, write_shards
from trainer.config.schema import DataConfig
from trainer.data.batch import Batch
from trainer.data.limits import check_bad_share
from trainer.data.loader import TrainingLoader, training_loader
from trainer.data.order.mixture import Mixture, Phase, Source
from trainer.data.order.progress import DataProgress
from trainer.data.shards.captions import CaptionRule, Labels
from trainer.data.tokenizer import Tokenizer
from trainer.errors import UserError

BATCH = 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_shards(tmp_path_factory.mktemp("shards"), 8, 12)


def open_loader(
    shards: list[str] | Mixture,
    tokenizer: Tokenizer,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    batch_size: int = BATCH,
    progress: DataProgress | None = None,
    text_length: int = 12,
    **data: Any,
) -> TrainingLoader:
    return training_loader(
        DataConfig(**{"workers": 0, "shuffle_buffer": 6, "flip": True, **data}),
        shards=shards,
        tokenizer=tokenizer,
        image_size=16,
        text_length=text_length,
        batch_size=batch_size,
        rank=rank,
        world=world,
        seed=3,
        start=start * batch_size,
        progress=progress,
    )


def batches(shards: list[str] | Mixture, tokenizer: Tokenizer, count: int, **options: Any) -> list[Batch]:
    loader = open_loader(shards, tokenizer, **options)
    try:
        made = [next(loader) for _ in range(count)]
        assert loader.read == sum(batch.read for batch in made)
        assert loader.bad == sum((Counter(batch.bad) for batch in made), Counter())
        return made
    finally:
        loader.close()


def global_batches(shards: list[str] | Mixture, tokenizer: Tokenizer, count: int, world: int, **data: Any) -> list[Batch]:
    ranks = [batches(shards, tokenizer, count, rank=rank, world=world, **data) for rank in range(world)]
    return [
        Batch(
            torch.cat([batch.images for batch in parts]),
            torch.cat([batch.texts for batch in parts]),
            [pair_id for batch in parts for pair_id in batch.ids],
        )
        for parts in zip(*ranks, strict=True)
    ]


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        a.ids == b.ids and torch.equal(a.images, b.images) and torch.equal(a.texts, b.texts)
        for a, b in zip(first, second, strict=True)
    )


def test_a_batch_has_the_promised_shapes(shards: list[str], tokenizer: Tokenizer) -> None:
    (batch,) = batches(shards, tokenizer, 1, rank=1, world=2)
    assert (batch.images.shape, batch.images.dtype) == ((8, 3, 16, 16), torch.uint8)
    assert (batch.texts.shape, batch.texts.dtype) == ((8, 12), torch.int64)
    assert len(set(batch.ids)) == 8
    assert all(pair_id.rsplit("/", 1)[0] in shards for pair_id in batch.ids)
    assert (batch.read, batch.bad) == (8, {})


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 2), (2, 0), (2, 1), (4, 0), (4, 2), (16, 0), (2, 3)])
def test_global_batches_do_not_depend_on_ranks_and_workers(
    shards: list[str], tokenizer: Tokenizer, world: int, workers: int
) -> None:
    expected = batches(shards, tokenizer, 8)  # beyond one epoch of 6 batches
    assert same(global_batches(shards, tokenizer, 8, world, workers=workers), expected), "8 streams, shared by 16 ranks"


def test_readers_that_share_streams_count_and_replace_as_one_does(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shards, options = damaged(tmp_path)[:6], {"streams": 2, "shuffle_buffer": 3, "max_bad_share": 1.0}
    expected = batches(shards, tokenizer, 10, **options)
    for world, workers in ((8, 0), (2, 3)):
        ranks = [batches(shards, tokenizer, 10, rank=rank, world=world, workers=workers, **options) for rank in range(world)]
        rows = [[pair_id for batch in parts for pair_id in batch.ids] for parts in zip(*ranks, strict=True)]
        assert rows == [batch.ids for batch in expected]
        for name in ("bad", "bad_shards"):
            counted = sum((Counter(getattr(batch, name)) for made in ranks for batch in made), Counter())
            assert counted == sum((Counter(getattr(batch, name)) for batch in expected), Counter())
        assert sum(batch.read for made in ranks for batch in made) == sum(batch.read for batch in expected)
        assert sum(batch.shards for made in ranks for batch in made) == sum(batch.shards for batch in expected)


def test_a_run_goes_on_with_any_number_of_readers(shards: list[str], tokenizer: Tokenizer) -> None:
    whole = batches(shards, tokenizer, 9, streams=4)
    for world, workers in ((16, 0), (2, 3)):
        assert same(global_batches(shards, tokenizer, 4, world, workers=workers, streams=4, start=5), whole[5:])


def test_each_sample_comes_once_an_epoch_and_looks_different_in_the_next(shards: list[str], tokenizer: Tokenizer) -> None:
    made = batches(shards, tokenizer, 12)
    epochs = [[pair_id for batch in part for pair_id in batch.ids] for part in (made[:6], made[6:])]
    assert len(set(epochs[0])) == len(epochs[0]) == 96
    assert set(epochs[0]) == set(epochs[1])
    assert epochs[0] != epochs[1]
    images = [
        {i: image for batch in part for i, image in zip(batch.ids, batch.images, strict=True)} for part in (made[:6], made[6:])
    ]
    assert sum(torch.equal(images[0][i], images[1][i]) for i in epochs[0]) < 5


@pytest.mark.parametrize(("start", "workers"), [(1, 0), (7, 0), (4, 2)])
def test_it_goes_on_where_it_stopped(shards: list[str], tokenizer: Tokenizer, start: int, workers: int) -> None:
    whole = batches(shards, tokenizer, start + 5)
    assert same(batches(shards, tokenizer, 5, start=start, workers=workers), whole[start:])


def test_batches_of_another_size_go_on_at_the_same_pair(shards: list[str], tokenizer: Tokenizer) -> None:
    first = batches(shards, tokenizer, 3, streams=8)
    then = batches(shards, tokenizer, 6, start=6, batch_size=8, streams=8)
    assert Counter(pair_id for batch in first + then for pair_id in batch.ids).most_common(1)[0][1] == 1
    assert sum(len(batch.ids) for batch in first + then) == 96, "an epoch"


def damaged(folder: Path) -> list[str]:
    """8 shards of 12, of which some samples are unusable: 2 without decoding, 3 when decoded, and one shard cut off."""
    shards = []
    for shard in range(8):
        samples = [pair(shard * 12 + index) for index in range(12)]
        if shard == 2:
            samples[3] = {"jpg": jpeg(0)}
            samples[7] = {"txt": "words only"}
            samples[1]["jpg"] = samples[1]["jpg"][: len(samples[1]["jpg"]) // 2]
            samples[2]["jpg"] = b"no image"
            samples[3 + 2]["jpg"] = b""
        if shard == 5:
            samples[11]["jpg"] = samples[11]["jpg"][:300]
        shards.append(write_shard(folder / f"{shard}.tar", samples))
    content = Path(shards[6]).read_bytes()
    Path(shards[6]).write_bytes(content[: content.index(b"000010.jpg") + 700])
    return shards


def test_bad_samples_are_replaced_counted_and_logged_once(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    shards = damaged(tmp_path)
    with caplog.at_level(logging.WARNING):
        made = batches(shards, tokenizer, 12, shuffle_buffer=3)
    undecodable = {f"{shards[2]}/000001", f"{shards[2]}/000002", f"{shards[5]}/000011"}
    without = {f"{shards[2]}/{key}" for key in ("000003", "000005", "000007")}
    seen = {pair_id for batch in made for pair_id in batch.ids}
    assert not seen & (undecodable | without)
    assert len(seen) == 96 - 6 - 2  # the cut-off shard has 10 of 12
    bad = sum((Counter(batch.bad) for batch in made), Counter())
    assert set(bad) == {shards[2], shards[5]}
    assert set().union(*(batch.bad_shards for batch in made)) == {shards[6]}
    assert caplog.text.count("the shard ends early") == 1
    assert all(caplog.text.count(f"{shards[shard]}: unusable samples") == 1 for shard in (2, 5))


def test_the_counts_add_up(tmp_path: Path, tokenizer: Tokenizer) -> None:
    samples = [pair(number) for number in range(20)]
    samples[4] = {"jpg": jpeg(4)}
    samples[9] = {"txt": "words only"}
    samples[2]["jpg"] = samples[11]["jpg"] = b"no image"
    made = batches([write_shard(tmp_path / "a.tar", samples)], tokenizer, 9)
    # 9 batches of 16 are 8 epochs of 18 pairs, of which 16 can be decoded. What was looked at beyond them does not count yet.
    read, bad = sum(batch.read for batch in made), sum(sum(batch.bad.values()) for batch in made)
    assert (read, bad) == (8 * 20, 8 * 4)


@pytest.mark.parametrize("start", [3, 9])
def test_it_goes_on_where_it_stopped_also_with_bad_samples(tmp_path: Path, tokenizer: Tokenizer, start: int) -> None:
    shards = damaged(tmp_path)
    whole = batches(shards, tokenizer, start + 5)
    assert same(batches(shards, tokenizer, 5, start=start), whole[start:])
    assert same(global_batches(shards, tokenizer, start + 5, 2, workers=2), whole)


def trained(
    shards: list[str], tokenizer: Tokenizer, start: int, count: int, world: int, before: DataProgress, **data: Any
) -> tuple[list[list[str]], DataProgress]:
    """The ids of `count` global batches from the progress at `start` on, and the progress after them."""
    ids: list[list[str]] = [[] for _ in range(count)]
    reports = []
    for rank in range(world):
        loader = open_loader(shards, tokenizer, rank, world, start, progress=before, **data)
        for row in ids:
            row += next(loader).ids
        reports.append(loader.report())
        loader.close()
    return ids, before.merged(reports)


def test_counters_and_lengths_go_on_after_a_resume_with_other_processes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shards = damaged(tmp_path)
    pairs = dict.fromkeys(shards, 12) | {shards[2]: 9}
    del pairs[shards[6]]  # never read to its end: it has no length, but a number of places in each epoch
    whole, expected = trained(shards, tokenizer, 0, 21, 1, DataProgress())
    assert expected.lengths == pairs
    assert len(expected.bad) == 2
    assert set(expected.bad_shards) == {shards[6]}
    assert set(expected.short.values()) == {10}
    assert expected.bad_shards[shards[6]] == len(expected.short) == 21 * BATCH // (96 - 3 - 2) + 1
    ids, progress = [], DataProgress()
    for start, count, world, workers in ((0, 3, 2, 2), (3, 7, 4, 0), (10, 4, 1, 2), (14, 7, 2, 0)):
        more, progress = trained(shards, tokenizer, start, count, world, progress, workers=workers)
        ids += more
        assert progress.lengths.items() <= pairs.items()
    assert ids == whole
    assert progress == expected


def test_what_is_known_is_not_reported_again(shards: list[str], tokenizer: Tokenizer) -> None:
    loader = open_loader(shards, tokenizer)
    for _ in range(9):
        next(loader)
    assert loader.report().lengths == dict.fromkeys(shards, 12)
    for _ in range(9):
        next(loader)
    report = loader.report()
    assert (report.read, report.bad, report.lengths, report.shards) == (18 * BATCH, {}, {}, 3 * len(shards))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_lost_pairs_ends_a_resumed_run_in_one_line(tmp_path: Path, tokenizer: Tokenizer, workers: int) -> None:
    shards = write_shards(tmp_path, 1, 20)
    write_shard(Path(shards[0]), [pair(number) for number in range(5)])
    with pytest.raises(
        UserError, match=f"shard {shards[0]} has 5 usable pairs, but had 20 when this run read it before"
    ) as raised:
        batches(shards, tokenizer, 1, start=1, progress=DataProgress(lengths={shards[0]: 20}), workers=workers)
    assert "\n" not in str(raised.value)


def test_no_pair_twice_in_a_batch_for_a_bad_one(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for batch in batches(damaged(tmp_path), tokenizer, 5):
        assert len(set(batch.ids)) == BATCH


@pytest.mark.parametrize(
    ("lines", "expected"), [(None, {"picture number set"}), (False, {"picture number set"}), (True, {"picture", "number", "set"})]
)
def test_a_text_file_is_one_caption_unless_its_lines_are(
    tmp_path: Path, tokenizer: Tokenizer, lines: bool | None, expected: set[str]
) -> None:
    shards = [write_shard(tmp_path / "a.tar", [{"jpg": jpeg(1), "txt": "picture\nnumber\nset"}] * BATCH)]
    (batch,) = batches(shards, tokenizer, 1, caption_lines=lines, text_length=32)
    assert {tokenizer.decode(row) for row in batch.texts.tolist()} == expected


STRANGE = {
    "half an emoji": {"json": rb'{"caption": "picture \ud83d"}'},
    "half an emoji alone": {"json": rb'{"caption": "\ud83d"}'},
    "too deep": {"json": b"[" * 100_000},
    "huge integer": {"json": b'{"caption": "picture", "id": ' + b"9" * 5000 + b"}"},
    "nul": {"txt": b"pic\0ture"},
    "latin-1": {"txt": "caf\xe9".encode("latin-1")},
    "unknown to the tokenizer": {"txt": "漢字".encode()},
    "no image": {"jpg": b"<html>404</html>", "txt": b"picture"},
    "a drawing": {"jpg": b"<svg></svg>", "txt": b"picture"},
    "megabytes": {"txt": b"picture " * 500_000},
}
USABLE = {"half an emoji", "huge integer", "megabytes"}


@pytest.mark.parametrize("workers", [0, 1])
def test_no_sample_ends_a_run_and_the_run_goes_on_behind_it(tmp_path: Path, tokenizer: Tokenizer, workers: int) -> None:
    samples = [pair(number) for number in range(20)]
    samples += [{"jpg": jpeg(number), **strange} for number, strange in enumerate(STRANGE.values())]
    shards = [write_shard(tmp_path / "a.tar", samples)]
    loader_of = {"workers": workers, "max_bad_share": 1.0, "shuffle_buffer": 4}
    whole = batches(shards, tokenizer, 10, **loader_of)
    assert same(batches(shards, tokenizer, 4, start=6, **loader_of), whole[6:])
    used = {int(pair_id.rpartition("/")[2]) for batch in whole for pair_id in batch.ids}
    assert used == set(range(20)) | {20 + index for index, name in enumerate(STRANGE) if name in USABLE}


def test_why_samples_are_unusable_is_told(tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    for name in STRANGE.keys() - USABLE:
        shards = [write_shard(tmp_path / f"{name}.tar", [{"jpg": jpeg(0), **STRANGE[name]}, *[pair(n) for n in range(20)]])]
        batches(shards, tokenizer, 2, shuffle_buffer=2)
    for told in ("nested too deeply", "NUL bytes", "not UTF-8", "does not know any part of its caption '漢字'", "HTML", "SVG"):
        assert told in caplog.text


def test_truncated_captions_are_counted_over_ranks_workers_and_resumes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    samples = [{"jpg": jpeg(n), "txt": "picture " * (30 if n % 4 == 0 else 1)} for n in range(32)]
    shards = [write_shard(tmp_path / f"{index}.tar", samples) for index in range(4)]
    _, expected = trained(shards, tokenizer, 0, 16, 1, DataProgress(), streams=4)
    assert expected.truncated == 16 * BATCH // 4
    progress = DataProgress()
    for start, count, world, workers in ((0, 3, 2, 2), (3, 6, 4, 0), (9, 7, 1, 2)):
        _, progress = trained(shards, tokenizer, start, count, world, progress, streams=4, workers=workers)
    assert progress.truncated == expected.truncated


def test_one_warning_tells_what_to_set_when_many_captions_are_cut(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    long = "picture number 12 of a small set"
    needed = tokenizer.encode([long], 1).counts[0]
    shards = [write_shard(tmp_path / "a.tar", [{"jpg": jpeg(n), "txt": long if n % 2 else "set"} for n in range(40)])]
    batches(shards, tokenizer, 20, text_length=needed - 1)
    (line,) = [record.getMessage() for record in caplog.records if "lose their ends" in record.getMessage()]
    assert f"longer than model.text_length={needed - 1}" in line
    assert f"model.text_length={needed}, in a new run" in line
    caplog.clear()
    batches(shards, tokenizer, 20, text_length=needed)
    assert not caplog.records


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_reach_the_user_in_one_line(tmp_path: Path, tokenizer: Tokenizer, workers: int) -> None:
    shards = [write_shard(tmp_path / f"{index}.tar", [{"jpg": b"no image", "txt": "a"}] * 20) for index in range(2)]
    with pytest.raises(UserError, match="without a usable pair") as raised:
        batches(shards, tokenizer, 1, workers=workers)
    assert "\n" not in str(raised.value)


def test_warnings_of_workers_are_logged_by_the_training_process(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    shards = damaged(tmp_path)
    with caplog.at_level(logging.WARNING):
        made = batches(shards, tokenizer, 40, workers=2)
    assert sum(sum(batch.bad.values()) for batch in made) >= 6
    # Both workers meet them, in different epochs.
    assert caplog.text.count(f"{shards[6]}: the shard ends early") == 1
    assert caplog.text.count(f"{shards[2]}: unusable samples") == 1


def test_misfits_are_told_before_anything_is_read(shards: list[str], tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"data.streams=4 is more than the 3 shards"):
        batches(shards[:3], tokenizer, 1, world=2, workers=2, streams=4)


def test_shared_reading_is_told_once(shards: list[str], tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        global_batches(shards[:3], tokenizer, 1, 4)
    told = [record.getMessage() for record in caplog.records if "readers share" in record.getMessage()]
    assert told == [
        "4 readers share 2 streams of shards: each shard is read 2.0 times an epoch, though decoded once; at least 4 shards and "
        "a micro-batch that is a multiple of 4 pairs would read each once"
    ]


def worker_processes(loader: Any) -> list[Any]:
    return list(loader._parts._parcels._workers)


def test_workers_outlive_signals_and_end_with_the_loader(shards: list[str], tokenizer: Tokenizer) -> None:
    loader = training_loader(
        DataConfig(workers=2),
        shards=shards,
        tokenizer=tokenizer,
        image_size=16,
        text_length=8,
        batch_size=8,
        rank=0,
        world=1,
        seed=0,
    )
    next(loader)
    workers = worker_processes(loader)
    server = Path(f"/proc/{workers[0].pid}/stat").read_text().rsplit(")", 1)[1].split()[1]
    assert int(server) != os.getpid()
    for process in (int(server), *(worker.pid for worker in workers)):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(process, number)
    for _ in range(6):  # more than they had prepared
        next(loader)
    assert all(worker.is_alive() for worker in workers)
    loader.close()
    assert not any(worker.is_alive() for worker in workers)
    with pytest.raises(StopIteration):
        next(loader)


def test_what_python_starts_beside_the_workers_outlives_signals() -> None:
    script = """
import os, signal, time
from multiprocessing import resource_tracker
from trainer.data.workers import _fork_server
_fork_server()
tracker = resource_tracker._resource_tracker._pid
for number in (signal.SIGUSR1, signal.SIGUSR2):
    os.kill(tracker, number)
time.sleep(0.5)
assert os.waitpid(tracker, os.WNOHANG) == (0, 0)
assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_killed_worker_is_a_clear_error(shards: list[str], tokenizer: Tokenizer) -> None:
    loader = training_loader(
        DataConfig(workers=1),
        shards=shards,
        tokenizer=tokenizer,
        image_size=16,
        text_length=8,
        batch_size=8,
        rank=0,
        world=1,
        seed=0,
    )
    next(loader)
    os.kill(worker_processes(loader)[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match="a data worker was killed"):
        for _ in range(20):
            next(loader)


def test_workers_leave_the_random_numbers_of_training_alone(shards: list[str], tokenizer: Tokenizer) -> None:
    drawn = []
    for workers in (0, 1):
        torch.manual_seed(0)
        batches(shards, tokenizer, 1, workers=workers)
        drawn.append(torch.rand(3))
    assert torch.equal(drawn[0], drawn[1])


def test_too_many_bad_samples_end_the_run() -> None:
    check_bad_share(99, {"a.tar": 99}, 0.01)
    check_bad_share(1000, {"a.tar": 10}, 0.01)
    with pytest.raises(UserError, match=r"11 of 1000 .*data.max_bad_share=0.01.* b.tar \(8\), a.tar \(2\), c.tar \(1\)$"):
        check_bad_share(1000, {"a.tar": 2, "b.tar": 8, "c.tar": 1}, 0.01)


KILLED_WHILE_TRAINING = """
import os, signal, sys
from trainer.config.schema import DataConfig
from trainer.data.loader import training_loader
from trainer.data.tokenizer import Tokenizer

loader = training_loader(
    DataConfig(workers=2), shards=sys.argv[2:], tokenizer=Tokenizer.load(sys.argv[1]),
    image_size=16, text_length=8, batch_size=8, rank=0, world=1, seed=0,
)
next(loader)
print(*(worker.pid for worker in loader._parts._parcels._workers), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_end_when_the_training_process_is_killed(shards: list[str], tmp_path: Path) -> None:
    small_tokenizer(tmp_path)
    # Its output ends when the last process that inherited it does.
    command = [sys.executable, "-c", KILLED_WHILE_TRAINING, str(tmp_path / "t.model"), *shards]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=200, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(ended.stdout.split()) == 2


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """Captions under two keys; bad samples; and classes, of which one shard is all there is."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("web", "bad"):
        (folder / name).mkdir()
    samples = [pair(number) | {"json": b'{"other": "a small set"}'} for number in range(24)]
    web = [write_shard(folder / "web" / f"{shard}.tar", samples[shard::8]) for shard in range(8)]
    classes = write_shard(folder / "classes.tar", [{"jpg": jpeg(n), "cls": n % 2} for n in range(12)])
    sources = [
        Source("web", web, CaptionRule(chances=(("txt", 0.25), ("other", 0.75)))),
        Source("bad", damaged(folder / "bad")[:3], CaptionRule()),
        Source("classes", [classes], CaptionRule(labels=Labels(["picture", "number"], ["set {c}", "small {c}", "of {c}"]))),
    ]
    return Mixture(sources, [Phase(0, {"web": 4, "bad": 1, "classes": 3})])


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (4, 0), (2, 3)])
def test_a_mixture_does_not_depend_on_ranks_workers_and_resumes(
    mixture: Mixture, tokenizer: Tokenizer, world: int, workers: int
) -> None:
    whole = batches(mixture, tokenizer, 9)
    assert same(global_batches(mixture, tokenizer, 9, world, workers=workers), whole)
    assert same(global_batches(mixture, tokenizer, 4, world, workers=workers, start=5), whole[5:])


def test_every_pair_has_its_source_and_a_bad_one_is_replaced_from_it(mixture: Mixture, tokenizer: Tokenizer) -> None:
    made = batches(mixture, tokenizer, 24)
    sources = [source for batch in made for source in batch.sources]
    ids = [pair_id for batch in made for pair_id in batch.ids]
    assert Counter(sources) == mixture.drawn_by_all(8, len(ids)) == {"web": 192, "bad": 48, "classes": 144}
    folders = {"web": "web", "bad": "bad", "classes": "sources0"}
    assert all(
        Path(pair_id).parents[1].name.startswith(folders[source][:7]) for source, pair_id in zip(sources, ids, strict=True)
    )
    assert sum(sum(batch.bad.values()) for batch in made) > 5
    for batch in made:
        of_bad = [pair_id for source, pair_id in zip(batch.sources, batch.ids, strict=True) if source == "bad"]
        assert len(of_bad) == len(set(of_bad)), "no pair twice in a batch for a bad one"


def test_captions_are_drawn_with_their_probabilities_and_classes_at_every_visit_anew(
    mixture: Mixture, tokenizer: Tokenizer
) -> None:
    texts: dict[str, Counter[str]] = {"web": Counter(), "bad": Counter(), "classes": Counter()}
    for batch in batches(mixture, tokenizer, 40, text_length=30):
        for source, row, pair_id in zip(batch.sources, batch.texts.tolist(), batch.ids, strict=True):
            texts[source][tokenizer.decode(row) if source == "web" else f"{int(pair_id[-6:]) % 2}: {tokenizer.decode(row)}"] += 1
    assert texts["web"]["a small set"] / texts["web"].total() == pytest.approx(0.75, abs=0.07)
    assert set(texts["classes"]) == {
        f"{label}: {prompt} {name}" for label, name in enumerate(("picture", "number")) for prompt in ("set", "small", "of")
    }
    assert max(texts["classes"].values()) < 2 * min(texts["classes"].values())


def test_what_a_source_leaves_out_is_counted_but_not_bad(tmp_path: Path, tokenizer: Tokenizer) -> None:
    samples = [{"jpg": jpeg(number, 24, 20 if number % 3 else 10), "txt": "picture number"} for number in range(30)]
    shards = [write_shard(tmp_path / f"{index}.tar", samples) for index in range(2)]
    small = Mixture([Source("a", shards, CaptionRule(min_side=12))], [Phase(0, {"a": 1})])
    loader = open_loader(small, tokenizer)
    for _ in range(10):
        assert all(int(pair_id[-6:]) % 3 for pair_id in next(loader).ids)
    report = loader.report()
    assert report.bad == {}
    assert report.left_out == pytest.approx(report.read / 3, abs=2)
    assert report.lengths == {f"a:{shard}": 20 for shard in shards}


def test_a_source_of_few_shards_says_how_often_they_are_read(
    mixture: Mixture, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        global_batches(mixture, tokenizer, 1, 4)
    told = [record.getMessage() for record in caplog.records if "readers share" in record.getMessage()]
    assert [line.partition(":")[0] for line in told] == ["bad", "classes"]
    assert "classes: 4 readers share 1 streams of shards: each shard is read 4.0 times an epoch" in told[1]
