"""What each trunk costs: counted by hand for one, and a table of three."""

from __future__ import annotations

import pytest

from scripts.benchmarks import benchmark_trunks


def test_multiply_adds_by_hand():
    """A ViT: 12 blocks of 12·C² products a token and 2·C a pair of tokens, and the patches' embedding."""
    millions, billions, levels = benchmark_trunks.count("dinov2_vits14", 70)
    tokens, channels = 5 * 5 + 1, 384
    expected = 12 * (12 * channels**2 * tokens + 2 * channels * tokens**2) + 25 * channels * 3 * 14**2
    assert billions == pytest.approx(expected / 1e9, rel=1e-3)
    assert millions == pytest.approx(22.06, abs=0.01)
    assert levels == "384/14, 384/14, 384/14"


@pytest.mark.slow
def test_the_table(capsys):
    names = ["resnet_narrow", "efficientnet_lite0"]
    assert benchmark_trunks.main([*names, "--side", "65", "--repeats", "1"]) == 0
    table = capsys.readouterr().out.strip().splitlines()
    assert "one picture of 65x65" in table[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[4:]]
    assert [row[0] for row in rows] == [f"`{name}`" for name in names]
    assert rows[0][1] == "64/8, 96/8, 128/8"
    assert rows[0][5] == "1.00"
    assert all(float(row[6].removesuffix(" s")) > 0 for row in rows)
    assert all(float(row[7].removesuffix(" MB")) > 0 for row in rows)


def test_an_unknown_trunk_is_one_line(capsys):
    assert benchmark_trunks.main(["resnet5"]) == 1
    assert "resnet5: no file of conf/backbone; expected some of resnet50, convnext_base" in capsys.readouterr().err


def test_all_trunks_of_conf_are_measured():
    names = benchmark_trunks.trunk_names()
    assert names[0] == "resnet50"
    assert {"dinov3_vitb16", "efficientnet_lite2", "mobilenet_v2", "vgg16_plain"} <= set(names)
    assert not {"timm", "default"} & set(names)
