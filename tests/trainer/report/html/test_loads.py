"""loads.jsonl, read for the heat maps."""

import itertools
import json
from pathlib import Path

from trainer.report.html import loads
from trainer.report.html.loads import read_loads


def write(folder: Path, steps: list[int], experts: int = 2, torn: str = "") -> Path:
    folder.mkdir()
    rows = [
        {"step": step, "layer01": {name: [step / 3, None, *[1.0] * (experts - 2)] for name in ("image", "text")}}
        for step in steps
    ]
    (folder / "loads.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    return folder


def test_every_moment_of_a_short_run_is_shown(tmp_path: Path):
    found = read_loads([write(tmp_path / "run", [1, 2])])
    assert found == {
        0: {"steps": [1, 2], "every": 2, "layers": {"layer01": {key: [[0.33, None], [0.67, None]] for key in ("image", "text")}}}
    }


def test_only_runs_with_experts_have_any(tmp_path: Path):
    (tmp_path / "dense").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "loads.jsonl").write_text("")
    folders = [tmp_path / "dense", tmp_path / "begun", write(tmp_path / "run", [1])]
    assert list(read_loads(folders)) == [2]


def test_of_a_long_run_moments_are_spread_evenly_from_the_first_to_the_last(tmp_path: Path):
    steps = read_loads([write(tmp_path / "run", list(range(1, 5001)))])[0]["steps"]
    assert (steps[0], steps[-1]) == (1, 5000) and len(steps) <= loads.MOST_MOMENTS + 1
    distances = [after - before for before, after in itertools.pairwise(steps)]
    assert max(distances) < 2 * 5000 / loads.MOST_MOMENTS


def test_many_experts_have_fewer_moments_each(tmp_path: Path):
    found = read_loads([write(tmp_path / str(run), list(range(200)), experts=512) for run in range(3)])
    assert all(loads.LEAST_MOMENTS <= len(of_run["steps"]) < 120 for of_run in found.values())


def test_a_line_that_was_cut_off_and_steps_done_again_are_left_out(tmp_path: Path):
    found = read_loads([write(tmp_path / "run", [1, 2, 3, 2, 3, 4], torn='{"step": 5, "layer01": {"im')])
    assert found[0]["steps"] == [1, 2, 3, 4]
