"""The load of every expert: as curves, and as W&B's heat maps."""

from trainer.reporting.loads import curves, rounded
from trainer.reporting.wandb_media import heat_maps

LOADS = {"layer03": {"image": [0.0, 1.00004999], "text": [1.75, 0.25]}}


def test_there_is_a_curve_for_each_expert_and_modality():
    assert curves(LOADS) == {
        "routing/layer03/expert00/load/image": 0.0,
        "routing/layer03/expert01/load/image": 1.00004999,
        "routing/layer03/expert00/load/text": 1.75,
        "routing/layer03/expert01/load/text": 0.25,
    }


def test_the_file_has_as_many_digits_as_anybody_looks_at():
    assert rounded(LOADS)["layer03"]["image"] == [0.0, 1.0]


def test_a_heat_map_has_a_bin_an_expert_and_a_spread_counts_experts():
    shown = {name: histogram.to_json() for name, histogram in heat_maps(LOADS).items()}
    assert set(shown) == {f"experts/layer03/{what}/{modality}" for what in ("load", "spread") for modality in ("image", "text")}
    assert shown["experts/layer03/load/text"] == {"_type": "histogram", "values": [1.75, 0.25], "bins": [-0.5, 0.5, 1.5]}
    spread = shown["experts/layer03/spread/text"]
    assert sum(spread["values"]) == 2 and spread["values"][7] == spread["values"][1] == 1
    assert spread["bins"][7:9] == [1.75, 2.0]


def test_loads_beyond_the_last_edge_are_in_the_last_bin_and_too_many_experts_have_no_heat_map():
    shown = heat_maps({"layer00": {"image": [600.0] + [0.0] * 599}})
    assert list(shown) == ["experts/layer00/spread/image"]
    assert shown["experts/layer00/spread/image"].to_json()["values"] == [599, *[0] * 14, 1]
