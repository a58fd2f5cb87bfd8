import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.evaluation.test_zeroshot import CLASSES, TEMPLATES, write_folder
from trainer.config.schema import EvalConfig
from trainer.data.wording import BENCHMARK_PROMPTS, read_classes, read_prompts
from trainer.errors import UserError
from trainer.evaluation.classification_set import read_classification_set
from trainer.evaluation.wording import OWN, Wording, Wordings

OPEN_CLIP = """
OPENAI_IMAGENET_TEMPLATES = (lambda c: f'a bad photo of a {c}.', lambda c: f'the {c} in a {{frame}}.')
SIMPLE_IMAGENET_TEMPLATES = (lambda c: f'itap of a {c}.',)
IMAGENET_CLASSNAMES = ('tench', 'goldfish')
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What we read of open_clip and CLIP_benchmark, whose own import would fail."""
    for name in ("open_clip", "clip_benchmark"):
        (tmp_path / "packages" / name / "datasets").mkdir(parents=True)
    (tmp_path / "packages" / "open_clip" / "__init__.py").write_text("raise ImportError('torchvision')")
    (tmp_path / "packages" / "open_clip" / "zero_shot_metadata.py").write_text(OPEN_CLIP)
    (tmp_path / "packages" / "clip_benchmark" / "__init__.py").touch()
    (tmp_path / "packages" / "clip_benchmark" / BENCHMARK_PROMPTS).write_text(json.dumps({"pets": ["a {c}, a pet."]}))
    monkeypatch.syspath_prepend(tmp_path / "packages")
    yield
    sys.modules.pop("clip_benchmark", None)


@pytest.mark.usefixtures("packages")
def test_words_are_read_from_the_packages() -> None:
    assert read_prompts("imagenet80") == ["a bad photo of a {c}.", "the {c} in a {frame}."]
    assert read_prompts("simple") == ["itap of a {c}."]
    assert read_prompts("pets") == ["a {c}, a pet."]
    assert read_classes("imagenet") == ["tench", "goldfish"]


def test_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("a {c}\n\none {c}\n")
    (tmp_path / "names").write_text("cat\ndog\n")
    assert read_prompts(str(tmp_path / "prompts")) == ["a {c}", "one {c}"]
    assert read_classes(str(tmp_path / "names")) == ["cat", "dog"]


def test_they_replace_a_sets_own(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", attributes=None)
    (tmp_path / "prompts").write_text("a {c}\n")
    (tmp_path / "names").write_text("cat\ndog\n")
    wording = Wording(str(tmp_path / "prompts"), str(tmp_path / "names"))
    assert read_classification_set(folder, wording=Wording(prompts=wording.prompts)).classes == CLASSES
    assert read_classification_set(folder, wording=Wording(classes=wording.classes)).templates == TEMPLATES
    (folder / "classnames.txt").unlink()
    (folder / "zeroshot_classification_templates.txt").unlink()
    assert read_classification_set(folder, wording=wording).prompts() == ["a cat", "a dog"]


def test_sets_by_name() -> None:
    wordings = Wordings(EvalConfig(prompts={"pets": "simple", "food": None}, classes="imagenet"), ["default", "pets", "food"])
    assert wordings.of("default") == wordings.of("food") == Wording(None, "imagenet")
    assert wordings.of("pets") == Wording("simple", "imagenet")
    assert Wordings(EvalConfig(), ["default"]).of("default") == OWN


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        (3, "eval.prompts: 3 is neither a word nor a file"),
        ({"pets": 3}, "eval.prompts: 3 is neither a word nor a file"),
        ({"petz": "simple"}, "eval.prompts.petz: no classification set is called that (did you mean 'pets'?); there are: pets"),
    ],
)
def test_what_is_no_wording_is_one_line(prompts: object, told: str) -> None:
    with pytest.raises(UserError) as caught:
        Wordings(EvalConfig(prompts=prompts), ["pets"])
    assert str(caught.value).startswith(told)


def test_unknown_words_and_missing_packages_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])  # neither package
    for read, word, told in (
        (read_prompts, "imagenet80", 'needs open_clip_torch: pip install "limoe-trainer[open-clip]"'),
        (read_classes, "imagenet", 'needs open_clip_torch: pip install "limoe-trainer[open-clip]"'),
        (
            read_prompts,
            "imagenet8",
            "is no file and no word (did you mean 'imagenet80'?): the words are imagenet80, simple, and, ",
        ),
        (read_classes, "./names", "is no file and no word: the words are imagenet"),
    ):
        with pytest.raises(UserError) as caught:
            read(word)
        assert told in str(caught.value) and word in str(caught.value) and "\n" not in str(caught.value)
