"""The whole report: from paths to files."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from hdmnet.reporting.baselines import baseline_table
from hdmnet.reporting.collect import Run, collect
from hdmnet.reporting.costs import Costs, count_parameters, measure_costs
from hdmnet.reporting.figures import Figure, draw_class_counts, draw_curves, draw_episode_numbers
from hdmnet.reporting.formats import to_csv, to_latex, to_markdown
from hdmnet.reporting.leaderboard import draw_leaderboards, leaderboards, protocol_tables
from hdmnet.reporting.maps import draw_maps, draw_methods
from hdmnet.reporting.own import own_tables
from hdmnet.reporting.page import make_page
from hdmnet.reporting.tables import Table, make_tables
from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.errors import InputError
from hdmnet.runtime.home import expand_home

_FIGURES = (6, 7, 8, 9, 12, 13)
_FORMATS = {"md": to_markdown, "tex": to_latex, "csv": to_csv}


def write_report(
    named: Iterable[str | Path], out: str | Path, *, num_episodes: int = 4, costs: bool = False
) -> list[str]:
    """Read runs and write `report.html`, `tables/` and `figures/`.

    Args:
        named: Run folders, folders of runs or `result.json` files.
        out: The folder to write; made if needed. Figures of an earlier report that has more of them are removed.
        num_episodes: Episodes in Figures 7, 12 and 13 and of all methods; 0: leave these out.
        costs: Also measure operations and time of every model.

    Returns:
        What was written and left out, a line each, for the terminal.

    Raises:
        FileNotFoundError: A path does not exist or there is no result under any.
        ValueError: `out` is a file, or no result can be read.
    """
    out = expand_home(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; expected a folder, which is made if needed")
    found = collect(named)
    out.mkdir(parents=True, exist_ok=True)  # before the work: a folder that cannot be made is told at once
    counter = _Counter(measure_costs if costs else count_parameters)
    tables = [*leaderboards(found.runs, counter), *protocol_tables(found.runs), *own_tables(found.runs)]
    tables += [*baseline_table(found.runs), *make_tables(found.runs, counter)]
    figures, skipped = _draw(found.runs, out / "figures", num_episodes)
    warnings = [*found.warnings, *skipped, *counter.warnings]
    for table in tables:
        warnings += [f"{table.short}: {warning}" for warning in table.warnings]
        write_table(table, out / "tables")
    _remove_stale(out / "tables", {table.name for table in tables})
    warnings = _merged(warnings)
    without = [str(number) for number in _FIGURES if number not in {figure.number for figure in figures}]
    missing = f"No runs (or no data) for Figure{'s' if len(without) > 1 else ''} {', '.join(without)}."
    write_text(out / "report.html", make_page(tables, figures, found.runs, warnings, missing if without else ""))
    lines = [f"{len(found.runs)} runs read"]
    lines += [f"{table.short}: {f'{len(table.runs)} runs' if table.runs else 'no runs'}" for table in tables]
    lines += [f"{'Figure ' * isinstance(figure.number, int)}{figure.number}: {figure.path.name}" for figure in figures]
    lines += [missing] if without else []
    return [*lines, *(f"warning: {warning}" for warning in warnings), f"report: {out / 'report.html'}"]


def _remove_stale(folder: Path, names: Collection[str]) -> None:
    """Remove an earlier report's tables that this one has no runs of."""
    for path in (
        path for name in ("own_*", "baselines.*", "leaderboard_*", "protocols.*") for path in folder.glob(name)
    ):
        if path.stem not in names:
            path.unlink()


class _Counter:
    """Counts what a model costs, once for each."""

    def __init__(self, count: Callable[[Run], Costs]) -> None:
        self._count = count
        self._known: dict[str, Costs | None] = {}
        self.warnings: list[str] = []

    def __call__(self, run: Run) -> Costs | None:
        config = run.config
        dataset = {key: value for key, value in config["dataset"].items() if key != "fold"}
        parts = [dataset, config["backbone"], config["model"], run.result["shot"]]
        key = json.dumps(parts, sort_keys=True)
        if key not in self._known:
            try:
                self._known[key] = self._count(run)
            except (ValueError, KeyError) as error:
                self._known[key] = None
                self.warnings.append(f"parameters of {run.folder} not counted: {' '.join(str(error).split())}")
        return self._known[key]


def _draw(runs: Sequence[Run], folder: Path, num_episodes: int) -> tuple[list[Figure], list[str]]:
    """All figures in order, and what was left out; pictures of an earlier report that are not drawn now go."""
    maps, no_maps = draw_maps(runs, folder, num_episodes)
    counts, no_counts = draw_class_counts(runs, folder)
    methods, no_methods = draw_methods(runs, folder, num_episodes)
    figures = [*draw_curves(runs, folder), *maps, *counts, *draw_episode_numbers(runs, folder)]
    figures.sort(key=lambda figure: (figure.number, figure.path.stem))
    figures = [*draw_leaderboards(runs, folder), *methods, *figures]
    kept = {figure.path for figure in figures}
    for name in (*(f"figure{number}" for number in _FIGURES), "leaderboard", "methods"):
        for path in folder.glob(f"{name}_*.png"):
            if path not in kept:
                path.unlink()
    return figures, [*no_counts, *no_maps, *no_methods]


def _merged(warnings: Sequence[str]) -> list[str]:
    """Each warning once; those of several tables under the numbers of all."""
    tables: dict[str, list[str]] = {}
    for warning in warnings:
        head, _, text = warning.partition(": ")
        if head.startswith("Table "):
            tables.setdefault(text, []).append(head.removeprefix("Table "))
        else:
            tables.setdefault(warning, [])
    return [
        f"Table{'s' if len(numbers) > 1 else ''} {', '.join(dict.fromkeys(numbers))}: {text}" if numbers else text
        for text, numbers in tables.items()
    ]


def write_table(table: Table, folder: Path) -> None:
    """Write a table in every format."""
    for ending, write in _FORMATS.items():
        write_text(folder / f"{table.name}.{ending}", write(table))


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step; what is no UTF-8 in it is escaped."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
