"""Models beside their peers: who belongs together, which mode counts, where labels go."""

import pytest

from visionattn.benchmark import lineup


def row(model, mode="no", rate="1", which="training", size="224"):
    return {"model": model, "compiled": mode, "images_per_s": rate, "pass": which, "batch": "128", "size": size,
            "dtype": "bfloat16"}  # fmt: skip


@pytest.mark.parametrize("model, expected", [
    ("fused_swin_tiny", "swin_tiny"), ("timm/swin_tiny_patch4_window7_224", "swin_tiny"), ("gna_tiny", "gna_tiny"),
    ("fused/maxvit_tiny_tf_224", "maxvit_tiny"), ("reference/biformer_small", "biformer_small"),
    ("natten/dinat_tiny", "dinat_tiny"), ("timm/halonet50ts", "halonet50ts"),
])  # fmt: skip
def test_a_model_and_its_peers_share_an_architecture(model, expected):
    assert lineup.architecture(model) == expected


def test_models_stand_beside_their_peers_mode_by_mode():
    rows = [row("timm/davit_tiny", "default"), row("gna_tiny"), row("fused_davit_tiny"), row("timm/davit_tiny"),
            row("fused_davit_tiny", "default"), row("fused_davit_tiny", size="96")]  # fmt: skip
    found = [(one["model"], one["size"], one["compiled"]) for one in lineup.grouped(rows)]
    assert found == [
        ("fused_davit_tiny", "96", "no"), ("fused_davit_tiny", "224", "no"), ("timm/davit_tiny", "224", "no"),
        ("fused_davit_tiny", "224", "default"), ("timm/davit_tiny", "224", "default"), ("gna_tiny", "224", "no"),
    ]  # fmt: skip


def test_without_modes_ours_comes_first():
    rows = [row("timm/davit_tiny", "no"), row("fused_davit_tiny", "default")]
    assert lineup.grouped(rows, by_mode=False) == rows[::-1] and lineup.grouped(rows) == rows


def test_of_each_model_the_fastest_mode_is_kept():
    rows = [row("a", "no", "9"), row("a", "default", "10"), row("a", "default", "", "inference"), row("b", rate="2")]
    assert lineup.fastest(rows) == [rows[1], rows[3]]


def test_labels_keep_their_distance_and_order():
    assert lineup.spread([5.0, 1.0, 1.2, 9.0], 1.0) == [5.0, 1.0, 2.0, 9.0]
    assert lineup.spread([], 1.0) == []
