import io

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tests.trainer.evaluation import helpers
from trainer.errors import UserError
from trainer.evaluation.multilabel import average_precision, multilabel

CLASSES = ["cat", "dog", "tree", "boat", "never"]
PROMPTS = [f"a {name}" for name in CLASSES]
APPLIES = np.array([[(image * (number + 2)) % 3 == 0 and number < 4 for number in range(5)] for image in range(1, 14)])


def npy(values):
    content = io.BytesIO()
    np.save(content, np.asarray(values))
    return content.getvalue()


def write_set(folder, samples=None):
    folder.mkdir(exist_ok=True)
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}")
    samples = samples or [{"npy": npy(applies.astype(np.float32))} for applies in APPLIES]
    helpers.write_shards(folder / "test-%d.tar", samples, 2)
    return folder


def setting(processes=helpers.ALONE, batch_size=4):
    generator = torch.Generator().manual_seed(0)
    rows = [normalize(torch.randn(count, 4, generator=generator), dim=-1) for count in (len(APPLIES), len(PROMPTS))]
    rows[0][3] = rows[0][2]  # a tie
    return helpers.setting(*rows, PROMPTS, processes, batch_size), rows


def plain_average_precision(scores, applies):
    """Precision at the threshold of each image it applies to."""
    precisions = []
    for score, right in zip(scores, applies, strict=True):
        if right:
            above = [other for mark, other in zip(scores, applies, strict=True) if mark >= score]
            precisions.append(sum(above) / len(above))
    return sum(precisions) / len(precisions)


def expected():
    _, (images, texts) = setting()
    scores = (images.double() @ texts.double().T).float()
    found = [plain_average_precision(scores[:, c].tolist(), APPLIES[:, c].tolist()) for c in range(4)]
    return {
        "mean_average_precision": sum(found) / 4,
        "mean_average_precision_chance": APPLIES[:, :4].mean(),
        "images": len(APPLIES),
    }


def test_agrees_with_plain_python(tmp_path):
    assert multilabel(write_set(tmp_path), setting()[0], "eval.suite") == pytest.approx(expected())


@pytest.mark.parametrize("world", [2, 3])
def test_several_ranks_are_as_one(tmp_path, world):
    write_set(tmp_path)
    for metrics in helpers.on_threads(lambda processes: multilabel(tmp_path, setting(processes, 2)[0], "eval.suite"), world):
        assert metrics == pytest.approx(expected(), abs=1e-12)


def test_equal_scores_give_the_share_of_images_and_no_numbers_the_least():
    applies = torch.tensor([True, False, False, True])
    assert average_precision(torch.ones(4), applies) == 0.5
    assert average_precision(torch.tensor([4.0, 2.0, 1.0, 3.0]), applies) == 1
    nan = torch.full((4,), torch.nan)
    assert average_precision(nan, applies) == average_precision(torch.tensor([1.0, 2.0, 2.0, 1.0]), applies) == 0.5


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        ({"cls": 1}, "000003 has no .npy with a number for each class"),
        ({"npy": npy([0] * 7 + [1])}, "000003 has class 7; the 5 classes are numbered 0 to 4"),
    ],
)
def test_a_bad_sample_ends_both_ranks(tmp_path, sample, told):
    samples = [{"npy": npy(applies)} for applies in APPLIES]
    write_set(tmp_path, [*samples[:3], sample, *samples[4:]])
    both = helpers.on_threads(lambda processes: multilabel(tmp_path, setting(processes, 2)[0], "eval.suite"), 2)
    assert [type(error) for error in both] == [UserError, UserError]
    assert told in str(both[0])


@pytest.mark.parametrize("content", [b"no numbers", npy([["a"]]), npy([[1, 0]]), npy(["a"]), npy(1), b""])
def test_numbers_that_cannot_be_read_are_unusable_never_fatal(tmp_path, content):
    samples = [{"npy": npy(applies)} for applies in APPLIES]
    write_set(tmp_path, [*samples[:3], {"npy": content}, *samples[4:]])
    metrics = multilabel(tmp_path, setting()[0], "eval.suite")
    assert (metrics["images"], metrics["bad_samples"]) == (len(APPLIES) - 1, 1)
