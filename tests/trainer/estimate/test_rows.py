"""What a description tells of parts that are not trained, or not seen."""

from trainer.config.compose import compose_config
from trainer.estimate.rows import describe


def rows(*overrides: str) -> dict[str, str]:
    """Those of a model of two towers and four blocks, by what they are about."""
    return dict(describe(compose_config(["model=two_tower_tiny", *overrides]), 1))


def test_what_is_trained_and_where_no_backward_pass_goes():
    frozen = rows("train.freeze=[patches.*,towers.0.*,tokens.*,towers.1.blocks.0.*]")
    everything, trained = (int(row.partition("(")[2].partition(")")[0].replace(",", "")) for row in _two(frozen))
    assert 0 < trained < everything / 2
    assert frozen["no backward pass"] == "blocks 0 to 3 of the image tower, block 0 of the text tower"
    assert "no backward pass" not in rows("train.freeze=[towers.0.*]")
    assert not {"trained parameters", "no backward pass"} & rows().keys()


def _two(found: dict[str, str]) -> tuple[str, str]:
    return found["parameters"], found["trained parameters"]


def test_patches_that_training_does_not_see():
    assert rows()["tokens per pair"] == "64 image + 16 text"
    assert rows("train.patch_dropout=0.75")["tokens per pair"] == "64 image + 16 text; in training 16 image"
