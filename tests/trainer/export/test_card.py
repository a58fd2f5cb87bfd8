"""The card of an export and the files that the Hub's tools read."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import model
from model.errors import UserError
from model.layout import ARCHITECTURE, CONFIG, PREPROCESSOR, Description, architecture
from tests.hub import MISSING
from tests.model.test_pretrained import ROUTER, picture, shape
from tests.trainer.export.runs import config, write_run
from trainer.checkpoint.files import checkpoint_path
from trainer.export.__main__ import export_newest

MEASURED = {
    "eval/zeroshot/top1": 0.25,
    "eval/zeroshot/top1_chance": 0.1,
    "eval/zeroshot/images": 500.0,
    "eval/zeroshot_rare/top1": 0.125,
    "eval/zeroshot_rare/top1_chance": 0.1,
    "eval/retrieval/i2t_r1": 1 / 3,
    "eval/retrieval/i2t_r1_chance": 0.05,
    "eval/fewshot/10shot": 0.5,
    "eval/fewshot/10shot_chance": 0.1,
    "eval/fewshot/5shot": 0.4,
}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that was evaluated at steps 10 and 20, and once more at 20 after a resume."""
    made = config()
    made.data.train, made.eval.zeroshot = "/secret/place/{000..009}.tar", "/secret/place/animals"
    made.data.kind = "webdataset"
    folder = write_run(tmp_path / "photos", made, (10, 20, 30))
    rows = [{"step": 10, **MEASURED}, {"step": 20, "eval/zeroshot/top1": 0.9}, {"step": 20, **MEASURED}, {"step": 30, "a": 1}]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def card_of(run: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The head and the rest of the card of an export."""
    export_newest([f"run={run}", f"output={run.parent / 'out'}", *arguments])
    text = (run.parent / "out" / "README.md").read_text()
    _, head, rest = text.split("---\n", 2)
    return yaml.safe_load(head), rest


def test_the_card_has_what_the_run_measured_of_these_weights(run_dir: Path):
    head, card = card_of(checkpoint_path(run_dir, 20))
    assert "| zero-shot top-1 | 25.0% | 10.0% |" in card and "| zero-shot top-1, rare | 12.5% | 10.0% |" in card
    assert "| image to text R@1 | 33.3% | 5.0% |" in card and "500" not in card
    assert "Measured in training, after step 20, in bf16." in card
    assert "photos: weights of step 20." in card
    (entry,) = head["model-index"]
    assert entry["name"] == "photos"
    found = {
        (result["task"]["type"], result["dataset"]["name"], metric["type"]): metric["value"]
        for result in entry["results"]
        for metric in result["metrics"]
    }
    assert found == {
        ("zero-shot-image-classification", "animals", "accuracy"): 0.25,
        ("zero-shot-image-classification", "rare", "accuracy"): 0.125,
        ("image-text-retrieval", "evaluation set of the run", "recall_at_1"): 0.3333,
        ("image-classification", "evaluation set of the run", "10shot"): 0.5,
    }


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "the run was not evaluated at step 30"),
        (["average=last:2"], "a run evaluates neither averages"),
        (["weights=ema"], "a run evaluates neither averages"),
    ],
)
def test_numbers_of_other_weights_are_not_in_the_card(run_dir: Path, arguments: list[str], why: str):
    head, card = card_of(run_dir, *arguments)
    assert f"Not measured: {why}" in card
    assert "model-index" not in head and "25.0%" not in card


def test_the_numbers_of_a_file_of_trainer_evaluate(run_dir: Path, tmp_path: Path):
    result = {"name": "photos", "checkpoint": str(checkpoint_path(run_dir, 30)), "metrics": MEASURED, "weights": "model"}
    (tmp_path / "found.json").write_text(json.dumps(result))
    head, card = card_of(run_dir, f"evaluation={tmp_path}/found.json")
    assert "| zero-shot top-1 | 25.0% | 10.0% |" in card and head["model-index"]
    with pytest.raises(UserError, match=r"is of the weights \(model\) of step-00000030, not of what is exported"):
        card_of(checkpoint_path(run_dir, 20), f"evaluation={tmp_path}/found.json")
    with pytest.raises(UserError, match=r"is of the weights \(model\) of step-00000030, not of what is exported"):
        card_of(run_dir, f"evaluation={tmp_path}/found.json", "weights=ema")
    for content in ("{", "[]", '{"metrics": {}}', '{"metrics": 1, "checkpoint": "x"}'):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(UserError, match=r"other.json is not what `python -m trainer.evaluate run=DIR to=FILE` writes"):
            card_of(run_dir, f"evaluation={tmp_path}/other.json")
    with pytest.raises(UserError, match=r"none.json is not what .*No such file"):
        card_of(run_dir, f"evaluation={tmp_path}/none.json")


def test_the_head_is_what_the_user_says_and_the_model_is(run_dir: Path):
    head, card = card_of(run_dir, "license=apache-2.0", "language=en,de", "datasets=pixparse/cc12m-wds")
    assert head["library_name"] == "limoe-trainer" and head["pipeline_tag"] == "zero-shot-image-classification"
    assert head["license"] == "apache-2.0" and head["language"] == ["en", "de"] and head["datasets"] == ["pixparse/cc12m-wds"]
    assert "mixture-of-experts" in head["tags"]
    assert "| steps | 30 |" in card and "8 experts in 1 of its 2 blocks" in card
    plain, _ = card_of(run_dir)
    assert "license" not in plain and "language" not in plain
    text, card = card_of(run_dir, "modality=text")
    assert text["pipeline_tag"] == "feature-extraction" and "embed_images" not in card


def test_the_card_names_no_place_on_this_machine(run_dir: Path):
    _, card = card_of(run_dir)
    assert "batch_size:" in card and "patch: 8" in card
    assert "/secret" not in card and str(run_dir.parent) not in card


@pytest.mark.parametrize("word", ["license=MIT", "license=a b", "language=English", "datasets=a/b/c"])
def test_a_word_that_the_hub_would_refuse(run_dir: Path, word: str):
    name, _, value = word.partition("=")
    with pytest.raises(UserError, match=rf"{name}={value}: write it as the Hugging Face Hub does, such as {name}="):
        card_of(run_dir, word)


def test_the_hubs_own_reader_finds_the_results(run_dir: Path):
    cards = pytest.importorskip("huggingface_hub.repocard", reason=MISSING)
    checkpoint = checkpoint_path(run_dir, 20)
    card_of(checkpoint, "license=mit")
    data = cards.ModelCard.load(checkpoint.parent / "out" / "README.md").data
    found = {(result.dataset_name, result.metric_name): result.metric_value for result in data.eval_results}
    assert found["animals", "zero-shot top-1"] == 0.25 and len(found) == 4
    assert (data.license, data.library_name, data.model_name) == ("mit", "limoe-trainer", "photos")


def test_config_json_alone_is_enough(run_dir: Path):
    card_of(run_dir)
    out = run_dir.parent / "out"
    expected = model.load(out).embed_texts(["a small set"])
    described = json.loads((out / ARCHITECTURE).read_text())
    assert (described["model_type"], described["torch_dtype"]) == ("limoe", "float32")
    assert described["model"]["width"] == 16
    assert "/secret" not in (out / ARCHITECTURE).read_text()
    (out / CONFIG).unlink()
    assert torch.equal(model.load(out).embed_texts(["a small set"]), expected)
    (out / ARCHITECTURE).unlink()
    with pytest.raises(UserError, match=r"no config.yaml there; give the folder"):
        model.load(out)


def test_an_export_without_config_json_loads_as_before(run_dir: Path):
    card_of(run_dir, "modality=text", "dtype=bf16")
    out = run_dir.parent / "out"
    expected = model.load(out).embed_texts(["a small set"])
    (out / ARCHITECTURE).unlink()
    (out / PREPROCESSOR).unlink()
    assert torch.equal(model.load(out).embed_texts(["a small set"]), expected)


def test_a_run_from_before_some_keys_is_described_too():
    values = {"model": asdict(shape()), "router": asdict(ROUTER), "data": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    del values["router"]["bias"]
    described = Description.of(json.loads(json.dumps(architecture(values, "float32"))))
    assert described.background == [255, 255, 255] and described.router.bias.kind == "none"


def test_the_preprocessor_prepares_images_as_we_do(run_dir: Path):
    card_of(run_dir)
    out = run_dir.parent / "out"
    asked = json.loads((out / PREPROCESSOR).read_text())
    image = picture(1, 16, 16)  # as large as the model wants it, so that only the numbers are compared
    assert asked["crop_size"] == {"height": 16, "width": 16}
    pixels = (np.asarray(image) * asked["rescale_factor"] - asked["image_mean"]) / asked["image_std"]
    torch.testing.assert_close(model.load(out).preprocess(image), torch.from_numpy(pixels).permute(2, 0, 1).float())
