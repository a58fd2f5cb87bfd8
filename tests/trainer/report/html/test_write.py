"""The file itself, and how a run leaves it."""

import re
from pathlib import Path

import pytest

from tests.trainer.report.html.made_pages import write_many, write_whole
from trainer.errors import UserError
from trainer.report.html.write import page, write_after_training, write_page
from trainer.report.runs import read_run, read_runs

pytest.importorskip("plotly")


def test_it_is_one_file_that_needs_no_other(tmp_path: Path):
    text = page([read_run(write_whole(tmp_path / "photos"))])
    assert len(text) < 3_000_000
    without_data = re.sub(r"<script type=\"application/gzip;base64\".*?</script>", "", text)
    assert not re.findall(r"(?:src|srcset|href)=\"(?!data:|#)[^\"]*\"", without_data)
    assert "http" not in without_data


def test_names_are_text(tmp_path: Path):
    text = page(read_runs([write_many(tmp_path / "many")]), title="<b>mine</b>")
    assert "<script>alert" not in text and "<b>mine" not in text and "<u>" not in text
    assert "&lt;b&gt;mine&lt;/b&gt;" in text


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the page cannot be written to .*file/report.html \(.*\): choose another output"):
        write_page([read_run(write_whole(tmp_path / "photos"))], tmp_path / "file" / "report.html")


def test_a_run_leaves_its_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_dir = write_whole(tmp_path / "photos")
    write_after_training(run_dir)
    assert (run_dir / "report.html").read_text().startswith("<!doctype html>")
    assert str(run_dir / "report.html") in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["plotly", "jinja2"])
def test_without_the_extra_a_run_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else object())
    write_after_training(tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert said == ["no page about the run", f'  report.html needs {missing}: pip install "limoe-trainer[report]"']


def test_a_run_whose_metrics_cannot_be_read_ends_well_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_after_training(tmp_path / "nowhere")
    (said,) = caplog.messages
    assert said.startswith("no page about this run")
