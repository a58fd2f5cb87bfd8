import json
from collections import Counter

import pytest
import torch
from torch.nn.functional import normalize

from tests.trainer.evaluation import helpers, reference
from trainer.errors import UserError
from trainer.evaluation import zeroshot as module
from trainer.evaluation.classification_set import read_classification_set
from trainer.evaluation.zeroshot import WORST, Confusion, class_embeddings, zeroshot

CLASSES = ["red square", "red circle", "blue square", "blue circle", "green square", "green circle", "red star"]
TEMPLATES = ["a {c}.", "one {c} {of many}", "{c}"]
ATTRIBUTES = {
    "colour": ["red", "red", "blue", "blue", "green", "green", "red"],
    "shape": ["square", "circle", "square", "circle", "square", "circle", "star"],
}
LABELS = [index % 5 for index in range(17)] + [6] * 4
PROMPTS = [template.replace("{c}", name) for name in CLASSES for template in TEMPLATES]


def write_folder(folder, labels=LABELS, shards="test/%d.tar", attributes=ATTRIBUTES, classes=CLASSES, templates=TEMPLATES):
    folder.mkdir(exist_ok=True)
    (folder / "classnames.txt").write_text("\n".join(classes) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")
    if attributes is not None:
        (folder / "class_attributes.json").write_text(json.dumps(attributes))
    helpers.write_shards(folder / shards, [{} if label is None else {"cls": label} for label in labels], shards=2)
    if shards.startswith("test/"):
        (folder / "test" / "nshards.txt").write_text("2\n")
    return folder


def tables(seed=0, width=5):
    generator = torch.Generator().manual_seed(seed)
    return (normalize(torch.randn(rows, width, generator=generator), dim=-1) for rows in (len(LABELS), len(PROMPTS)))


def plain_zeroshot(image_rows, text_rows, labels):
    """The metrics of an ensemble of prompts, image by image."""
    count = len(TEMPLATES)
    classes = []
    for index in range(len(CLASSES)):
        prompts = text_rows[index * count : (index + 1) * count].tolist()
        mean = [sum(column) / count for column in zip(*prompts, strict=True)]
        norm = reference.dot(mean, mean) ** 0.5
        classes.append([value / norm for value in mean])
    groups = {"top1": (CLASSES, 1), "top5": (CLASSES, 5), "colour": (ATTRIBUTES["colour"], 1), "shape": (ATTRIBUTES["shape"], 1)}
    expected = {"images": len(labels), "chance": 1 / len(CLASSES)}
    for name, (values, k) in groups.items():
        found = [
            float(
                reference.hit_by_counting([reference.dot(image, row) for row in classes], [v == values[label] for v in values], k)
            )
            for image, label in zip(image_rows.tolist(), labels, strict=True)
        ]
        expected[name] = sum(found) / len(found)
        if name == "top1":
            by_class = [[hit for hit, label in zip(found, labels, strict=True) if label == one] for one in set(labels)]
            expected["mean_per_class"] = sum(sum(hits) / len(hits) for hits in by_class) / len(by_class)
        elif name == "top5":
            expected["top5_chance"] = 5 / len(CLASSES)
        else:
            expected[f"{name}_chance"] = sum(values.count(values[label]) for label in labels) / len(labels) / len(CLASSES)
    return expected


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_plain_python(tmp_path, seed):
    image_rows, text_rows = tables(seed)
    metrics = zeroshot(write_folder(tmp_path / "set"), helpers.setting(image_rows, text_rows, PROMPTS))
    assert metrics == pytest.approx(plain_zeroshot(image_rows, text_rows, LABELS), abs=1e-9)


@pytest.mark.parametrize("world", [1, 2])
def test_the_worst_confusions(tmp_path, world):
    folder = write_folder(tmp_path / "set")
    image_rows, text_rows = tables()
    prompts = text_rows.view(len(CLASSES), len(TEMPLATES), -1).mean(dim=1)
    predicted = (image_rows @ normalize(prompts, dim=-1).T).argmax(dim=1).tolist()
    counts = Counter((true, taken) for true, taken in zip(LABELS, predicted, strict=True) if true != taken)
    assert len(counts) > WORST
    expected = [
        Confusion(CLASSES[true], CLASSES[taken], count, count / LABELS.count(true))
        for (true, taken), count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:WORST]
    ]

    def judge(processes):
        found = []
        zeroshot(folder, helpers.setting(image_rows, text_rows, PROMPTS, processes), confusions=found)
        return found

    assert helpers.on_threads(judge, world) == [expected] * world


def test_prompts_in_several_turns_give_the_same_classes(tmp_path, monkeypatch):
    _, text_rows = tables()
    dataset = read_classification_set(write_folder(tmp_path / "set"))
    setting = helpers.setting(torch.eye(5), text_rows, PROMPTS)
    at_once = class_embeddings(dataset, setting)
    monkeypatch.setattr(module, "PROMPTS_AT_ONCE", 7)
    assert torch.equal(class_embeddings(dataset, setting), at_once)


