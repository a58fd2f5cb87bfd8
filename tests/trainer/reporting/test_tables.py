"""The tables at the start and the end of a run."""

from trainer.reporting.tables import LayoutRow, layout_table, summary_table


def rows(world: int, experts_each: int = 4, ep: int = 4) -> list[LayoutRow]:
    return [
        LayoutRow(
            rank=rank,
            host=f"node{rank // 4}",
            device=f"cuda:{rank % 4}",
            ep_rank=rank % ep,
            experts=range(rank % ep * experts_each, (rank % ep + 1) * experts_each),
        )
        for rank in range(world)
    ]


def table_rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.split() and line.split()[0].isdigit()]


def test_every_rank_has_its_line(capsys):
    layout_table(rows(16))
    out = capsys.readouterr().out
    assert [row[0] for row in table_rows(out)] == [str(rank) for rank in range(16)]
    assert table_rows(out)[5] == ["5", "node1", "cuda:1", "1", "4-7"]
    assert "more ranks" not in out


def test_the_middle_of_many_ranks_is_counted(capsys):
    layout_table(rows(64))
    out = capsys.readouterr().out
    assert [int(row[0]) for row in table_rows(out)] == [*range(8), 62, 63]
    assert "54 more ranks" in out


def test_a_dense_model_owns_no_experts(capsys):
    layout_table(rows(2, experts_each=0))
    out = capsys.readouterr().out
    assert table_rows(out)[1] == ["1", "node0", "cuda:1"]
    assert "expert" not in out


def test_experts_need_not_be_neighbours_and_names_are_printed_as_they_are(capsys):
    layout_table([LayoutRow(rank=0, host="[red]box", device="cpu", ep_rank=0, experts=[8, 0, 1, 2])])
    assert table_rows(capsys.readouterr().out) == [["0", "[red]box", "cpu", "0", "0-2,", "8"]]


def test_the_table_fits_a_hundred_columns(capsys):
    layout_table(
        [LayoutRow(rank=0, host="z" * 90, device="cuda:0 NVIDIA H200", ep_rank=0, experts=range(0, 64, 2))],
    )
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 100
    assert out.count("z") == 90  # folded, not cut


def test_the_summary_sets_results_beside_chance(capsys):
    summary_table("demo", [("Zero-shot", "", ""), ("top-1", "0.412", "0.125"), ("wall time", "2:31", "")], [])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["demo"] in lines
    assert ["result", "chance"] in lines
    assert ["top-1", "0.412", "0.125"] in lines
    assert ["wall", "time", "2:31"] in lines


def test_a_summary_without_chance_has_no_such_column(capsys):
    summary_table("demo", [("wall time", "2:31", "")], [])
    assert "chance" not in capsys.readouterr().out


def test_commands_can_be_copied_whole(capsys):
    command = "/a" * 70 + "/bin/wandb leet runs/[demo]/wandb"
    summary_table("demo", [("top-1", "0.4", "0.1" * 40)], [("curves", command)])
    lines = capsys.readouterr().out.splitlines()
    assert command in [line.strip() for line in lines]
    assert max(len(line) for line in lines if "/bin/wandb" not in line) <= 80
