"""Specialists and atlas from what `experts=true` left."""

import os
from pathlib import Path

import pytest

from tests.trainer.report.html.made_pages import write_whole
from trainer.report.html.experts import read_experts


def test_the_numbers_become_rows_and_heat_maps(tmp_path: Path):
    found = read_experts(write_whole(tmp_path / "photos"))
    assert found is not None
    assert found.what == "8 images and 16 texts (photos, step 40)" and found.tasks == [("zero-shot", "50.0%")]
    (layer,) = found.layers
    assert layer.title == "layer 1"
    assert [row["of"] for row in layer.specialists] == ["image", "image", "text", ""]
    assert layer.specialists[1]["words"] == ["a", "cat"]
    assert layer.specialists[0]["shares"] == {"image": ("70.0%", "0.875"), "text": ("0.0%", "0.000")}
    overall, by_class = layer.panels
    assert overall["rows"] == ["image tokens", "text tokens", "both"]
    assert by_class == {"title": "zero-shot, by class", "rows": ["<i>cat</i> 50%"], "values": [[0.2, 0.0, 0.0, 0.0]]}
    assert {theme: uri[:23] for theme, uri in layer.patches.items()} == dict.fromkeys(
        ("light", "dark"), "data:image/webp;base64,"
    )


@pytest.mark.parametrize("content", [None, "{", "[]", '{"layers": {}}'])
def test_without_them_there_are_none(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "experts").mkdir()
        (tmp_path / "experts" / "experts.json").write_text(content)
    assert read_experts(tmp_path) is None


def test_of_several_steps_the_newest_is_shown(tmp_path: Path):
    experts = write_whole(tmp_path / "photos") / "experts"
    for step, age in ((8, 50), (10, 100)):
        folder = experts / f"step-{step:08d}"
        folder.mkdir()
        numbers = (experts / "experts.json").read_text().replace("step 40", f"step {step}")
        (folder / "experts.json").write_text(numbers)
        os.utime(folder / "experts.json", (10**9 - age, 10**9 - age))
    os.utime(experts / "experts.json", (10**9 - 70, 10**9 - 70))
    found = read_experts(tmp_path / "photos")
    assert found is not None and found.what.endswith("(photos, step 8)")
