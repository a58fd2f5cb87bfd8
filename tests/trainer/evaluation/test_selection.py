import pytest
import torch
from torch.nn.functional import normalize

from tests.trainer.evaluation import helpers, reference
from trainer.errors import UserError
from trainer.evaluation.selection import selection

COUNTS = [2, 5, 1, 2, 3, 2, 2, 4, 2]  # captions of each image; the third has no choice


def write_set(folder, counts=COUNTS):
    captions = [[f"caption {copy} of {image}" for copy in range(count)] for image, count in enumerate(counts)]
    helpers.write_shards(folder / "test" / "%d.tar", [{"txt": "\n".join(of_image)} for of_image in captions], 2)
    (folder / "test" / "nshards.txt").write_text("2\n")
    return str(folder), captions


def setting(captions, processes=helpers.ALONE, batch_size=4, seed=0):
    texts = [caption for of_image in captions for caption in of_image]
    generator = torch.Generator().manual_seed(seed)
    rows = [normalize(torch.randn(count, 5, generator=generator), dim=-1) for count in (len(captions), len(texts))]
    rows[1][1] = rows[1][0]  # a tie between the first image's captions
    return helpers.setting(*rows, texts, processes, batch_size), rows


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_plain_python(tmp_path, seed):
    place, captions = write_set(tmp_path)
    given, (image_rows, text_rows) = setting(captions, seed=seed)
    start, found = 0, []
    for image, count in zip(image_rows.tolist(), COUNTS, strict=True):
        scores = [reference.dot(image, text) for text in text_rows[start : start + count].tolist()]
        start += count
        if count > 1:
            found.append(float(reference.hit_by_counting(scores, [True] + [False] * (count - 1), 1)))
    chance = [1 / count for count in COUNTS if count > 1]
    assert found[0] == 0.5
    assert selection(place, given, "eval.suite") == pytest.approx(
        {
            "top1": sum(found) / len(found),
            "top1_chance": sum(chance) / len(chance),
            "images": len(COUNTS) - 1,
            "captions": sum(COUNTS) - 1,
        }
    )


@pytest.mark.parametrize("world", [2, 3])
def test_several_ranks_are_as_one(tmp_path, world):
    place, captions = write_set(tmp_path)
    alone = selection(place, setting(captions)[0], "eval.suite")
    together = helpers.on_threads(lambda processes: selection(place, setting(captions, processes, 2)[0], "eval.suite"), world)
    for metrics in together:
        assert metrics == pytest.approx(alone, abs=1e-12)


def test_images_without_a_choice_are_no_test(tmp_path):
    place, captions = write_set(tmp_path, [1, 1, 1])
    with pytest.raises(UserError, match=r"^eval\.suite: .* contains no image with two captions, the first of them true"):
        selection(place, setting(captions)[0], "eval.suite")
