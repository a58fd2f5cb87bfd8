import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from tests.trainer.evaluation import helpers, reference
from trainer.errors import UserError
from trainer.evaluation.retrieval import KS, count_hits, retrieval

small = st.integers(-2, 2).map(float)


@st.composite
def image_sets(draw):
    """Integer embeddings (so that ties are exact) of images and of one to six captions each."""
    images = draw(st.lists(st.lists(small, min_size=2, max_size=2), min_size=1, max_size=8))
    owners = [image for image in range(len(images)) for _ in range(draw(st.integers(1, 6)))]
    captions = [draw(st.lists(small, min_size=2, max_size=2)) for _ in owners]
    return images, captions, owners


@settings(max_examples=60, deadline=None)
@given(image_sets(), st.integers(1, 200))
def test_both_directions_agree_with_plain_python_whatever_the_chunk(drawn, scores_at_once):
    images, captions, owners = drawn
    numbers = list(range(len(images)))
    for queries, query_owners, gallery, gallery_owners in [
        (images, numbers, captions, owners),
        (captions, owners, images, numbers),
    ]:
        found = count_hits(
            torch.tensor(queries), torch.tensor(query_owners), torch.tensor(gallery), torch.tensor(gallery_owners), scores_at_once
        )
        expected = [reference.recall(queries, query_owners, gallery, gallery_owners, k) for k in KS]
        assert (found / len(queries)).tolist() == pytest.approx(expected, abs=1e-9)


def captioned(counts):
    """Samples with so many captions each, and all captions."""
    captions = [[f"caption {copy} of {image}" for copy in range(count)] for image, count in enumerate(counts)]
    return [{"txt": "\n".join(of_image)} for of_image in captions], [caption for of_image in captions for caption in of_image]


def embeddings(count, seed, width=6):
    rows = normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)
    rows[count // 2] = rows[0]  # a tie
    return rows


COUNTS = [5, 1, 5, 7, 2, 5, 5, 5, 3, 5, 5, 1, 5]


def expected_metrics(image_rows, text_rows, counts):
    owners = [image for image, count in enumerate(counts) for _ in range(count)]
    numbers = list(range(len(counts)))
    images, texts = image_rows.tolist(), text_rows.tolist()
    flat_images, flat_texts = [[0.0]] * len(images), [[0.0]] * len(texts)
    means = [[sum(column) / len(rows) for column in zip(*rows, strict=True)] for rows in (images, texts)]
    expected = {
        "modality_gap": math.dist(*means),
        "pair_cosine": sum(reference.dot(images[owner], text) for owner, text in zip(owners, texts, strict=True)) / len(texts),
        "images": len(images),
        "captions": len(texts),
    }
    for k in KS:
        expected[f"i2t_r{k}"] = reference.recall(images, numbers, texts, owners, k)
        expected[f"t2i_r{k}"] = reference.recall(texts, owners, images, numbers, k)
        expected[f"i2t_r{k}_chance"] = reference.recall(flat_images, numbers, flat_texts, owners, k)
        expected[f"t2i_r{k}_chance"] = reference.recall(flat_texts, owners, flat_images, numbers, k)
    return expected


def test_shards_agree_with_plain_python(tmp_path):
    samples, captions = captioned(COUNTS)
    helpers.write_shards(tmp_path / "val-%d.tar", samples, shards=2)
    image_rows, text_rows = embeddings(len(COUNTS), seed=0), embeddings(len(captions), seed=1)
    metrics = retrieval(str(tmp_path), helpers.setting(image_rows, text_rows, captions))
    assert metrics == pytest.approx(expected_metrics(image_rows, text_rows, COUNTS), abs=1e-9)


def test_perfect_embeddings_score_everything(tmp_path):
    counts = [5] * 12
    samples, captions = captioned(counts)
    helpers.write_shards(tmp_path / "%d.tar", samples)
    image_rows = torch.eye(12)
    metrics = retrieval(str(tmp_path), helpers.setting(image_rows, image_rows.repeat_interleave(5, dim=0), captions))
    assert all(metrics[f"{way}_r{k}"] == 1 for way in ("i2t", "t2i") for k in KS)
    assert metrics["t2i_r1_chance"] == pytest.approx(1 / 12)
    assert metrics["i2t_r1_chance"] == pytest.approx(5 / 60)


def test_a_constant_encoder_scores_at_chance(tmp_path):
    samples, captions = captioned(COUNTS)
    helpers.write_shards(tmp_path / "%d.tar", samples)
    row = normalize(torch.ones(1, 7), dim=-1)
    metrics = retrieval(str(tmp_path), helpers.setting(row.repeat(len(COUNTS), 1), row.repeat(len(captions), 1), captions))
    for way in ("i2t", "t2i"):
        for k in KS:
            assert metrics[f"{way}_r{k}"] == pytest.approx(metrics[f"{way}_r{k}_chance"], abs=1e-12)
    assert metrics["t2i_r1"] == pytest.approx(1 / len(COUNTS))


@pytest.mark.parametrize("world", [2, 3])
def test_several_ranks_are_as_one(tmp_path, world):
    samples, captions = captioned(COUNTS)
    helpers.write_shards(tmp_path / "%d.tar", samples)
    image_rows, text_rows = embeddings(len(COUNTS), seed=0), embeddings(len(captions), seed=1)
    alone = retrieval(str(tmp_path), helpers.setting(image_rows, text_rows, captions))
    together = helpers.on_threads(
        lambda processes: retrieval(str(tmp_path), helpers.setting(image_rows, text_rows, captions, processes, batch_size=2)),
        world,
    )
    for metrics in together:
        assert metrics == pytest.approx(alone, abs=1e-12)


def test_shards_that_are_not_there_end_every_rank(tmp_path):
    rows = torch.eye(1)
    outcomes = helpers.on_threads(
        lambda processes: retrieval(str(tmp_path / "none"), helpers.setting(rows, rows, ["a"], processes)), 2
    )
    assert [type(outcome) for outcome in outcomes] == [UserError, UserError]
    assert "none" in str(outcomes[0])
