"""What a user did wrong: one line on stderr that says what and where, an exit code, and no training begun.

The cases are those of scripts/robustness/bad_inputs.py, which runs them as commands and writes docs/bad_input.md.
"""

from __future__ import annotations

import contextlib
import importlib
import io

import pytest
from PIL import Image

from hdmnet.data.io.masks import read_mask
from scripts.robustness import bad_inputs
from tests.helpers.commands import REAL, SHAPES, call, run, run_process

# Of many alike the first few are enough for every change; `make test-full` runs all.
SLOW = ("train", "prepare_pascal", "prepare_coco")


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    return bad_inputs.Bench(tmp_path_factory.mktemp("bench"))


def marked(number, case):
    seldom = "pascal" in case.names or (case.command in SLOW and number % 3)
    return pytest.param(case, marks=[pytest.mark.slow] if seldom else [], id=f"{case.command}-{case.given}"[:60])


@pytest.mark.long
@pytest.mark.parametrize("case", [marked(*one) for one in enumerate(bad_inputs.ALL_CASES)])
def test_one_line_an_exit_code_and_nothing_left_behind(bench, tmp_path, monkeypatch, case):
    place = tmp_path / "case"
    place.mkdir()
    monkeypatch.chdir(place)
    words = case.words(bench, place)
    if case.command in bad_inputs.COMMANDS[:3]:
        answer = call(case.command, place / "out", *words)
        assert "training it (stage 1)" not in answer.out
        code, err = answer.code, answer.err
    else:
        module = importlib.import_module("hdmnet.report" if case.command == "report" else case.command)
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            code = module.main(words)
        err = stderr.getvalue()
    bad_inputs.check_answer(case, place, code, err)


def test_there_are_many_and_each_once():
    assert len({(case.command, case.given) for case in bad_inputs.ALL_CASES}) == len(bad_inputs.ALL_CASES) >= 40


def test_the_table_lists_every_case():
    table = (bad_inputs.ROOT / "docs" / "bad_input.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert [(row[0].removeprefix("| "), row[1], int(row[2])) for row in rows] == [
        (case.given, case.command, case.code) for case in bad_inputs.ALL_CASES
    ]


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        pytest.param(  # as the case above, with all that is imported before the data
            *(("dataset=coco", "fold=2", "shot=5", "paths.data_dir=nowhere"), 1, "error: COCO folder "),
            marks=pytest.mark.slow,
        ),
        (("fold=7",), 2, "error: fold=7: expected 0 to 3, shapes has 4 folds"),
    ],
)
def test_the_command_itself(tmp_path, words, code, line):
    answer = run_process("train", tmp_path / "out", *words)
    assert answer.code == code
    assert answer.err.startswith(line)
    assert answer.err.count("\n") == 1


@pytest.mark.long
@pytest.mark.parametrize("kind", ["hostile", "hostile_zip", "cut"])
def test_training_from_a_checkpoint_that_is_none(bench, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    names = {"hostile": "a pickle that", "hostile_zip": "a torch file that", "cut": "half a checkpoint"}
    (case,) = (case for case in bad_inputs.ALL_CASES if case.given.startswith(names[kind]))
    ckpt = case.words(bench, tmp_path)[0]
    assert "cannot be read" in call("train", tmp_path / "out", *SHAPES, ckpt).refusal()
    assert not (tmp_path / "was_run").exists()


# ------------------------------------------------------------------------------------------ what must work all the same


def break_picture(path):
    """Header and end stay whole: only decoding tells."""
    data = path.read_bytes()
    scan = data.index(b"\xff\xda") + 20
    path.write_bytes(data[:scan] + b"\xff\xc0\x00\x04ab" + data[scan + 6 :])


@pytest.mark.long
def test_folders_with_spaces_and_other_alphabets_and_files_that_are_skipped(bench, tmp_path):
    """From the data to the evaluation of the run's checkpoint; what was skipped is in both results."""
    place = tmp_path / "größe (1) 日本"
    place.mkdir()
    lost = []

    def damage(root):
        for split in ("train", "val"):
            picture = bad_inputs.first(root, "picture", split)
            break_picture(picture)
            lost.append(str(picture))

    words = [*bench.voc(place, damage), "dataset.on_error=skip", f"paths.data_dir={place}"]
    trained = run("train", place / "läufe", *REAL, *words)
    best = trained.folder / "checkpoints" / "best.ckpt"
    assert best.is_file()
    skipped = trained.result["skipped"]
    assert [entry["split"] for entry in skipped] == ["train", "val"]
    assert all(path in entry["why"] and entry["episodes"] == 0 for path, entry in zip(lost, skipped, strict=True))
    again = run("evaluate", place / "läufe", f"ckpt={best}", "trainer=cpu", "num_workers=0", "batch_size=1")
    assert again.result["manifest_sha256"] == trained.result["manifest_sha256"]
    assert [entry["split"] for entry in again.result["skipped"]] == ["val"]
    picture = sorted((place / "pascal" / "JPEGImages").iterdir())[2]
    with Image.open(picture) as opened:
        size = opened.size
    mask = place / "maß (2).png"
    Image.new("L", size, 1).save(mask)
    pair = (f"support=[{picture}:{mask}]", f"query=[{picture}]")
    found = run("predict", place, f"ckpt={best}", *pair, f"output={place}/aus gabe")
    assert (place / "aus gabe" / f"{picture.stem}_mask.png").is_file(), found.out
    assert read_mask(place / "aus gabe" / f"{picture.stem}_mask.png").shape == size[::-1]
