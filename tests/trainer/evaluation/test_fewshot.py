import logging
import statistics

import pytest
import torch

from tests.distributed.spawn import run_distributed
from tests.trainer.evaluation import helpers
from tests.trainer.evaluation.reference import hit_by_counting
from tests.trainer.evaluation.test_probe import plain_ridge
from trainer.errors import UserError
from trainer.evaluation import fewshot as module
from trainer.evaluation.fewshot import fewshot
from trainer.evaluation.setting import Setting
from trainer.evaluation.shots import SEEDS, Draw

WIDTH = 9
TRAIN = [3 * (index % 4) for index in range(4 * 12)]  # classes 0, 3, 6 and 9, twelve images each: enough for 1, 5 and 10 shots
TEST = [0, 3, 6, 9, 9, 9, 3, 3, 0, 9, 9]


def embeddings(seed=0):
    """Of the images, which are numbered; a training and a test image of the same number are the same picture."""
    rows = torch.randn(len(TRAIN), WIDTH, generator=torch.Generator().manual_seed(seed))
    rows[:, :4] += 1.2 * torch.nn.functional.one_hot(torch.arange(len(TRAIN)) % 4, 4)
    return rows


def write_set(folder, train=TRAIN, test=TEST, shards=3):
    helpers.write_shards(folder / "train" / "%d.tar", [{} if label is None else {"cls": label} for label in train], shards)
    # The last of the pictures, so that the probe is not asked about what it has seen.
    samples = [{"cls": label} if label is not None else {} for label in test]
    helpers.write_shards(folder / "test" / "%d.tar", samples, min(2, len(test)))
    return folder


def setting(processes=helpers.ALONE, batch_size=4, seed=0):
    return helpers.setting(embeddings(seed), torch.empty(0, 2), [], processes, batch_size)


def plain_fewshot(folder, rows, shots):
    """The accuracy of each seed, and its mean over the classes, image by image."""
    rows = 2 * rows.double().numpy()
    names = {f"{folder}/train/{index % 3}.tar/{index:06d}": index for index in range(len(TRAIN))}
    classes = sorted(set(TRAIN))
    accuracies, by_class = [], []
    for seed in range(SEEDS):
        draw = Draw([f"{folder}/train/{shard}.tar" for shard in range(3)])
        chosen = [
            names[sample]
            for label in classes
            for sample in draw.choose([name for name, index in names.items() if TRAIN[index] == label], shots, seed)
        ]
        labels = torch.tensor([classes.index(TRAIN[index]) for index in chosen]).numpy()
        scores = plain_ridge(rows[chosen], labels, len(classes), rows[: len(TEST)])
        right = [
            float(hit_by_counting(list(row), [other == label for other in classes], 1))
            for row, label in zip(scores, TEST, strict=True)
        ]
        accuracies.append(statistics.fmean(right))
        of_class = [[hit for hit, other in zip(right, TEST, strict=True) if other == label] for label in classes]
        by_class.append(statistics.fmean(map(statistics.fmean, of_class)))
    return accuracies, statistics.fmean(by_class)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_plain_python(tmp_path, seed):
    metrics = fewshot(str(write_set(tmp_path)), setting(seed=seed))
    expected = {"images": len(TEST)}
    for shots in (1, 5, 10):  # fewer samples than features, and more
        accuracies, mean_per_class = plain_fewshot(tmp_path, embeddings(seed), shots)
        expected |= {
            f"{shots}shot": statistics.fmean(accuracies),
            f"{shots}shot_std": statistics.stdev(accuracies),
            f"{shots}shot_mean_per_class": mean_per_class,
            f"{shots}shot_chance": 1 / 4,
        }
    assert metrics == pytest.approx(expected, abs=1e-9)
    assert 0.3 < metrics["10shot"] < 1


@pytest.mark.parametrize(("world", "batch_size"), [(1, 7), (2, 1), (2, 4), (3, 5)])
def test_any_number_of_ranks_and_any_batch_are_as_one(tmp_path, world, batch_size):
    write_set(tmp_path)
    alone = fewshot(str(tmp_path), setting())
    for metrics in helpers.on_threads(lambda processes: fewshot(str(tmp_path), setting(processes, batch_size)), world):
        assert metrics == alone


def on_two_processes(processes, place):
    return fewshot(place, setting(processes, batch_size=2))


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path):
    place = str(write_set(tmp_path))
    assert run_distributed(on_two_processes, 2, place) == [fewshot(place, setting())] * 2


def test_only_candidates_are_decoded(tmp_path):
    write_set(tmp_path, train=[index % 2 for index in range(400)], test=[0, 1], shards=1)
    used = setting()
    fewshot(str(tmp_path), used)
    assert len(used.encoder.calls) * 4 <= 2 * SEEDS * 28 + 2 * 4


