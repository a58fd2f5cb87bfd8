"""Every metric has a panel, and every panel a metric."""

import re
from pathlib import Path

from trainer.dashboard.panels import SECTIONS, SYSTEM, unseen

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()


def documented() -> list[str]:
    """The metrics that docs/metrics.md explains, but for those that only metrics.jsonl has."""
    rows = [line for line in PAGE.splitlines() if line.startswith("| `") and "only in `metrics.jsonl`" not in line]
    names = re.findall(r"`((?:train|routing|data|eval|perf)/[\w/]+)`", "\n".join(row.split(" | ")[0] for row in rows))
    assert len(names) > 30
    return [*names, *(re.sub(r"/text$", "/image", name) for name in names)]


def test_every_metric_is_in_a_panel():
    assert unseen([*documented(), "eval/zeroshot_unseen/top1", "routing/layer11/success/text"]) == []
    assert unseen(["train/lr", "train/unheard_of", "eval/zeroshot/top1_chance"]) == ["train/unheard_of"]


def test_every_panel_has_a_metric():
    for section in SECTIONS:
        for panel in section.panels:
            assert any(panel.shows(name) for name in documented()), f"{section.name}: {panel.title}"


def test_all_layers_of_one_metric_are_in_one_panel():
    panels = [panel for section in SECTIONS for panel in section.panels]
    for name in documented():
        if "/layer" in name:
            layers = [name.replace("layer03", f"layer{layer:02d}") for layer in range(12)]
            assert any(all(map(panel.shows, layers)) for panel in panels), name


def test_the_patterns_are_such_as_the_server_knows():
    for section in (*SECTIONS, SYSTEM):
        for panel in section.panels:
            assert "(?" not in panel.metrics, panel.title
            assert not re.search(r"\\[1-9]", panel.metrics), panel.title


def test_the_panels_of_the_system_know_one_node_and_several():
    names = ("gpu.0.gpu", "gpu.7.memoryAllocated/l:node03", "cpu", "memory_percent/l:a", "disk.vda.in", "network.sent")
    for name in names:
        assert any(panel.shows(f"system/{name}") for panel in SYSTEM.panels), name
