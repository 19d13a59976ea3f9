from __future__ import annotations

import csv
import io

import pytest

from hdmnet.reporting.aggregate import Value
from hdmnet.reporting.formats import CSV_COLUMNS, show, to_csv, to_html, to_latex, to_markdown
from hdmnet.reporting.paper import source
from hdmnet.reporting.tables import Table


@pytest.fixture
def table():
    made = Table(4, "Parts of a_b, mIoU (%)", [("", "Ens."), ("paper", "mIoU"), ("ours ‡", "Δ"), ("ours ‡", "on")])
    made.add(["✓", Value(44.7), Value(1.06, 0.25, signed=True), "fold 0; ± 2 test seeds"], ours=False)
    made.add(["<b>", Value(), Value(-0.01, signed=True), "a|b"], ours=True)
    made.notes.append("50 % & more")
    made.entries += [
        ("✓", "mIoU", "paper", Value(44.7)),
        ("✓", "Δ", "ours: x", Value(1.0625, 0.25, "2 test seeds", (0, 2), 3)),
        ("✓", "gap", "ours: x", Value()),
    ]
    return made


def test_cells():
    assert [show(Value(value)) for value in (None, 0.0, 49.96, -1.26)] == ["–", "0.0", "50.0", "-1.3"]
    assert show(Value(50.0, 0.0)) == "50.0 ± 0.0"
    assert [show(Value(value, signed=True)) for value in (1.1, -1.1, 0.0, -0.04)] == ["+1.1", "-1.1", "0.0", "0.0"]
    assert show("text") == "text"


def test_markdown(table):
    assert to_markdown(table).splitlines() == [
        "**Table 4. Parts of a_b, mIoU (%)**",
        "",
        "| Ens. | paper mIoU | ours ‡ Δ | ours ‡ on |",
        "|---|---:|---:|---|",
        "| ✓ | 44.7 | +1.1 ± 0.2 | fold 0; ± 2 test seeds |",
        r"| <b> | – | 0.0 | a\|b |",
        "",
        "* 50 % & more",
        f"* Paper's numbers: {source()}",
    ]


def test_latex(table):
    lines = to_latex(table).splitlines()
    assert r"\caption{Parts of a\_b, mIoU (\%)}" in lines
    start = lines.index(r"\begin{tabular}{lrrl}")
    assert lines[start + 1 : start + 10] == [
        r"\toprule",
        r"\multicolumn{1}{c}{} & \multicolumn{1}{c}{paper} & \multicolumn{2}{c}{ours $\ddagger$} \\",
        r"\cmidrule(lr){2-2}\cmidrule(lr){3-4}",
        r"Ens. & mIoU & $\Delta$ & on \\",
        r"\midrule",
        r"\checkmark{} & 44.7 & +1.1 $\pm$ 0.2 & fold 0; $\pm$ 2 test seeds \\",
        r"\midrule",
        r"<b> & -- & 0.0 & a|b \\",
        r"\bottomrule",
    ]
    assert r"50 \% \& more\\" in lines
    assert lines[-1] == r"\end{table}"


def test_csv_has_a_line_for_each_number_unrounded(table):
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert list(rows[0].values()) == ["4", "✓", "mIoU", "paper", "44.7", "", "", "", ""]
    assert list(rows[1].values()) == ["4", "✓", "Δ", "ours: x", "1.0625", "0.25", "2 test seeds", "0 2", "3"]
    assert rows[2]["value"] == ""


def test_html_escapes_and_marks_ours(table):
    text = to_html(table)
    assert "<td>&lt;b&gt;</td><td class='number'>–</td>" in text
    assert text.count("<tr class=ours>") == 1
    assert '<th colspan="2">ours ‡</th>' in text
