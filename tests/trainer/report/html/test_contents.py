"""What stands on the page, before it is HTML."""

from pathlib import Path

import pytest

from tests.trainer.report.html.made_pages import routed_rows, write_many, write_whole
from tests.trainer.report.made_runs import rising, write_run
from trainer.report.html.contents import contents_of
from trainer.report.runs import read_run, read_runs


def test_one_run_has_its_figures_its_evaluation_and_every_curve(tmp_path: Path):
    contents = contents_of([read_run(write_whole(tmp_path / "photos"))])
    assert (contents.title, contents.subtitle) == ("photos", "step 40 of 40")
    assert contents.notes == []
    figures = {what: value for what, value, _ in contents.figures}
    assert figures["routing success, text"] == "75.6%" and figures["zero-shot top-1"] == "60.0%"
    assert contents.evaluation is not None
    assert contents.evaluation.rows == [["zero-shot top-1", "60.0%", "60.0% at step 40", "10.0%", "eval/zeroshot/top1"]]
    assert contents.results is contents.differing is contents.runs is None
    assert ["router.priority", "gate"] in contents.configuration.rows
    panels = {panel["title"]: panel for section in contents.drawn["sections"] for panel in section["panels"]}
    assert panels["Text: success by layer"]["names"] == ["layer 1", "layer 3"] and panels["Text: success by layer"]["share"]
    assert panels["Routing success, by modality"]["names"] == ["image", "text"]
    assert contents.drawn["chance"] == {"eval/zeroshot/top1": pytest.approx(0.1)}
    assert contents.drawn["loads"][0]["steps"] == list(range(1, 41))
    assert list(contents.experts) == ["photos"]


def test_many_runs_are_laid_over_each_other_by_what_differs(tmp_path: Path):
    contents = contents_of(read_runs([write_many(tmp_path / "many")]))
    assert (contents.title, contents.subtitle) == ("20 runs", "10 settings")
    assert contents.drawn["groups"][:2] == ["load=0.3", "load=0"], "in the order of the folders"
    assert contents.results is not None and contents.differing is not None
    by_setting = {row[0]: row for row in contents.results.rows}
    assert by_setting["load=0.9"][:2] == ["load=0.9", "2"]
    column = contents.results.header.index("zero-shot top-1,\N{NO-BREAK SPACE}%")
    assert by_setting["load=0.9"][column] == "78.0 ± 0.0" and by_setting["load=0.2"][column] == ""
    best = [row for row, of_column in contents.results.marks if of_column == column]
    assert [contents.results.rows[row][0] for row in best] == ["load=0.9"]
    assert [row[0] for row in contents.differing.rows] == ["router.aux.load"]
    assert sorted(contents.drawn["loads"]) == [16, 17, 18, 19]
    unfinished, broken = contents.notes
    assert unfinished == ("Not finished when this page was written: run-1-0 (step 14 of 40), run-1-1 (step 14 of 40).")
    assert broken == "The loss was not finite in run-0-0 (step 20), run-0-1 (step 20); curves have a gap there."


def test_two_metrics_of_many_runs_stand_side_by_side_and_more_are_chosen_from(tmp_path: Path):
    runs = [read_run(write_run(tmp_path / str(load), routed_rows(), steps=40, load=load)) for load in (0.0, 1.0)]
    panels = {panel["title"]: panel["metrics"] for section in contents_of(runs).drawn["sections"] for panel in section["panels"]}
    assert panels["Routing success, by modality: text"] == ["routing/success/text"]
    assert panels["Text: success by layer: layer 1"] == ["routing/layer01/success/text"]


def test_a_setting_that_differs_in_too_much_has_the_name_of_its_runs(tmp_path: Path):
    runs = [read_run(write_run(tmp_path / name, rising(1.0, 0.5))) for name in ("a", "b")]
    runs[1].settings |= {f"some.long.key_{number}": number for number in range(20)}
    contents = contents_of(runs)
    assert contents.drawn["groups"] == ["a", "b"]
    assert contents.differing is not None and contents.differing.rows[0] == ["some.long.key_0", "–", "0"]


@pytest.mark.parametrize(
    ("rows", "notes"),
    [
        ([], ["Not finished: at step 0 of 4 when this page was written.", "Nothing has been recorded yet."]),
        ([{"step": 1, "train/loss": 2.0}], ["Not finished: at step 1 of 4 when this page was written."]),
        (
            [{"step": step, "train/loss": None} for step in (3, 4)],
            ["The loss was not finite at 2 recorded steps, first 3; curves have a gap there."],
        ),
        ([{"step": 4, "eval/zeroshot/top1": None, "eval/zeroshot/top1_chance": 0.1}], []),
    ],
)
def test_a_run_with_little_to_show_is_shown(tmp_path: Path, rows: list[dict[str, float | None]], notes: list[str]):
    contents = contents_of([read_run(write_run(tmp_path / "run", rows))])
    assert contents.notes == notes and contents.evaluation is None


def test_a_long_run_says_that_it_is_thinned(tmp_path: Path):
    rows = [{"step": step, "train/loss": 1.0 / step} for step in range(1, 5001)]
    contents = contents_of([read_run(write_run(tmp_path / "run", rows, steps=5000))])
    assert contents.notes == [
        "Curves of more than 1,000 points are thinned: the lowest and the highest of each stretch are drawn. "
        "Tables are of all points."
    ]
    assert len(contents.drawn["curves"]["train/loss"][0]["y"]) <= 1000
