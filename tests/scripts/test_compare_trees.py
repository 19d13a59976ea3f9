"""Two checkouts timed in turn: the order of the calls, the medians, and what is no checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.benchmarks import compare_trees

ROOT = Path(__file__).parents[2]


class Stub:
    """Stands for a checkout's process: answers with given seconds, and keeps the order of all questions."""

    def __init__(self, name, seconds, asked):
        self.name, self.seconds, self.asked = name, iter(seconds), asked

    def ask(self, line):
        self.asked.append(self.name)
        return "built" if line else str(next(self.seconds))


def test_they_are_called_in_turn_and_medians_are_compared():
    asked = []
    trees = [Stub("old", [3.0, 9.0, 1.0], asked), Stub("new", [2.0, 1.0, 8.0], asked)]
    assert compare_trees.compare(trees, "train resnet50 129 1 4 1", 3) == [3.0, 2.0]
    assert asked == ["old", "new"] * 4


@pytest.mark.long
def test_a_tree_that_fails_is_named(tmp_path):
    folder = tmp_path / "scripts" / "benchmarks"
    folder.mkdir(parents=True)
    (folder / "benchmark_model.py").write_text("raise SystemExit('broken')")
    tree = compare_trees.Tree(tmp_path)
    try:
        with pytest.raises(ValueError, match=r"the benchmark of .* has failed"):
            tree.ask("train resnet_narrow 33 1 4 1")
    finally:
        tree.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "resnet50:129"], "expected cases like resnet50:129:1"),
        (["--repeats", "0"], "repeats and threads of at least 1"),
        ([], "has no scripts/benchmarks/benchmark_model.py; expected a checkout"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, tmp_path, capsys):
    assert compare_trees.main([str(tmp_path), str(tmp_path), *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_this_checkout_beside_itself(capsys):
    arguments = [str(ROOT), str(ROOT), "--cases", "resnet_narrow:65:1", "--repeats", "1"]
    assert compare_trees.main(arguments) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| resnet_narrow")]
    assert len(rows) == 2
    assert all(0 < float(row.split("|")[4]) < 100 for row in rows)
