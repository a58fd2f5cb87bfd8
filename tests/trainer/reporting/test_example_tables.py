"""Tables of examples as a page, and in W&B."""

import base64
import io
import re
from pathlib import Path

import torch
from PIL import Image

from trainer.reporting.example_tables import ExampleTable, write_page
from trainer.reporting.wandb_media import wandb_tables

RED = torch.zeros(3, 300, 200, dtype=torch.uint8)
RED[0] = 255
TABLE = ExampleTable(
    ["image", "truth", "cosine", "place"], [[RED, "a <b> & c", 0.12345, 3], [RED, "plain", 1.0, 1]], [False, True]
)


def test_the_page_stands_alone_and_says_what_was_right(tmp_path: Path):
    path = tmp_path / "predictions" / "step-00000007.html"
    write_page("demo, step 7", {"zeroshot": TABLE}, path)
    page = path.read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', page), "nothing from elsewhere"
    assert "<h2>zeroshot</h2>" in page and "1 of 2 right" in page
    assert page.count('<tr class="miss">') == 1
    assert "a &lt;b&gt; &amp; c" in page and ">0.123<" in page and ">3<" in page
    shown = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", page)]
    assert [picture.size for picture in shown] == [(85, 128)] * 2
    assert shown[0].getpixel((40, 60))[0] > 250


def test_text_that_is_no_text_does_not_stop_it(tmp_path: Path):
    table = ExampleTable(["image"], [["\ud800 torn"]], [True])
    write_page("torn \ud800", {"zeroshot": table}, tmp_path / "page.html")
    assert "torn" in (tmp_path / "page.html").read_text()


def test_wandb_gets_the_pictures_and_a_column_for_what_was_right():
    (table,) = wandb_tables({"zeroshot": TABLE}).values()
    assert table.columns == ["right", *TABLE.columns]
    assert [row[0] for row in table.data] == [False, True]
    assert table.data[0][1].image.size == (200, 300)
    assert table.data[0][2:] == ["a <b> & c", 0.12345, 3]
