"""Our evaluation of a model of open_clip says what open_clip itself says."""

import json
from pathlib import Path

import pytest

from tests.peers.environment import needs_peers, run_among_peers
from tests.trainer.data.shards_on_disk import jpeg, write_shard

CLASSES = ["frog", "cat", "dog", "bird", "ship", "truck", "horse", "deer"]


@pytest.mark.slow
@needs_peers
def test_open_clip_and_we_agree_on_a_model_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nthe {c}, on a {small} picture\n")
    # Wide, high and square ones, so large that our own models would have them decoded at half their size.
    sizes = [(200, 150), (150, 200), (160, 160), (20, 30)]
    samples = [{"jpg": jpeg(number, *sizes[number % 4]), "cls": number % len(CLASSES)} for number in range(40)]
    write_shard(folder / "test" / "0.tar", samples)
    (folder / "test" / "nshards.txt").write_text("1\n")

    told = run_among_peers("tests.peers.judged", str(tmp_path), folder=tmp_path)

    found = json.loads((tmp_path / "found.json").read_text())
    assert found["apart"] == pytest.approx(dict.fromkeys(found["apart"], 0), abs=1e-5)
    assert found["winoground"] == pytest.approx(0, abs=1e-6)
    assert 0 < found["top5"] < 1
    assert found["words"] == [80, 7, 1000]
    assert found["prompts"] == ["a photo of {c}, a type of food."]
    assert "zero-shot top-1" in told and "most often mistaken" in told
