"""The benchmark of reuse: what it writes, and its arithmetic."""

from __future__ import annotations

import json

import pytest

from scripts.benchmarks import benchmark_evaluation


def counted(intersection, union, counts):
    return {"intersection": intersection, "union": union, "counts": counts}


def test_differences_and_ratio_by_hand():
    on = {"final": [counted([5, 7], [10, 20], [1, 2]), counted([0, 0], [0, 0], [9, 9])]}
    off = {"final": [counted([5, 9], [11, 20], [1, 2])]}
    found = benchmark_evaluation.compare(on, off)["final"]
    assert found["largest"] == {"intersection": 2, "union": 1, "counts": 0}
    assert found["per_seed_and_class"]["intersection"] == [[0, -2]]
    assert found["union_pixels"] == 31
    assert benchmark_evaluation.ratio({"seconds": 10, "episodes": 40}, {"seconds": 20, "episodes": 10}) == 8


@pytest.mark.long
def test_a_tiny_checkpoint_is_measured_both_ways(finished_run, tmp_path, capsys):
    best = finished_run.folder / "checkpoints" / "best.ckpt"
    words = ["trainer=cpu", "num_workers=0", "trainer.enable_progress_bar=false", f"paths.output_dir={tmp_path}"]
    written = tmp_path / "out.json"
    assert benchmark_evaluation.main([str(best), *words, "--off-seeds", "1", "--json", str(written)]) == 0
    content = json.loads(written.read_text(encoding="utf-8"))
    assert content["with_reuse"]["episodes"] == 12
    assert content["with_baselines"]["episodes"] == 12
    assert content["with_baselines"]["peak_feature_bytes"] > content["with_reuse"]["peak_feature_bytes"]
    assert content["without_reuse"]["episodes"] == 6
    assert content["without_reuse"]["pictures_encoded"] == 12
    assert 0 < content["with_reuse"]["pictures_encoded"] <= 24
    assert content["differences"]["final"]["union_pixels"] > 0
    assert set(content["differences"]) == {"final"}  # without an ensemble there is no other prediction
    assert content["differences"]["final"]["largest"]["counts"] == 0
    assert content["differences"]["final"]["largest"]["union"] <= 5
    assert "times as fast" in capsys.readouterr().out


def test_wrong_words_are_refused_in_one_line(capsys):
    assert benchmark_evaluation.main(["x.ckpt", "--off-seeds", "0"]) == 1
    assert "--off-seeds 0: expected at least 1" in capsys.readouterr().err