def test_a_set_is_looked_through_once(tmp_path, monkeypatch):
    folder, kept = write_set(tmp_path), {}
    (folder / "train" / "0.tar").write_bytes((folder / "train" / "0.tar").read_bytes()[:-10240])  # without its end
    given = setting()
    given.data.max_bad_shards = 1.0
    first = fewshot(str(folder), given, "eval.fewshot.a", kept)
    assert first["bad_shards"] == 1
    read = []
    labels = Setting.labels
    monkeypatch.setattr(Setting, "labels", lambda *args: read.append(args) or labels(*args))
    assert fewshot(str(folder), given, "eval.fewshot.a", kept) == first
    assert not read
    assert fewshot(str(folder), given, "eval.fewshot.b", kept) == first
    assert len(read) == 1


def test_an_image_that_cannot_be_decoded_is_replaced(tmp_path):
    write_set(tmp_path)
    draw = Draw([f"{tmp_path}/train/{shard}.tar" for shard in range(3)])
    first = draw.choose([f"{tmp_path}/train/{index % 3}.tar/{index:06d}" for index in range(0, len(TRAIN), 4)], 1, seed=0)[0]
    number = int(first[-6:])
    samples = [{"cls": label} | ({"png": b"no image"} if index == number else {}) for index, label in enumerate(TRAIN)]
    helpers.write_shards(tmp_path / "train" / "%d.tar", samples, 3)
    metrics = fewshot(str(tmp_path), setting())
    assert metrics["bad_samples"] == 1
    assert {"1shot", "5shot", "10shot"} <= set(metrics), "eleven are left"


def test_a_constant_encoder_scores_at_chance(tmp_path):
    write_set(tmp_path)
    constant = helpers.setting(torch.ones(len(TRAIN), WIDTH), torch.empty(0, 2), [])
    metrics = fewshot(str(tmp_path), constant)
    for shots in (1, 5, 10):
        assert metrics[f"{shots}shot"] == pytest.approx(1 / 4)


def test_a_diverged_model_scores_nothing(tmp_path):
    write_set(tmp_path)
    lost = helpers.setting(torch.full((len(TRAIN), WIDTH), torch.nan), torch.empty(0, 2), [])
    assert fewshot(str(tmp_path), lost)["10shot"] == 0


def test_too_few_examples_are_told_once(tmp_path, caplog):
    module._warn.cache_clear()
    write_set(tmp_path, train=[*TRAIN, 1], test=[1, 3])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert {name for name in fewshot(str(tmp_path), setting()) if name.endswith("shot")} == {"1shot"}
    (line,) = [record.message for record in caplog.records]
    assert line == "eval.fewshot: class 1 has 1 usable training image, too few for 5shot, 10shot, 25shot, which will be missing"


def outcome(folder, what="eval.fewshot.name"):
    """The line with which both of two ranks end."""
    both = helpers.on_threads(lambda processes: fewshot(str(folder), setting(processes, batch_size=2), what), 2)
    assert [type(error) for error in both] == [UserError, UserError], both
    assert str(both[0]) == str(both[1])
    assert "\n" not in str(both[0])
    return str(both[0])


def test_samples_without_a_class(tmp_path):
    write_set(tmp_path / "a", train=[*TRAIN[:-1], None])
    helpers.write_shards(tmp_path / "a" / "train" / "%d.tar", [{"cls": 0}] * 5 + [{"txt": "a caption"}], 3)
    assert "train/2.tar/000005 has no .cls with its class index" in outcome(tmp_path / "a")
    write_set(tmp_path / "b")
    helpers.write_shards(tmp_path / "b" / "test" / "%d.tar", [{"cls": 0}] * 5 + [{"txt": "a caption"}], 2)
    assert "test/1.tar/000005 has no .cls with its class index" in outcome(tmp_path / "b")


def test_a_class_without_examples(tmp_path):
    assert "class 7, which no training sample has" in outcome(write_set(tmp_path, test=[0, 3, 7]))


def test_a_class_whose_images_are_all_unusable(tmp_path):
    write_set(tmp_path)
    samples = [{"cls": label} for label in TRAIN * 3] + [{"cls": 5, "png": b"no image"}]
    helpers.write_shards(tmp_path / "train" / "%d.tar", samples, 3)
    assert outcome(tmp_path).startswith("eval.fewshot.name: class 5 has no training image that can be used")


def test_samples_that_share_an_id_are_not_drawn(tmp_path, caplog):
    """Nothing would say which of them is meant; here the twins have different classes."""
    write_set(tmp_path)
    samples = [{"cls": label, "__key__": "twin" if index in (0, 2) else f"{index:06d}"} for index, label in enumerate(TRAIN)]
    helpers.write_shards(tmp_path / "train" / "%d.tar", samples, 1)
    (tmp_path / "train" / "1.tar").unlink()
    (tmp_path / "train" / "2.tar").unlink()
    alone = fewshot(str(tmp_path), setting())
    assert "class 0 has 11 usable training images" in caplog.text
    assert "a key appears more than once" in caplog.text
    for metrics in helpers.on_threads(lambda processes: fewshot(str(tmp_path), setting(processes, 3)), 2):
        assert metrics == alone
