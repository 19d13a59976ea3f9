"""A table as Markdown, LaTeX (booktabs), CSV and HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterator, Sequence
from itertools import groupby

from hdmnet.reporting.aggregate import Value
from hdmnet.reporting.paper import source
from hdmnet.reporting.tables import Table, heads

MISSING = "–"
CSV_COLUMNS = ("table", "row", "column", "source", "value", "spread", "spread_over", "folds", "num_runs")

_TEX = {letter: f"\\{letter}" for letter in "&%$#_{}"}
_TEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "✓": r"\checkmark{}"}
_TEX |= {"‡": r"$\ddagger$", "†": r"$\dagger$", "Δ": r"$\Delta$", "±": r"$\pm$", "ⁱ": r"$^i$", "ˢ": r"$^s$", "–": "--"}


def show(cell: str | Value) -> str:
    """A cell as plain text: one decimal, ± where there is a spread, `MISSING` where there is no number."""
    if isinstance(cell, str):
        return cell
    if cell.mean is None:
        return MISSING
    value = round(cell.mean, 1) + 0.0  # no minus before a zero
    number = f"{value:+.1f}" if cell.signed and value else f"{value:.1f}"
    return number if cell.spread is None else f"{number} ± {cell.spread:.1f}"


def to_markdown(table: Table) -> str:
    """The table as Markdown, its title above and its notes below."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = ["---:" if number else "---" for number in _numeric(table)]
    lines = [f"**{table.heading}**", "", line(heads(table.columns)), f"|{'|'.join(rule)}|"]
    lines += [line([show(cell) for cell in row]) for row in table.rows]
    lines += ["", *(f"* {note}" for note in (*table.notes, *_source(table)))]
    return "\n".join(lines) + "\n"


def to_latex(table: Table) -> str:
    r"""The table as LaTeX; wants \usepackage{booktabs,amssymb}."""
    kinds = "".join("r" if number else "l" for number in _numeric(table))
    lines = [
        r"% \usepackage{booktabs,amssymb}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(table.title)}}}",
        rf"\label{{tab:hdmnet{table.number}}}",
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
    ]
    groups = list(_groups(table))
    if any(name for name, *_ in groups):
        spans = [rf"\multicolumn{{{width}}}{{c}}{{{_tex(name)}}}" for name, _, width in groups]
        rules = [rf"\cmidrule(lr){{{start + 1}-{start + width}}}" for name, start, width in groups if name]
        lines += [" & ".join(spans) + r" \\", "".join(rules)]
    lines += [" & ".join(_tex(name) for _, name in table.columns) + r" \\", r"\midrule"]
    for index, row in enumerate(table.rows):
        if index and table.ours[index] and not table.ours[index - 1] and not any(table.ours[:index]):
            lines.append(r"\midrule")
        lines.append(" & ".join(_tex(show(cell)) for cell in row) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", "", r"\footnotesize"]
    lines += [_tex(note) + r"\\" for note in table.notes]
    lines += [*map(_tex, _source(table)), r"\end{table}"]
    return "\n".join(lines) + "\n"


def _source(table: Table) -> list[str]:
    """Where the paper's numbers in it come from, if there are any."""
    return [] if isinstance(table.number, str) else [f"Paper's numbers: {source()}"]


def to_csv(table: Table) -> str:
    """Every number on a line of its own, unrounded; an empty value is a missing one."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row, column, whose, value in table.entries:
        numbers = ["" if number is None else f"{number:.6g}" for number in (value.mean, value.spread)]
        basis = [value.over, " ".join(map(str, value.folds)), value.num_runs or ""]
        writer.writerow([table.number, row, column, whose, *numbers, *basis])
    return file.getvalue()


def to_html(table: Table) -> str:
    """The table as an HTML figure."""
    head = []
    groups = list(_groups(table))
    if any(name for name, *_ in groups):
        head.append("".join(f'<th colspan="{width}">{html.escape(name)}</th>' for name, _, width in groups))
    head.append("".join(f"<th>{html.escape(name)}</th>" for _, name in table.columns))
    body = []
    for row, ours in zip(table.rows, table.ours, strict=True):
        kinds = ["" if isinstance(cell, str) else " class='number'" for cell in row]
        cells = [f"<td{kind}>{html.escape(show(cell))}</td>" for kind, cell in zip(kinds, row, strict=True)]
        body.append(f"<tr{' class=ours' * ours}>{''.join(cells)}</tr>")
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return (
        f'<h3 id="{html.escape(table.name)}">{html.escape(table.heading)}</h3>\n<div class="wide"><table>\n<thead>'
        + "".join(f"<tr>{line}</tr>" for line in head)
        + "</thead>\n<tbody>"
        + "\n".join(body)
        + f'</tbody>\n</table></div>\n<ul class="notes">{notes}</ul>\n'
    )


def _groups(table: Table) -> Iterator[tuple[str, int, int]]:
    """Column groups in order: name, first column, number of columns."""
    start = 0
    for name, columns in groupby(table.columns, key=lambda column: column[0]):
        width = len(list(columns))
        yield name, start, width
        start += width


def _numeric(table: Table) -> list[bool]:
    """Of each column whether it holds numbers."""
    return [not isinstance(cell, str) for cell in table.rows[0]]


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)
