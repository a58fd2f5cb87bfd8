"""Tables of examples: what the model made of some images, the same ones whatever the processes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.trainer.evaluation import helpers
from trainer.distributed.processes import Processes
from trainer.evaluation.retrieval import retrieval
from trainer.evaluation.setting import Setting
from trainer.evaluation.zeroshot import zeroshot
from trainer.reporting.example_tables import ExampleTable

IMAGES, CLASSES, MOST = 23, 4, 6
NAMES = [f"class {number}" for number in range(CLASSES)]
CAPTIONS = [f"caption {copy} of {image}" for image in range(IMAGES) for copy in range(1 + image % 3)]
OWNERS = [image for image in range(IMAGES) for _ in range(1 + image % 3)]


def rows(count: int, seed: int) -> Tensor:
    return normalize(torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), dim=-1)


IMAGE_ROWS, CLASS_ROWS, CAPTION_ROWS = rows(IMAGES, 0), rows(CLASSES, 1), rows(len(CAPTIONS), 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    helpers.write_shards(tmp_path / "classes" / "test" / "%d.tar", [{"cls": n % CLASSES} for n in range(IMAGES)], shards=3)
    (tmp_path / "classes" / "classnames.txt").write_text("\n".join(NAMES))
    (tmp_path / "classes" / "zeroshot_classification_templates.txt").write_text("{c}")
    captions = [[text for text, owner in zip(CAPTIONS, OWNERS, strict=True) if owner == n] for n in range(IMAGES)]
    helpers.write_shards(tmp_path / "pairs" / "%d.tar", [{"txt": "\n".join(of_image)} for of_image in captions], shards=3)
    return tmp_path


def tables(folder: Path, world: int, most: int = MOST) -> list[list[ExampleTable]]:
    """Of zero-shot and retrieval, on each rank."""

    def work(processes: Processes) -> list[ExampleTable]:
        kinds = [(CLASS_ROWS, NAMES), (CAPTION_ROWS, CAPTIONS)]
        settings = [helpers.setting(IMAGE_ROWS, texts, names, processes) for texts, names in kinds]
        asked = [Setting(**(vars(setting) | {"examples": most})) for setting in settings]
        zeroshot(folder / "classes", asked[0])
        retrieval(str(folder / "pairs"), asked[1])
        return [table for setting in asked for table in setting.tables]

    return helpers.on_threads(work, world)


def image_of(cell: object) -> int:
    """The number of the image in a cell, which is its colour."""
    assert isinstance(cell, Tensor) and cell.dtype == torch.uint8
    return int(cell[0, 0, 0]) * 256 + int(cell[1, 0, 0])


def place(scores: list[float], right: float) -> int:
    return 1 + sum(score > right for score in scores)


def test_the_tables_say_what_the_embeddings_say(folder: Path):
    ((of_classes, of_pairs),) = tables(folder, 1)
    assert of_classes.columns == [
        *("image", "truth", "found 1", "cosine 1", "found 2", "cosine 2", "found 3", "cosine 3", "place of the truth")
    ]
    for row, is_hit in zip(of_classes.rows, of_classes.hits, strict=True):
        number = image_of(row[0])
        scores = (CLASS_ROWS @ IMAGE_ROWS[number]).tolist()
        best = sorted(range(CLASSES), key=lambda index: -scores[index])
        assert row[1] == NAMES[number % CLASSES]
        assert row[2:8:2] == [NAMES[index] for index in best[:3]]
        assert row[3:8:2] == pytest.approx([scores[index] for index in best[:3]], abs=1e-6)
        assert row[8] == place(scores, scores[number % CLASSES])
        assert is_hit == (row[8] == 1) == (row[2] == row[1])
    for row, is_hit in zip(of_pairs.rows, of_pairs.hits, strict=True):
        number = image_of(row[0])
        own = [index for index, owner in enumerate(OWNERS) if owner == number]
        to_texts, to_images = (CAPTION_ROWS @ IMAGE_ROWS[number]).tolist(), (IMAGE_ROWS @ CAPTION_ROWS[own[0]]).tolist()
        assert row[1] == " · ".join(CAPTIONS[index] for index in own)
        assert row[2] == CAPTIONS[max(range(len(CAPTIONS)), key=lambda index: to_texts[index])]
        assert row[8] == place(to_texts, max(to_texts[index] for index in own))
        assert row[9] == place(to_images, to_images[number])
        found = max(range(IMAGES), key=lambda index: to_images[index])
        assert image_of(row[10]) == found
        assert row[11] == ("(itself)" if found == number else CAPTIONS[OWNERS.index(found)])
        assert is_hit == (row[8] == row[9] == 1)


def plain(table: ExampleTable) -> list[list[object]]:
    return [[image_of(cell) if isinstance(cell, Tensor) else cell for cell in row] for row in table.rows]


@pytest.mark.parametrize("world", [2, 3])
def test_they_are_the_same_for_any_number_of_processes(folder: Path, world: int):
    (alone,) = tables(folder, 1)
    for of_rank in tables(folder, world):
        for table, expected in zip(of_rank, alone, strict=True):
            assert len(table.rows) == MOST
            assert plain(table) == [pytest.approx(row) for row in plain(expected)]
            assert (table.columns, table.hits) == (expected.columns, expected.hits)


def test_there_are_never_more_rows_than_images_and_none_if_nobody_wants_any(folder: Path):
    assert [len(table.rows) for table in tables(folder, 1, most=1000)[0]] == [IMAGES, IMAGES]
    assert sorted(image_of(row[0]) for row in tables(folder, 1, most=1000)[0][1].rows) == list(range(IMAGES))
    assert tables(folder, 1, most=0) == [[]]
