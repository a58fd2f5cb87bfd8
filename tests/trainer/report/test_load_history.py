"""The load of every expert over a run: the moments that a picture shows, and the picture."""

import json
from pathlib import Path

import pytest

from trainer.report.load_history import MOMENTS, LoadsOverTime, read_loads


def write(path: Path, rows: int, torn: str = "") -> Path:
    lines = [
        json.dumps({"step": 10 * row, "layer03": {"image": [1.0, 1.0], "text": [float(row), 2.0 - row]}}) for row in range(rows)
    ]
    path.write_text("\n".join(lines) + "\n" + torn)
    return path


def test_each_record_is_a_moment_while_there_is_room(tmp_path: Path):
    found = read_loads(write(tmp_path / "loads.jsonl", 3, torn='{"step": 30, "lay'))
    assert found == LoadsOverTime(0, 20, {"layer03": {"image": [[1.0, 1.0]] * 3, "text": [[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]]}})


def test_what_a_resumed_run_did_again_is_a_moment_once(tmp_path: Path):
    path = write(tmp_path / "loads.jsonl", 3)
    path.write_text(path.read_text() + json.dumps({"step": 10, "layer03": {"image": [1.0, 1.0], "text": [0.5, 1.5]}}) + "\n")
    found = read_loads(path)
    assert found == LoadsOverTime(0, 10, {"layer03": {"image": [[1.0, 1.0]] * 2, "text": [[0.0, 2.0], [0.5, 1.5]]}})


def test_a_long_run_is_shown_in_means(tmp_path: Path):
    found = read_loads(write(tmp_path / "loads.jsonl", 2 * MOMENTS + 1))
    assert found is not None and found.last == 20 * MOMENTS
    text = found.layers["layer03"]["text"]
    assert len(text) <= MOMENTS
    assert text[0] == [1.0, 1.0], "of the records 0, 1 and 2"
    assert text[-1][0] == pytest.approx(2 * MOMENTS - 0.5), "of those that are left"


def test_a_run_without_records_has_no_picture(tmp_path: Path):
    assert read_loads(write(tmp_path / "loads.jsonl", 0)) is None


def test_the_picture_has_a_row_an_expert_and_a_map_a_modality():
    pytest.importorskip("matplotlib")
    from trainer.report.load_picture import picture_of_load
    from trainer.report.theme import THEMES

    loads = LoadsOverTime(5, 20, {"layer03": {"image": [[1.0, 1.0, 1.0]] * 4, "text": [[0.0, 1.0, 2.0]] * 4}})
    figure = picture_of_load("block 3", loads, "layer03", THEMES["light"])
    maps = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in maps] == ["image tokens", "text tokens"]
    assert maps[1].images[0].get_array().tolist() == [[0.0] * 4, [1.0] * 4, [2.0] * 4]
    assert maps[1].images[0].get_extent() == [5, 20, 2.5, -0.5]
