"""docs/configuration.md says what the schema and conf/ do."""

from trainer.config.compose import CONF, GROUPS
from trainer.config.document import document
from trainer.config.keys import KEYS

PAGE = CONF.parent / "docs" / "configuration.md"


def test_the_page_is_what_the_schema_says_today():
    assert PAGE.read_text() == document(), "docs/configuration.md is stale: make docs"


def test_every_key_and_every_choice_is_there_once():
    page = document()
    for name in KEYS:
        assert page.count(f"| `{name}` |") >= 1, name
    for group in GROUPS:
        for path in (CONF / group).glob("*.yaml"):
            assert f"- `{path.stem}`: " in page, path


def test_a_row_says_type_default_allowed_values_and_what_a_checkpoint_keeps():
    page = document()
    assert "| `train.ema` | float or null | `null` | above 0 and below 1 | decay per step" in page
    assert "| `log.wandb` | text | `auto` | `auto` · `online` · `offline` · `disabled` |" in page
    assert "| `model.heads` | int | `4` | at least 1 | attention heads *(model)* |" in page
    assert "| `data.crop_scale` | list of float | `[0.6, 1]` | two numbers, the smaller one first, each above 0" in page


def test_a_group_says_what_each_choice_sets():
    page = document()
    assert "| `schedule.cooldown_steps` |" in page
    assert "| `cooldown_steps` | — | `10000` |" in page
    assert "`model=limoe_tiny`, `router=limoe`, `data=shapes`, `schedule=cosine`" in page
    assert all(len(set(map(lambda line: line.count(" | "), block))) == 1 for block in tables(page))  # noqa: C417


def tables(page: str) -> list[list[str]]:
    """The lines of each table."""
    blocks = [[line for line in block.splitlines() if line.startswith("|")] for block in page.split("\n\n")]
    return [block for block in blocks if block]