@pytest.mark.parametrize("shards", ["test-%d.tar", "images-%d.tar"])
def test_a_flat_folder_is_the_same(tmp_path, shards):
    image_rows, text_rows = tables()
    nested = zeroshot(write_folder(tmp_path / "nested"), helpers.setting(image_rows, text_rows, PROMPTS))
    flat = zeroshot(write_folder(tmp_path / "flat", shards=shards), helpers.setting(image_rows, text_rows, PROMPTS))
    assert flat == pytest.approx(nested)


def test_training_shards_beside_the_test_shards_are_left_alone(tmp_path):
    folder = write_folder(tmp_path / "set", shards="test-%d.tar")
    helpers.write_shards(folder / "train-%d.tar", [{"cls": 0}] * 9)
    image_rows, text_rows = tables()
    assert zeroshot(folder, helpers.setting(image_rows, text_rows, PROMPTS))["images"] == len(LABELS)


def test_a_constant_encoder_scores_at_chance(tmp_path):
    row = normalize(torch.ones(1, 7), dim=-1)
    setting = helpers.setting(row.repeat(len(LABELS), 1), row.repeat(len(PROMPTS), 1), PROMPTS)
    metrics = zeroshot(write_folder(tmp_path / "set"), setting)
    assert metrics["top1"] == pytest.approx(metrics["chance"]) == pytest.approx(1 / 7)
    for name in ("top5", "colour", "shape"):
        assert metrics[name] == pytest.approx(metrics[f"{name}_chance"])


def test_five_classes_have_no_top5(tmp_path):
    folder = write_folder(tmp_path / "set", labels=[0, 1, 4], classes=CLASSES[:5], attributes=None)
    image_rows, text_rows = tables()
    assert set(zeroshot(folder, helpers.setting(image_rows, text_rows, PROMPTS))) == {
        "top1",
        "chance",
        "mean_per_class",
        "images",
    }


@pytest.mark.parametrize("world", [2, 3])
def test_several_ranks_are_as_one(tmp_path, world):
    folder = write_folder(tmp_path / "set")
    image_rows, text_rows = tables()
    alone = zeroshot(folder, helpers.setting(image_rows, text_rows, PROMPTS))
    together = helpers.on_threads(
        lambda processes: zeroshot(folder, helpers.setting(image_rows, text_rows, PROMPTS, processes, batch_size=2)), world
    )
    for metrics in together:
        assert metrics == pytest.approx(alone, abs=1e-12)


def outcome(folder):
    """The line with which both of two ranks end."""
    image_rows, text_rows = tables()
    both = helpers.on_threads(
        lambda processes: zeroshot(folder, helpers.setting(image_rows, text_rows, PROMPTS, processes, batch_size=2)), 2
    )
    assert [type(error) for error in both] == [UserError, UserError], both
    assert str(both[0]) == str(both[1])
    assert "\n" not in str(both[0])
    return str(both[0])


def test_a_folder_that_is_not_there(tmp_path):
    assert str(tmp_path / "nowhere") in outcome(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["classnames.txt", "zeroshot_classification_templates.txt"])
def test_a_missing_or_empty_text_file(tmp_path, name):
    folder = write_folder(tmp_path / "set")
    (folder / name).write_text("\n")
    assert f"{name} is empty" in outcome(folder)
    (folder / name).write_bytes(b"caf\xe9")
    assert f"{name} is not UTF-8 (byte 0xe9 at 3, perhaps Latin-1): convert it" in outcome(folder)
    (folder / name).unlink()
    assert f"{name} is missing" in outcome(folder)


def test_an_empty_class_name(tmp_path):
    assert "line 2 is empty" in outcome(write_folder(tmp_path / "set", classes=["a", "", "c"]))


def test_a_template_without_a_place_for_the_name(tmp_path):
    assert "'a photo'" in outcome(write_folder(tmp_path / "set", templates=["a {c}", "a photo"]))


def test_no_shards(tmp_path):
    folder = write_folder(tmp_path / "set", shards="test-%d.tar")
    for shard in folder.glob("*.tar"):
        shard.unlink()
    assert "no test shards" in outcome(folder)


def test_shards_without_labels(tmp_path):
    folder = write_folder(tmp_path / "set", labels=[None] * 6)
    assert "no usable image with its class index in .cls" in outcome(folder)
    helpers.write_shards(folder / "test" / "%d.tar", [{"txt": "a caption"}] * 6, shards=2)
    assert "has no .cls" in outcome(folder)


def test_one_label_out_of_range_on_one_rank(tmp_path):
    assert "label 7" in outcome(write_folder(tmp_path / "set", labels=[*LABELS[:8], 7, *LABELS[9:]]))


@pytest.mark.parametrize(
    ("attributes", "line"),
    [
        ({"colour": ["red", "blue"]}, "'colour' has 2 values for 7 classes"),
        ({"colour": "red"}, "map each attribute to a list"),
        (["red"], "map each attribute to a list"),
        ({"top1": ["red"] * 7}, "name of a metric"),
    ],
)
def test_bad_attributes(tmp_path, attributes, line):
    assert line in outcome(write_folder(tmp_path / "set", attributes=attributes))


def test_attributes_that_are_no_json(tmp_path):
    folder = write_folder(tmp_path / "set")
    (folder / "class_attributes.json").write_text("{colour")
    assert "is not JSON" in outcome(folder)
