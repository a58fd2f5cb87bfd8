import random

import pytest
import torch
from torch.nn.functional import normalize

from tests.trainer.evaluation import helpers, reference
from trainer.errors import UserError
from trainer.evaluation.winoground import twin_scores, winoground

PAIRS = 7


def write_set(folder, members=("_0", "_1")):
    """Pairs, shuffled over two shards as wholes, and two samples without a twin."""
    keys = [f"{pair:06d}{member}" for pair in range(PAIRS) for member in members]
    captions = [f"caption of {key}" for key in keys] + ["lonely", "lonely too"]
    shards = [[], []]
    for number, (key, caption) in enumerate(zip([*keys, "x_0", "x_1"], captions, strict=True)):
        shard = number // 2 % 2 if key[0] != "x" else int(key[-1])  # the twins called x are in different shards
        shards[shard].append({"__key__": key, "png": helpers.png(number), "txt": caption})
    for shard, samples in enumerate(shards):
        random.Random(shard).shuffle(samples)
        helpers.write_shards(folder / "test" / f"{shard}%d.tar", samples)
    return str(folder / "test"), captions


def setting(captions, processes=helpers.ALONE, batch_size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = [normalize(torch.randn(len(captions), 5, generator=generator), dim=-1) for _ in range(2)]
    return helpers.setting(*rows, captions, processes, batch_size), rows


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_plain_python(tmp_path, seed):
    place, captions = write_set(tmp_path)
    given, (images, texts) = setting(captions, seed=seed)
    text, image, group = [], [], []
    for pair in range(PAIRS):
        (a, b), (c, d) = [
            [reference.dot(images[2 * pair + i].tolist(), texts[2 * pair + t].tolist()) for t in (0, 1)] for i in (0, 1)
        ]
        text.append(a > b and d > c)
        image.append(a > c and d > b)
        group.append(text[-1] and image[-1])
    assert 0 < sum(text) < PAIRS
    assert winoground(place, given, "eval.suite") == pytest.approx(
        {
            **{"text_score": sum(text) / PAIRS, "image_score": sum(image) / PAIRS, "group_score": sum(group) / PAIRS},
            **{"text_score_chance": 1 / 4, "image_score_chance": 1 / 4, "group_score_chance": 1 / 6},
            **{"images": 2 * PAIRS, "captions": 2 * PAIRS},
        }
    )


@pytest.mark.parametrize("world", [2, 3])
def test_several_ranks_are_as_one(tmp_path, world):
    place, captions = write_set(tmp_path)
    alone = winoground(place, setting(captions)[0], "eval.suite")
    together = helpers.on_threads(lambda processes: winoground(place, setting(captions, processes, 2)[0], "eval.suite"), world)
    assert together == [pytest.approx(alone, abs=1e-12)] * world


@pytest.mark.parametrize(
    ("scores", "text", "image", "group"),
    [
        ([[0.9, 0.1], [0.1, 0.9]], 1, 1, 1),
        ([[0.1, 0.9], [0.9, 0.1]], 0, 0, 0),
        ([[0.9, 0.1], [0.8, 0.85]], 1, 1, 1),
        ([[0.5, 0.1], [0.6, 0.9]], 1, 0, 0),
        ([[0.5, 0.6], [0.1, 0.9]], 0, 1, 0),
        ([[0.5, 0.5], [0.1, 0.9]], 1 / 2, 1, 1 / 2),
        ([[0.5, 0.5], [0.5, 0.9]], 1 / 2, 1 / 2, 1 / 3),  # the first image's own score must be above both others
        ([[0.5, 0.5], [0.5, 0.5]], 1 / 4, 1 / 4, 1 / 6),
        ([[float("nan"), 0.1], [0.1, 0.9]], 0, 0, 0),
        ([[0.9, float("nan")], [0.1, 0.9]], 0, 0, 0),
    ],
)
def test_by_hand(scores, text, image, group):
    found = twin_scores(torch.tensor([scores]))
    assert found == pytest.approx({"text_score": text, "image_score": image, "group_score": group})


def test_samples_without_twins(tmp_path):
    place, captions = write_set(tmp_path, members=("a", "b"))
    with pytest.raises(UserError, match=r"^eval\.suite: .* contains no samples KEY_0 and KEY_1, each an image with its caption"):
        winoground(place, setting(captions)[0], "eval.suite")
