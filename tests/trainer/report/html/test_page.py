"""report.html in a real browser: everything is drawn, whatever the light, the window and the paper."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser, browser, needs_browser
from tests.trainer.report.html.made_pages import LAYERS, MODALITIES, write_many, write_whole
from tests.trainer.report.made_runs import rising, write_run
from trainer.report.html.write import write_page
from trainer.report.runs import read_runs

pytestmark = [pytest.mark.slow, needs_browser]
pytest.importorskip("plotly")
READY = "document.documentElement.dataset.ready === 'true'"
DRAWN = "[...document.querySelectorAll('.plot')].every((plot) => Number(plot.dataset.drawn) > 0)"
SCROLL = """(async () => {
  for (let y = 0; y < document.documentElement.scrollHeight; y += innerHeight) {
    scrollTo(0, y);
    await new Promise((done) => setTimeout(done, 30));
  }
})()"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run, many, and one that has hardly begun and knows no experts and no evaluation."""
    folder = tmp_path_factory.mktemp("pages")
    dense = write_run(folder / "dense", [row for row in rising(0.5, 0.1) if "eval/zeroshot/top1" not in row][:1], steps=99)
    made = {"whole": write_whole(folder / "whole"), "many": write_many(folder / "many"), "dense": dense}
    for name, place in made.items():
        write_page(read_runs([place]), folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser; no page may have made an error in it."""
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
        assert opened.errors == []


def open_page(window: Browser, page: Path, **how: object) -> None:
    window.open(page.as_uri(), **how)  # type: ignore[arg-type]
    window.wait(READY)


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [("whole", 1280, False), ("whole", 360, True), ("many", 1280, True), ("many", 360, False), ("dense", 360, False)],
)
def test_every_plot_is_drawn_in_any_light_and_nothing_sticks_out(
    window: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
):
    open_page(window, pages[name], width=width, dark=dark)
    window.value(SCROLL)
    assert window.wait(DRAWN)
    assert window.value("document.querySelectorAll('.plot svg.main-svg').length") > 0
    assert window.value("document.documentElement.scrollWidth") <= width
    assert window.value("getComputedStyle(document.body).backgroundColor") == (
        "rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)"
    )
    assert window.value("document.querySelectorAll('script, link, img').length") < 10
    assert window.value("performance.getEntriesByType('resource').filter((it) => !it.name.startsWith('data:')).length") == 0


def test_the_slider_moves_all_heat_maps_to_its_step(window: Browser, pages: dict[str, Path]):
    open_page(window, pages["whole"])
    window.value("document.getElementById('loads').scrollIntoView()")
    moments = "[...document.querySelectorAll('#loads-moments .plot')]"
    window.wait(f"{moments}.length === {len(LAYERS)} && {moments}.every((plot) => plot.dataset.drawn)")
    histories = window.value("document.querySelectorAll('#loads-histories .plot').length")
    assert histories == len(LAYERS) * len(MODALITIES)
    shown = f"{moments}.map((plot) => plot.data[0].customdata[0][0])"
    assert window.value(shown) == [1.0, 1.0], "it opens at the last step"
    assert window.value("document.getElementById('loads-said').innerText") == "step 40"
    window.value("document.getElementById('loads-step').focus()")
    window.press("ArrowLeft")
    window.wait("document.getElementById('loads-said').innerText === 'step 39'")
    assert window.wait(f"{shown}.every((load) => load > 1) && {shown}") == [pytest.approx(1.08)] * 2
    mark = "document.querySelector('#loads-histories .plot').layout.shapes[0].x0"
    assert window.wait(f"{mark} === 39")


def test_it_plays_from_the_beginning_to_the_end(window: Browser, pages: dict[str, Path]):
    open_page(window, pages["whole"])
    window.click("#loads-play")
    window.wait("document.getElementById('loads-said').innerText === 'step 3'")
    window.click("#loads-play")
    assert window.value("document.getElementById('loads-play').ariaLabel") == "Play"


def test_settings_can_be_hidden_and_runs_shown_one_by_one(window: Browser, pages: dict[str, Path]):
    open_page(window, pages["many"])
    panel = "document.getElementById('loss-and-success-0')"
    window.wait(f"{panel}.dataset.drawn")
    names = f"{panel}.data.map((trace) => trace.name).filter(Boolean)"
    assert len(window.value(names)) == 10, "a mean for each setting"
    window.click("#settings label:nth-child(2)")
    assert window.wait(f"{names}.length === 9")
    window.click("#each")
    assert window.wait(f"{names}.length === 18")
    window.click("#settings label:nth-child(2)")
    spoilt = f"{panel}.data.find((trace) => trace.name.includes('run-0-0'))"
    assert window.wait(f"{spoilt} && {spoilt}.y.length") == 40


def test_a_name_like_html_is_only_a_name(window: Browser, pages: dict[str, Path]):
    open_page(window, pages["many"])
    assert "<script>alert(0)" in window.value("document.querySelector('#runs tbody').textContent")
    assert window.value("document.querySelectorAll('td img, label img, u').length") == 0
    open_page(window, pages["whole"])
    assert "<b>bold</b>" in window.value("document.querySelector('.specialists').innerText")
    window.value(SCROLL)
    window.wait(DRAWN)
    ticks = "[...document.querySelectorAll('.atlas text')].map((text) => text.textContent)"
    assert "<i>cat</i> 50%" in window.value(ticks)


def test_the_page_follows_the_light_while_it_is_open(window: Browser, pages: dict[str, Path]):
    open_page(window, pages["whole"])
    ink = "document.querySelector('.plot').layout.font.color"
    window.wait("document.querySelector('.plot').dataset.drawn")
    assert window.value(ink) == "#1f2328"
    window.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert window.wait(f"{ink} === '#f0f6fc'")


def test_on_paper_everything_is_there_in_the_light(window: Browser, pages: dict[str, Path]):
    open_page(window, pages["whole"], dark=True)
    window.value("addEventListener('afterprint', () => { window.printed = true; })")
    window.value(
        "addEventListener('beforeprint', () => { window.onPaper = ["
        f"{DRAWN}, document.querySelector('.plot').layout.font.color]; }})"
    )
    assert len(window.send("Page.printToPDF", printBackground=True)["data"]) > 50_000
    assert window.value("window.onPaper") == [True, "#1f2328"]
    assert window.wait("window.printed && document.querySelector('.plot').layout.font.color === '#f0f6fc'")
