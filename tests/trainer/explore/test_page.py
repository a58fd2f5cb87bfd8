"""The whole command as a user meets it: started, opened in a real browser, ended with Ctrl-C."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.browser import Browser, browser, needs_browser
from tests.trainer.data.shards_on_disk import jpeg
from tests.trainer.made_checkpoints import write_run
from trainer.explore.server import MOST_BYTES

ROOT = Path(__file__).parents[3]
pytestmark = [pytest.mark.slow, needs_browser]
SHOWN = "answer !== null && running === null && !document.getElementById('answer').hidden"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page of a small run; at the end it must have made no error, and the command must leave as one that was ended."""
    folder = tmp_path_factory.mktemp("explore")
    run = write_run(folder / "photos", [0, 1], steps=(10,))
    command = [sys.executable, "-m", "trainer.explore", f"run={run}", "port=0", f"data.cache={folder / 'cache'}"]
    # A shell lets what it starts in the background, these tests too, ignore Ctrl-C.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    serving = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)
    assert serving.stdout is not None
    try:
        told = [serving.stdout.readline() for _ in range(3)]
        address = told[2].split(" ")[0]
        assert address.startswith("http://127.0.0.1:"), told
        with browser(folder / "profile") as opened:
            opened.open(address)
            opened.wait(SHOWN)
            yield opened
            assert opened.errors == []
        serving.send_signal(signal.SIGINT)
        _, errors = serving.communicate(timeout=60)
        assert (serving.returncode, errors) == (0, "")
    finally:
        serving.kill()
        serving.wait()


def colours(page: Browser, selector: str) -> list[str]:
    """The colours that the browser shows elements with, of themselves or of what lies on them."""
    return page.value(
        f"[...document.querySelectorAll({selector!r})].map((element) => "
        "[getComputedStyle(element), getComputedStyle(element, '::before')].map((style) => style.backgroundColor)"
        ".find((colour) => colour !== 'rgba(0, 0, 0, 0)'))"
    )


def test_it_opens_with_a_picture_and_its_patches_in_the_colours_of_their_experts(page: Browser):
    assert page.value("document.title") == "photos, step 10 – explorer"
    assert page.value("document.querySelectorAll('.layer').length") == 2
    patches = colours(page, ".layer:first-child .patches .token")
    experts = page.value("[...document.querySelectorAll('.layer:first-child .patches .token')].map((token) => token.innerText)")
    assert len(patches) == 4 and set(experts) <= {"0", "1"}
    legend = colours(page, ".layer:first-child .experts .chip")
    assert patches == [legend[int(expert)] for expert in experts] and len(set(legend)) == 2


def test_words_find_pictures_and_show_the_expert_and_gate_of_every_token(page: Browser):
    page.click("#words")
    page.value("document.getElementById('words').value = ''")
    page.type("a small <b>set</b>")
    page.press("Enter")
    page.wait(f"{SHOWN} && answer.kind === 'text'")
    assert page.value("document.querySelector('#asked q').innerText") == "a small <b>set</b>", "text, not HTML"
    page.wait("[...document.querySelectorAll('#pictures img')].every((image) => image.complete && image.naturalWidth === 16)")
    cosines = page.value("[...document.querySelectorAll('#pictures .number')].map((number) => Number(number.innerText))")
    assert len(cosines) == 8 and cosines == sorted(cosines, reverse=True)
    words = page.value("[...document.querySelectorAll('.layer:first-child .word')].map((word) => word.innerText)")
    assert "".join(words).replace("␣", "") == "asmall<b>set</b>end"
    bars = page.value("[...document.querySelectorAll('.layer:first-child .bar')].map((bar) => bar.innerText)")
    assert len(bars) == len(words) and all(bar[0] in "01" and "·" in bar for bar in bars)
    assert all(colours(page, ".layer:first-child .bar"))


def test_a_click_on_a_token_opens_its_expert_and_escape_returns_to_it(page: Browser):
    page.value("document.querySelector('.layer:last-child .token').dataset.mine = 'yes'")
    expert = page.value("document.querySelector('[data-mine]').dataset.experts")
    page.click("[data-mine]")
    page.wait("!document.getElementById('expert').hidden")
    assert page.value("document.getElementById('expert-title').innerText").endswith(f"Expert {expert} of block 1")
    assert page.value("document.querySelectorAll('#card .crop, #card tbody tr').length") > 0
    assert page.value("document.querySelector('[data-mine]').classList.contains('of-expert')")
    page.press("Escape")
    page.wait("document.getElementById('expert').hidden")
    assert page.value("document.activeElement.dataset.mine") == "yes"
    page.press("ArrowRight")
    assert page.value("document.activeElement === document.querySelector('[data-mine]').nextSibling"), "arrows move on"


def test_slots_as_in_training_leave_tokens_out_and_say_so(page: Browser):
    page.click("[name=slots][value=training]")
    page.wait(f"{SHOWN} && document.getElementById('told').innerText.startsWith('Routed in a batch with 7 other pairs')")
    page.click("[name=slots][value=evaluation]")
    page.wait(f"{SHOWN} && document.getElementById('told').innerText.startsWith('In evaluation every token')")


def test_a_file_a_neighbour_and_the_way_back(page: Browser, tmp_path: Path):
    (tmp_path / "mine.jpg").write_bytes(jpeg(3))
    page.give_file("#file", tmp_path / "mine.jpg")
    page.wait(f"{SHOWN} && answer.kind === 'image' && answer.number === undefined")
    page.click("#pictures button:nth-child(2)")
    page.wait(f"{SHOWN} && answer.number !== undefined")
    number = page.value("answer.number")
    page.click("#texts button")
    page.wait(f"{SHOWN} && answer.kind === 'text'")
    page.value("history.back()")
    page.wait(f"{SHOWN} && answer.number === {number}")
    (tmp_path / "none.jpg").write_bytes(b"no picture")
    page.give_file("#file", tmp_path / "none.jpg")
    page.wait("document.getElementById('status').innerText.startsWith('image cannot be decoded')")
    # The browser itself notes the refusal.
    assert "400" in page.errors.pop()
    with (tmp_path / "large.jpg").open("wb") as large:
        large.truncate(MOST_BYTES + 1)
    page.give_file("#file", tmp_path / "large.jpg")
    page.wait("document.getElementById('status').innerText === 'too large: at most 32 MiB'")


def test_nothing_sticks_out_on_a_phone(page: Browser):
    page.send("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
    for kind in ("#picture=1", "#words=a%20small%20set"):
        page.value(f"location.hash = {kind!r}")
        page.wait(f"{SHOWN} && location.hash.startsWith(answer.kind === 'text' ? '#words' : '#picture')")
        page.click(".experts button")
        page.wait("!document.getElementById('expert').hidden")
        assert page.value("document.documentElement.scrollWidth") <= 360
        page.press("Escape")
