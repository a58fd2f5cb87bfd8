"""Draws explore-light.png and explore-dark.png, the page of trainer.explore: `python -m docs.pictures.explore RUN`.

RUN: of experiment=short, trained. Another picture, and whose card is open: `… RUN NUMBER LAYER EXPERT`. Needs chromium.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.browser import browser

HERE = Path(__file__).parent
SIZE = (1440, 900)


def main(run: str, picture: str = "29", layer: str = "3", expert: str = "7") -> None:
    """Start the explorer, open the page in both themes, and take its picture with an expert's card open."""
    command = [sys.executable, "-m", "trainer.explore", f"run={run}", "port=0", "run.name=short"]
    with tempfile.TemporaryDirectory() as profile, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        address = next(line for line in serving.stdout if line.startswith("http")).split(" ")[0]
        with browser(Path(profile)) as page:
            for theme in ("light", "dark"):
                page.open("about:blank")
                page.open(f"{address}#picture={picture}", *SIZE, dark=theme == "dark")
                page.wait("answer !== null && running === null")
                page.click(f".experts [data-layer='{layer}'][data-expert='{expert}']")
                page.wait("!document.getElementById('expert').hidden && [...document.images].every((image) => image.complete)")
                page.value("scrollTo(0, 0)")
                time.sleep(2)  # the pictures of the card are backgrounds, of which nothing tells when they are there
                page.screenshot(HERE / f"explore-{theme}.png")
        serving.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
