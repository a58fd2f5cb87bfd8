"""A run that starts from a model of open_clip computes what open_clip does."""

import json
from pathlib import Path

import pytest

from tests.peers.environment import needs_peers, run_among_peers


@pytest.mark.slow
@needs_peers
def test_models_of_open_clip_are_the_same_function_here(tmp_path: Path) -> None:
    run_among_peers("tests.peers.outside", str(tmp_path), folder=tmp_path)

    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["apart"]) == {
        *("clip", "openai", "custom_text", "siglip", "siglip2"),
        "clip of transformers",
        "siglip of transformers",
    }
    for name, apart in found["apart"].items():
        assert apart == pytest.approx(dict.fromkeys(("images", "texts", "scale"), 0), abs=1e-5), name
    assert found["tokens"] == []
    assert found["decoded"] == "a photo of 2 cats"
    assert found["pieces"] == ["▁", "▁A", "▁photo", "▁of", "▁cats", "'"]
    assert found["words"] == ["", "a", "photo", "photo", "cats"]
    assert found["counts"] == [7, 2]
    assert found["siglip"] == ["▁A", "▁photo", "▁of", "▁a", "cat", "its", "▁Snake"], "canonical: lower case, no punctuation"
