"""`python -m trainer.report RUN experts=true`: what it is asked, what it prints, the pages with their pictures and numbers."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.trainer.made_checkpoints import EXPERTS, write_run
from trainer.checkpoint.files import checkpoint_path
from trainer.errors import UserError
from trainer.evaluation.expert_samples import read_samples
from trainer.export.__main__ import export_newest
from trainer.report.__main__ import main
from trainer.report.expert_findings import find, numbers
from trainer.report.experts import folder_names, open_place, read_request


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "photos", [1])


def report(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    main()


def test_the_page_the_numbers_and_the_pictures(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("matplotlib")
    output = tmp_path / "page"
    report(monkeypatch, run_dir, "experts=true", f"output={output}", "samples=6")
    said = capsys.readouterr().out
    assert said.startswith(
        "photos, step 20, block 1\n"
        "| expert | typical words | image tokens | text tokens | zero-shot without it | retrieval without it |\n"
    )
    assert said.endswith(f"wrote {output}/experts.md\n")

    pictures = {f"layer01-{what}-{theme}.png" for what in ("specialists", "patches", "atlas") for theme in ("light", "dark")}
    assert {path.name for path in output.iterdir()} == {"experts.md", "experts.json", *pictures}
    page = (output / "experts.md").read_text()
    for name in pictures:
        assert f'"{name}"' in page
        assert (output / name).read_bytes().startswith(b"\x89PNG")

    found = json.loads((output / "experts.json").read_text())
    assert (found["name"], found["step"]) == ("photos, step 20", 20)
    layer = found["layers"]["layer01"]
    assert layer["tokens"]["image"] == layer["kept"]["image"] == 6 * 4, "samples=6 pictures of four patches"
    for modality in ("image", "text"):
        assert sum(layer["share"][modality]) == pytest.approx(1, abs=1e-5)
    assert found["tasks"]["zeroshot"]["queries"] == 6, "half of them of each class"
    assert [group["queries"] for group in found["tasks"]["zeroshot"]["groups"]["class"]] == [3, 3]
    for costs in layer["costs"].values():
        assert {len(of_expert) for of_expert in costs["overall"].values()} == {EXPERTS}
    for shown in layer["patches"]:
        assert all(0 <= patch["row"] < 2 and 0 <= patch["column"] < 2 and "/00000" in patch["image"] for patch in shown)


def test_in_the_directory_of_a_run_they_join_its_page(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("matplotlib")
    pytest.importorskip("plotly")
    shutil.copyfile(checkpoint_path(run_dir, 20) / "config.yaml", run_dir / "config.yaml")
    (run_dir / "metrics.jsonl").write_text('{"step": 20, "train/loss": 1.0}\n')
    report(monkeypatch, run_dir, "experts=true", f"output={run_dir / 'experts'}", "samples=4", "atlas=false")
    assert capsys.readouterr().out.endswith(f"wrote {run_dir / 'report.html'}\n")
    page = (run_dir / "report.html").read_text()
    assert "What each expert takes of 4 images and 4 texts (photos, step 20)" in page and "data:image/webp" in page


def test_an_export_says_the_same_as_its_run(run_dir: Path):
    export_newest([f"run={run_dir}"])
    found = []
    for place in (run_dir, run_dir / "export"):
        request = read_request([str(place), "experts=true"])
        trained = open_place(request.places[0], request)
        found.append(numbers(find(trained, read_samples(trained.config, 512), with_atlas=True)))
    assert [of_place["name"] for of_place in found] == ["photos, step 20", "photos: weights of step 20"]
    for part in ("layers", "tasks", "shown_with"):
        assert found[0][part] == found[1][part]


def test_each_checkpoint_has_a_page_and_one_shows_all(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("matplotlib")
    # Drawn, but not rendered, which takes most of the time.
    monkeypatch.setattr("trainer.report.expert_pictures.save", lambda figure, path, theme: path.touch())
    report(monkeypatch, run_dir, "experts=all", f"output={tmp_path / 'page'}", "samples=4")
    page = (tmp_path / "page" / "experts.md").read_text()
    for step in ("step-00000010", "step-00000020"):
        assert f"({step}/experts.md)" in page
        assert (tmp_path / "page" / step / "experts.json").is_file()
    assert (tmp_path / "page" / "layer01-over-steps-dark.png").is_file() and "layer01-over-steps-dark.png" in page


def test_without_the_atlas_nothing_is_knocked_out(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("trainer.evaluation.atlas.Embedded.__init__", lambda *given: pytest.fail("no atlas was asked for"))
    report(monkeypatch, run_dir, "experts=true", "atlas=false")
    assert capsys.readouterr().out.splitlines()[1] == "| expert | typical words | image tokens | text tokens |"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["experts=true"], "runs=DIR,DIR is missing"),
        (["RUN", "experts=yes"], "experts=yes: choose true or all"),
        (["RUN", "experts=true", "samples=1"], "samples=1 must be a number of images, at least 2"),
        (["RUN", "experts=true", "sampels=9"], "(did you mean 'samples'?)"),
        (["/nowhere", "experts=true"], "run=/nowhere: no complete checkpoint there"),
        (["RUN", "experts=true", "weights=ema"], "weights=ema: "),
        (["RUN", "experts=true", "model.heads=2"], "model.heads"),
        (["RUN", "experts=true", "eval.zeroshot=/nowhere"], "/nowhere is not a folder"),
        (["RUN", "experts=true", "data.val=null", "eval.zeroshot=null"], "nothing to look at the experts with: set data.val"),
    ],
)
def test_a_mistake_is_one_line(
    run_dir: Path, arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as left:
        report(monkeypatch, *(argument.replace("RUN", str(run_dir)) for argument in arguments))
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert told in said and said.count("\n") == 1


def test_a_dense_model_has_none(tmp_path: Path):
    place = checkpoint_path(write_run(tmp_path / "dense", [], steps=(5,)), 5)
    with pytest.raises(UserError, match="photos, step 5: limoe_tiny has no expert layers"):
        open_place(place, read_request([str(place), "experts=true"]))


def test_the_three_ways_to_write_a_key_and_several_places(run_dir: Path):
    first, second = (str(checkpoint_path(run_dir, step)) for step in (10, 20))
    for arguments in (
        [first, second, "--experts", "true", "--samples", "9"],
        [f"runs={first},{second}", "--experts=true", "samples=9"],
    ):
        request = read_request(arguments)
        assert ([str(place) for place in request.places], request.samples) == ([first, second], 9)


def test_places_of_one_name_get_folders_of_their_own():
    assert folder_names([Path("a/checkpoints/step-00000020")]) == ["."]
    assert folder_names([Path("a/step-00000010"), Path("a/step-00000020")]) == ["step-00000010", "step-00000020"]
    assert folder_names([Path("a/export"), Path("b/export")]) == ["1-export", "2-export"]


def test_without_matplotlib_the_extra_is_named(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "limoe-trainer\[report\]"; or leave out output='):
        read_request([str(run_dir), "experts=true", "output=x"])
