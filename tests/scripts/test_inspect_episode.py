from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from scripts.inspect import inspect_episode


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image)


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_test_run_is_sorted_and_one_episode_drawn(start, tmp_path, capsys):
    words = ["trainer=cpu", "num_workers=0", "trainer.enable_progress_bar=false", f"paths.output_dir={tmp_path}/runs"]
    out = tmp_path / "out"
    options = ["--worst", "2", "--best", "1", "--episode", "3", "--seed", "1", "--out", str(out)]
    assert inspect_episode.main([str(start), *words, *options]) == 0, capsys.readouterr().err
    episodes = read(out / "episodes.csv")
    assert [(int(row["seed"]), int(row["episode"])) for row in episodes] == [(s, i) for s in (0, 1) for i in range(6)]
    # The same numbers by the one-episode way, and pooled in the other table.
    chosen = episodes[6 + 3]
    found, missed = int(chosen["final_found"]), int(chosen["object_pixels"]) - int(chosen["final_found"])
    iou = 100 * found / (found + missed + int(chosen["final_false"]))
    assert f"{chosen['class']}, query {chosen['query']}: IoU {iou:.2f} %" in capsys.readouterr().out
    for row in read(out / "confusion.csv"):
        own = [one for one in episodes if one["class"] == row["class"]]
        assert int(row["false_positive_pixels"]) == sum(int(one["final_false"]) for one in own)
        assert int(row[row["class"]]) == 0  # a class's own pixels are no false positives
    assert sum(int(one["final_false"]) for one in episodes) > 0
    heights = {name: picture(out / f"{name}.png").shape[0] for name in ("worst", "best", "episode_seed1_3")}
    assert heights["worst"] > heights["best"] == heights["episode_seed1_3"]
    assert picture(out / "confusion.png").std() > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to show: give --episode N, --worst N or --best N"),
        (["--worst", "-1"], "expected 0 or more"),
    ],
)
def test_wrong_words_are_refused_in_one_line(capsys, words, message):
    assert inspect_episode.main(["x.ckpt", *words]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


@pytest.mark.slow
def test_an_episode_that_is_not_there_is_refused(start, tmp_path, capsys):
    words = ["trainer=cpu", "num_workers=0", f"paths.output_dir={tmp_path}"]
    for options, message in (
        (["--episode", "6"], "--episode 6: expected 0 to 5"),
        (["--episode", "0", "--seed", "2"], "--seed 2: expected 0 to 1"),
    ):
        assert inspect_episode.main([str(start), *words, *options]) == 1
        assert message in capsys.readouterr().err
