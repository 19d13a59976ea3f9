from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from hdmnet import report
from hdmnet.reporting import writing
from tests.helpers.reports import CLASSES, TINY, write_run


class Page(HTMLParser):
    """Tags, and every attribute that may name something outside the page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    for fold in (0, 1):
        for name in ("none", "table9_t5"):
            write_run(root, f"{name}_{fold}", fold=fold, ablation=name, overrides=TINY, git_dirty=fold == 1)
    (root / "crashed" / ".hydra").mkdir(parents=True)
    return root


def refusal(capsys, *words):
    code = report.main([str(word) for word in words])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return code, lines[0]


@pytest.mark.long
def test_writes_tables_figures_and_a_page_that_needs_nothing_else(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert report.main([str(runs), "--out", str(out)]) == 0
    assert sorted(path.name for path in (out / "tables").iterdir()) == sorted(
        f"table{number}.{ending}" for number in range(1, 10) for ending in ("md", "tex", "csv")
    )
    assert [path.name for path in (out / "figures").iterdir()] == ["figure8_shapes.png"]
    text = (out / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?://", text)
    assert page.tags.count("table") == 10  # nine, and that of the runs
    dirty = "uncommitted changes in the code of 2 of 4 runs"
    empty = "No runs for Tables 1, 4, 5, 6, 7, 8."
    for wanted in (empty, "unfinished run, left out", dirty, "0123456789+", "shapes01"):
        assert wanted in text
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "4 runs read"
    assert {"Table 4: no runs", "Table 9: 4 runs"} <= set(told)
    assert told[-1] == f"report: {out / 'report.html'}"


def test_a_warning_of_several_tables_is_told_once(runs, tmp_path, capsys):
    write_run(runs, "again", fold=0, ablation="none", overrides=TINY)
    assert report.main([str(runs), "--out", str(tmp_path / "out"), "--episodes", "0"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "not used" in line]
    assert len(told) == 1
    assert told[0].startswith("warning: Tables 2, 3, 9: not used, another run of the same setting")


def test_a_second_report_leaves_no_picture_of_the_first(runs, tmp_path):
    (tmp_path / "out" / "figures").mkdir(parents=True)
    stale, own = (tmp_path / "out" / "figures" / name for name in ("figure9_coco.png", "mine.png"))
    stale.write_bytes(b"old")
    own.write_bytes(b"a user's")
    assert report.main([str(runs), "--out", str(tmp_path / "out")]) == 0
    assert not stale.exists()
    assert own.exists()


def test_nothing_half_written_is_left_when_writing_fails(runs, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("power cut")

    monkeypatch.setitem(writing._FORMATS, "csv", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        report.main([str(runs), "--out", str(tmp_path / "out")])
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix == ".tmp"]
    assert not (tmp_path / "out" / "report.html").exists()


def test_refusals_are_one_line(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert refusal(capsys, runs) == (2, "error: the following arguments are required: --out; see --help")
    assert refusal(capsys, runs, "--out", out, "--episodes", "-1")[0] == 2
    code, line = refusal(capsys, tmp_path / "nowhere", "--out", out)
    assert code == 1
    assert line == f"error: {tmp_path / 'nowhere'} not found; expected a run folder, a folder of runs or a result.json"
    assert not out.exists()
    file = tmp_path / "file"
    file.write_text("text")
    assert refusal(capsys, runs, "--out", file) == (
        1, f"error: --out {file} is a file; expected a folder, which is made if needed"
    )  # fmt: skip
    code, line = refusal(capsys, file, "--out", out)
    assert code == 1
    assert line.startswith("error: 1 result.json found, none readable: damaged result, left out: ")


def test_a_folder_that_cannot_be_made_is_told(runs, tmp_path, capsys):
    (tmp_path / "file").write_text("text")
    code, line = refusal(capsys, runs, "--out", tmp_path / "file" / "out")
    assert code == 1
    assert line.startswith("error: ")
    assert "Not a directory" in line


@pytest.mark.long
def test_a_damaged_result_is_skipped_and_listed(runs, tmp_path, capsys):
    path = runs / "none_0" / "result.json"
    result = json.loads(path.read_text())
    result["seed"] = "zero"
    path.write_text(json.dumps(result))
    assert report.main([str(runs), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "3 runs read" in told
    assert f"warning: damaged result, left out: {path}: seed is 'zero', expected an integer" in told


@pytest.mark.long
def test_a_run_without_a_test_is_listed_without_figures(tmp_path):
    """As `trainer.limit_test_batches=0` leaves it, beside one of the other fold that has been tested."""
    nothing = {"miou": None, "miou_per_seed": [None], "fb_iou": None, "fb_iou_per_seed": [None], "num_episodes": 0}
    nothing |= {"iou_per_class": dict.fromkeys(CLASSES), "num_classes_averaged": [0]}
    write_run(tmp_path / "runs", "untested", test=nothing, test_no_ensemble=nothing, overrides=TINY)
    write_run(tmp_path / "runs", "tested", fold=1, overrides=TINY)
    assert report.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--episodes", "0"]) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert ">nan" not in page.lower()
    assert "0 x 1 seeds" in page
    assert "55.0" in page
