"""One self-contained HTML page of all tables and figures: inline style, pictures as data URIs, no script."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from hdmnet.reporting.collect import Run
from hdmnet.reporting.figures import Figure
from hdmnet.reporting.formats import to_html
from hdmnet.reporting.paper import source
from hdmnet.reporting.tables import Table

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1250px; margin: 2em auto;
       padding: 0 1em; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.2em; border-bottom: 2px solid #0072B2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; border-top: 2px solid #1a1a1a; border-bottom: 2px solid #1a1a1a; }
th, td { padding: .22em .6em; text-align: left; vertical-align: top; }
thead tr:last-child th { border-bottom: 1px solid #1a1a1a; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
tr.ours { background: #e8f1f8; }
td:last-child:not(.number) { min-width: 14em; } /* text: else a narrow screen makes tall rows */
.notes, figcaption { font-size: 12.5px; color: #444; }
.notes { overflow-wrap: anywhere; }
figure { margin: 1.5em 0; } figure img { max-width: 100%; height: auto; border: 1px solid #ddd; }
.warnings { background: #fdf3e1; border-left: 4px solid #E69F00; padding: .6em 2em; overflow-wrap: anywhere; }
code { font-size: 12px; overflow-wrap: anywhere; }
"""


def make_page(
    tables: Sequence[Table], figures: Sequence[Figure], runs: Sequence[Run], warnings: Sequence[str], missing: str
) -> str:
    """Lay out the page as HTML.

    Args:
        tables: In order.
        figures: In order; their files must be there.
        runs: All that were read.
        warnings: One line each.
        missing: Which figures of the paper have no runs; may be empty.
    """
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    boards = [table for table in tables if table.compares]
    own = [table for table in tables if isinstance(table.number, str) and not table.compares]
    papers = [table for table in tables if isinstance(table.number, int)]
    drawn = [figure for figure in figures if isinstance(figure.number, str)]
    empty = [str(table.number) for table in papers if not table.runs]
    parts = [
        _begin("hdmnet: report"),
        "<h1>hdmnet: methods compared, and the paper's tables with our numbers</h1>",
        f"<p>{len(runs)} runs, {date}. Paper: {html.escape(source())}</p>",
        "<p>Every number of ours is the mean over folds of the mean over training seeds; ± is the sample standard "
        "deviation over training seeds where several runs differ only in the seed, else over test seeds: see "
        "the last column. – is a missing cell.</p>",
    ]
    if empty:
        parts.append(f"<p>No runs for Table{'s' if len(empty) > 1 else ''} {', '.join(empty)}.</p>")
    if missing:
        parts.append(f"<p>{html.escape(missing)}</p>")
    told = "".join(f"<li>{html.escape(line)}</li>" for line in warnings)
    parts += ["<h2>Warnings</h2>", f'<ul class="warnings">{told}</ul>' if told else "<p>None.</p>"]
    if boards:
        parts += ["<h2>Leaderboard</h2>", *map(to_html, boards), *map(_figure, drawn)]
    if own:
        parts += ["<h2>Your data sets</h2>", *map(to_html, own)]
    parts += ["<h2>The paper's tables</h2>" if own else "<h2>Tables</h2>", *map(to_html, papers)]
    parts += ["<h2>Figures</h2>", *(_figure(figure) for figure in figures if figure not in drawn)]
    parts += ["<h2>Runs</h2>", _runs(runs), "</body></html>"]
    return "\n".join(parts) + "\n"


def make_comparison(tables: Sequence[Table], figures: Sequence[Figure]) -> str:
    """Lay out the page of two tests on the same episodes; arguments as of `make_page`."""
    title = html.escape(tables[0].heading)
    parts = [_begin(title), f"<h1>{title}</h1>", *map(to_html, tables), *map(_figure, figures), "</body></html>"]
    return "\n".join(parts) + "\n"


def _begin(title: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>"
    )


def _figure(figure: Figure) -> str:
    data = base64.b64encode(figure.path.read_bytes()).decode("ascii")
    caption = html.escape(figure.heading)
    name = html.escape(figure.path.stem, quote=True)
    return (
        f'<figure id="{name}"><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _runs(runs: Sequence[Run]) -> str:
    """A table of what was read: where it lies, what ran, on which episodes."""
    heads = "folder|method|data set|backbone|fold|shot|ablation|seed|test|mIoU (%)|commit|episodes' hash|date"
    lines = []
    for run in sorted(runs, key=lambda run: str(run.path)):
        result = run.result
        commit = str(result.get("git_commit") or "unknown")[:10] + ("+" if result.get("git_dirty") else "")
        miou = result["test"]["miou"]
        cells = (
            run.folder,
            *(result[key] for key in ("method", "dataset", "backbone", "fold", "shot")),
            run.ablation or "–",
            result["seed"],
            f"{result['test']['num_episodes']} x {run.num_test_seeds} seeds{', evaluation' * run.is_evaluation}",
            "–" if miou is None else f"{100 * miou:.1f}{_interval(result['test'])}",
            commit,
            ", ".join(manifest[:8] for manifest in run.manifests[:3]) + (" …" if len(run.manifests) > 3 else ""),
            datetime.fromtimestamp(run.modified, UTC).strftime("%Y-%m-%d %H:%M"),
        )
        lines.append("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads.split("|"))
    note = (
        "<p class='notes'>In brackets: the 95 % interval of the mIoU, over the query pictures. + after the commit: "
        "uncommitted changes. Dates are those of result.json.</p>"
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>{note}'


def _interval(test: Mapping[str, Any]) -> str:
    """That of an mIoU in brackets; nothing of earlier results."""
    low, high = test.get("miou_interval") or (None, None)
    return "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
