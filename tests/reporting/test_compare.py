"""`python -m hdmnet.report --compare A B`: two tests on the same episodes."""

from __future__ import annotations

import numpy as np
import pytest

from hdmnet import report
from hdmnet.tasks.intervals import estimate
from tests.helpers.episode_tables import table
from tests.helpers.reports import CLASSES, write_run

NUMBER = 30


def write(root, name, shared, *, rows=NUMBER, **keys):
    """A run whose episodes have objects of 1 to 30 times 10 pixels, of which it finds this share."""
    folder = write_run(root, name, miou=(0.5,), **keys)
    of = [(i, i % 3, f"q{i}", round(shared(i) * 10 * (i + 1)), 10 * (i + 1)) for i in range(rows)]
    table(CLASSES, final=of).write(folder / "episodes.csv")
    return folder


@pytest.fixture
def two(tmp_path):
    random = np.random.default_rng(0)
    noise = random.random(NUMBER) / 5
    first = write(tmp_path, "first", lambda i: 0.7 + noise[i] - (0.9 * (i == 4)))
    return first, write(tmp_path, "second", lambda i: 0.5 + noise[i])


def told(capsys, *words):
    assert report.main(["--compare", *map(str, words)]) == 0
    return capsys.readouterr().out


def refusal(capsys, *words):
    code = report.main(["--compare", *map(str, words)])
    (line,) = capsys.readouterr().err.splitlines()
    return code, line


def cells(text, label):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {label}")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_difference_stands_with_its_interval_by_class_and_by_size(two, tmp_path, capsys):
    text = told(capsys, *two, "--out", tmp_path / "out")
    count, first, second, gap, interval = cells(text, "all classes")
    assert count == "30"
    assert float(gap) == pytest.approx(float(first) - float(second), abs=0.11)
    low, high = (float(word.strip("*")) for word in interval.split(" to "))
    assert interval.endswith("*")
    assert 0 < low < float(gap) < high
    assert cells(text, "ant")[0] == cells(text, "bee")[0] == "10"
    assert cells(text, "dog") == ["0", "–", "–", "–", ""]
    sizes = [cells(text, size) for size in ("small", "medium", "large")]
    assert sum(int(size[0]) for size in sizes) == NUMBER
    # Episode 4, of a small object, is the one that the first misses.
    assert float(sizes[0][3]) < float(sizes[2][3])
    assert cells(text, "seed 0, episode 4 ")[1] == "q4"
    assert text.index("episode 4 ") < text.index("episode 1")  # it differs most
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert page.count("<table>") == 4
    assert 'src="data:image/png;base64,' in page
    assert len(list((tmp_path / "out" / "tables").iterdir())) == 4 * 3
    assert text.rstrip().endswith("compare.html")


def test_the_files_hold_what_was_compared(two, capsys):
    """The other way round it is the same with another sign; `result.json` names a run too."""
    there = cells(told(capsys, *two), "all classes")
    back = cells(told(capsys, two[1] / "result.json", two[0]), "all classes")
    assert (there[1], there[2]) == (back[2], back[1])
    assert float(there[3]) == -float(back[3])
    same = cells(told(capsys, two[0], two[0]), "all classes")
    assert same[3:] == ["0.0", "+0.0 to +0.0"]


def test_only_seeds_that_both_have_are_compared(tmp_path, capsys):
    for name, seeds in (("one", (0,)), ("two", (0, 1))):
        folder = write_run(tmp_path, name, miou=(0.5,) * len(seeds))
        of = [(i, i % 3, f"q{i}", 5 + i + 3 * seed, 60, seed) for i in range(20) for seed in seeds]
        table(CLASSES, final=of).write(folder / "episodes.csv")
    assert cells(told(capsys, tmp_path / "one", tmp_path / "two"), "all classes")[0] == "20"


def test_classes_without_a_pixel_count_as_the_protocol_says(tmp_path, capsys):
    keys = {"overrides": ("protocol=hsnet",)}
    folders = [write(tmp_path, name, lambda i, share=share: share, **keys) for name, share in (("a", 0.5), ("b", 0.4))]
    of = table(CLASSES, final=[(i, i % 3, f"q{i}", 5, 10) for i in range(9)])
    assert estimate(of, "final", absent_is_zero=True).values == pytest.approx((0.3,))
    assert float(cells(told(capsys, *folders), "all classes")[1]) == pytest.approx(100 * 0.5 * 3 / 5, abs=1)


def test_what_cannot_be_compared_is_refused_in_one_line(two, tmp_path, capsys):
    other = write(tmp_path, "other", lambda i: 0.5, fold=1)
    code, line = refusal(capsys, two[0], other)
    assert code == 1
    assert line.startswith(f"error: other test episodes (manifest hashes): {two[0]} (shapes01")
    short = write(tmp_path, "short", lambda i: 0.5, rows=20)
    assert "hold other episodes: one was cut short" in refusal(capsys, two[0], short)[1]
    (short / "episodes.csv").unlink()
    assert f"{short / 'episodes.csv'} is missing" in refusal(capsys, two[0], short)[1]
    assert "not found" in refusal(capsys, two[0], tmp_path / "nowhere")[1]
    assert "holds 4 results; expected the folder of one run" in refusal(capsys, two[0], tmp_path)[1]
    table(CLASSES, final=[]).write(short / "episodes.csv")
    code, line = refusal(capsys, short, short)
    assert code == 1
    assert "no episode with a pixel to count" in line
    assert report.main(["runs", "--compare", *map(str, two)]) == 2
    assert "one more" in capsys.readouterr().err
