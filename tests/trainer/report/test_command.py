"""`python -m trainer.report`: what it is asked, what it prints, and the page with its plots."""

import sys
from pathlib import Path

import pytest

from tests.trainer.report.made_runs import rising, write_run
from trainer.errors import UserError
from trainer.report.__main__ import main, read_arguments, write_report


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two values of a loss's weight, two seeds each, and a run that has not come to its end."""
    for load, last in ((0.0, 0.5), (1.0, 0.9)):
        for seed in (0, 1):
            write_run(tmp_path / f"load-{load}-{seed}", rising(last, 0.4 + 0.1 * seed), seed=seed, load=load)
    write_run(tmp_path / "unfinished", rising(1.0, 0.5), steps=9)
    return tmp_path


def test_the_table_is_of_finished_runs_and_the_others_are_named(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("plotly")
    monkeypatch.setattr(sys, "argv", ["report", str(sweep)])
    main()
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "| load | n | routing/success/text | eval/zeroshot/top1 |",
        "| --- | ---: | ---: | ---: |",
        "| 0 | 2 | 0.312 ± 0.000 | 0.450 ± 0.071 |",
        "| 1 | 2 | 0.562 ± 0.000 | 0.450 ± 0.071 |",
        "",
        f"wrote {sweep / 'report.html'}",
    ]
    assert said.err == f"WARNING: {sweep / 'unfinished'} is left out of the table: it is only at step 4 of 9\n"


def test_the_page_has_the_table_the_plots_every_run_and_the_command(sweep: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("plotly")
    output = sweep / "page"
    monkeypatch.setattr(
        sys, "argv", ["report", *map(str, sorted(sweep.glob("load-*"))), f"output={output}", "against=router.aux.load"]
    )
    main()
    page = (output / "results.md").read_text()
    for part in (
        "± standard deviation over 2 runs",
        "| 0 | 2 | 0.312",
        "| load-1.0-1 | load=1 | 1 | 4 |",
        "against=router.aux.load",
    ):
        assert part in page
    for plot in ("curves.png", "against.png"):
        assert f"]({plot})" in page
        assert (output / plot).read_bytes().startswith(b"\x89PNG")


def test_results_can_be_plotted_against_a_metric(sweep: Path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("plotly")
    runs = sorted(map(str, sweep.glob("load-*")))
    arguments = [*runs, f"output={sweep / 'page'}", "against=routing/success/text"]
    write_report(read_arguments(arguments), arguments, sweep / "page")
    assert (sweep / "page" / "against.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "runs=DIR,DIR is missing"),
        (["SWEEP", "metrics=eval/zeroshot/top"], "no run has recorded this metric (did you mean 'eval/zeroshot/top1'?)"),
        (["SWEEP", "last=0"], "last=0 must be a number of steps, at least 1"),
        (["SWEEP", "against=optim.lr"], "against=optim.lr: the runs do not differ in it; they differ in router.aux.load"),
        (["SWEEP/unfinished", "last=2"], "none of the 1 runs has reached its last step"),
        (["SWEEP", "ouput=x"], "trainer.report has no 'ouput' (did you mean 'output'?)"),
    ],
)
def test_a_mistake_is_one_line(sweep: Path, arguments: list[str], told: str):
    with pytest.raises(UserError) as caught:
        read_arguments([argument.replace("SWEEP", str(sweep)) for argument in arguments])
    assert told in str(caught.value)


def test_without_matplotlib_the_extra_is_named(sweep: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "limoe-trainer\[report\]"; or leave out output='):
        read_arguments([str(sweep), "output=x"])


def report(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    pytest.importorskip("plotly")
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    main()


def test_a_run_that_still_trains_has_a_page_and_no_table(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    report(monkeypatch, sweep / "unfinished")
    said = capsys.readouterr()
    assert said.out == f"wrote {sweep / 'unfinished' / 'report.html'}\n"
    assert "is left out of the table: it is only at step 4 of 9" in said.err
    assert "at step 4 of 9" in (sweep / "unfinished" / "report.html").read_text()


def test_the_page_of_several_places_comes_here_or_where_output_says(sweep: Path, monkeypatch: pytest.MonkeyPatch):
    runs = sorted(sweep.glob("load-*"))[:2]
    monkeypatch.chdir(sweep)
    report(monkeypatch, *runs, "title=Two runs")
    assert "<title>Two runs</title>" in Path("report.html").read_text()
    report(monkeypatch, *runs, "output=there")
    assert (sweep / "there" / "report.html").is_file() and (sweep / "there" / "results.md").is_file()


def test_a_place_where_the_page_cannot_be_written_costs_a_line_and_not_the_table(
    sweep: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (sweep / "report.html").mkdir()
    report(monkeypatch, sweep)
    said = capsys.readouterr()
    assert "| 1 | 2 | 0.562" in said.out and "wrote" not in said.out
    assert said.err.splitlines()[-1].startswith(f"WARNING: the page cannot be written to {sweep / 'report.html'} (")
