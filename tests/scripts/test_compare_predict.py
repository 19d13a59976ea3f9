from __future__ import annotations

import json

import pytest

from scripts.inspect import compare_predict

QUICK = ("trainer=cpu", "num_workers=0", "trainer.enable_progress_bar=false")


@pytest.mark.long
def test_predict_gives_what_evaluate_scores(start, tmp_path, capsys):
    """On pictures of another size than the network's, and with all batches of one exactly."""
    words = [*QUICK, "dataset.picture_size=81", "reuse=false", "batch_size=1", "episodes=4", "seeds=2", "shot=2"]
    options = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "f.json")]
    assert compare_predict.main([str(start), *words, *options]) == 0
    found = json.loads((tmp_path / "f.json").read_text())
    assert (found["episodes"], found["pixels"]) == (8, 8 * 81 * 81)
    assert found["segmenter_differs"] == found["evaluator_differs"] == 0
    assert found["predict"] == pytest.approx(found["evaluator"], abs=1e-12)
    assert 0.01 < found["evaluator"][0] != found["evaluator"][1]
    assert len(list((tmp_path / "out").glob("*/out/query_overlay.jpg"))) == 8
    printed = capsys.readouterr().out
    assert "8 episodes, 52,488 pixels: predict and Segmenter differ in 0, " in printed
    assert compare_predict.main([str(start), *words, *options]) == 1
    assert "exists, expected a new folder" in capsys.readouterr().err
