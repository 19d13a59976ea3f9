"""Two tests on the same episodes beside each other: `python -m hdmnet.report --compare A B`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hdmnet.reporting.aggregate import Value
from hdmnet.reporting.collect import RESULT, Run, collect
from hdmnet.reporting.figures import Figure
from hdmnet.reporting.formats import to_markdown
from hdmnet.reporting.page import make_comparison
from hdmnet.reporting.settings import deviations
from hdmnet.reporting.tables import Table
from hdmnet.reporting.writing import write_table, write_text
from hdmnet.runtime.errors import InputError
from hdmnet.runtime.home import expand_home
from hdmnet.tasks.episode_table import EPISODES, EpisodeTable, join_tables, read_episodes
from hdmnet.tasks.intervals import Estimate, estimate
from hdmnet.visual.colours import BLUE, VERMILION
from hdmnet.visual.figure import new_figure, save_figure

_FINAL, _NAMES = "final", ("A", "B")
_SIZES = ("small", "medium", "large")  # thirds of the episodes, by the object's share of the picture
_MOST = 10  # episodes that differ most
_HEAD = [("", "episodes"), ("mIoU (%)", "A"), ("mIoU (%)", "B"), ("", "A − B"), ("", "95 % interval")]


def compare_runs(first: str | Path, second: str | Path, out: str | Path | None) -> list[str]:
    """Compare the final predictions of two tests, episode by episode.

    Args:
        first: A run's or an evaluation's folder, or its `result.json`; called A.
        second: The other, B.
        out: Folder for `compare.html`, the tables and the histogram; None: none is written.

    Returns:
        Lines for the terminal.

    Raises:
        FileNotFoundError: A result is not there, or its `episodes.csv` is not.
        ValueError: They are not of the same episodes, or damaged.
    """
    runs = [_read(one) for one in (first, second)]
    pair = _pair(runs)
    absent_is_zero = any((run.config.get("protocol") or {}).get("absent_classes") == "zero" for run in runs)
    whole = estimate(pair, *_NAMES, absent_is_zero=absent_is_zero)
    if whole is None:
        raise InputError(f"{runs[0].path} and {runs[1].path} have no episode with a pixel to count")
    tables = [_overall(runs, pair, whole), _by_class(pair), _by_size(pair), _most_different(pair)]
    lines = [line for table in tables for line in [*to_markdown(table).rstrip().splitlines(), ""]]
    if out is not None:
        folder = expand_home(out)
        for table in tables:
            write_table(table, folder / "tables")
        figure = _histogram(pair, folder / "figures" / "compare_ious.png")
        write_text(folder / "compare.html", make_comparison(tables, [figure]))
        lines.append(f"report: {folder / 'compare.html'}")
    return lines


def _read(named: str | Path) -> Run:
    """The one result of a folder or file."""
    path = expand_home(named)
    found = collect([path / RESULT if (path / RESULT).is_file() else path]).runs
    if len(found) != 1:
        raise InputError(f"{named} holds {len(found)} results; expected the folder of one run, or its {RESULT}")
    return found[0]


def _pair(runs: Sequence[Run]) -> EpisodeTable:
    """The final predictions of two runs, "A" and "B", in one table; of the test seeds that both have.

    Raises:
        ValueError: Their episodes differ.
    """
    hashes = [run.manifests for run in runs]
    seeds = min(map(len, hashes))
    unlike = [seed for seed, pair in enumerate(zip(*hashes, strict=False)) if pair[0] != pair[1]]
    if unlike or not seeds:
        told = " and ".join(f"{one.folder} ({hashes[place][unlike[0]][:8]})" for place, one in enumerate(runs))
        raise InputError(
            f"other test episodes (manifest hashes): {told}; expected the same data set, fold, shot, protocol and "
            "number of episodes: evaluate both checkpoints alike"
        )
    tables = []
    for name, run in zip(_NAMES, runs, strict=True):
        table = read_episodes(run.folder / EPISODES, list(run.result["test"]["iou_per_class"]))
        if _FINAL not in table.pixels:
            raise InputError(f"{run.folder / EPISODES} has no episode: nothing was tested")
        table = table.choose(table.seed < seeds)
        tables.append(EpisodeTable(**{**vars(table), "pixels": {name: table.pixels[_FINAL]}}))
    pair = join_tables(tables, tables[0].class_names)
    if not (len(pair) == len(tables[0]) == len(tables[1])) or tables[0].queries != tables[1].queries:
        raise InputError(f"{EPISODES} of {runs[0].folder} and {runs[1].folder} hold other episodes: one was cut short")
    return pair


def _points(value: float, *, signed: bool = False) -> Value:
    return Value(100 * value if np.isfinite(value) else None, num_runs=1, signed=signed)


def _row(found: Estimate | None, episodes: int) -> tuple[list[str | Value], list[Value]]:
    """Cells of `_HEAD`, and the numbers among them."""
    if found is None:
        return [str(episodes), Value(), Value(), Value(), ""], []
    interval = ""
    if np.isfinite(found.low):
        interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}" + "*" * (found.low > 0 or found.high < 0)
    values = [*map(_points, found.values), _points(found.difference, signed=True)]
    return [str(episodes), *values, interval], values


def _table(name: str, title: str, label: str, measure: str = "mIoU (%)") -> Table:
    return Table(f"compare_{name}", title, [("", label), *((group and measure, head) for group, head in _HEAD)])


def _add(table: Table, label: str, found: Estimate | None, episodes: int) -> None:
    cells, values = _row(found, episodes)
    table.add([label, *cells], ours=True)
    if values:
        table.record(label, _HEAD[1:4], "ours", values)


def _overall(runs: Sequence[Run], pair: EpisodeTable, found: Estimate) -> Table:
    table = _table("miou", "Over all classes", "")
    _add(table, "all classes", found, len(pair))
    for name, run in zip(_NAMES, runs, strict=True):
        keys = ("dataset", "fold", "shot", "backbone", "seed")
        about = ", ".join(f"{key} {run.result[key]}" for key in keys)
        setting = ", ".join(deviations(run))
        table.notes.append(f"{name}: {run.folder}: {run.method}, {about}{', ' * bool(setting)}{setting}")
    table.notes.append(
        "Interval of the difference over the query pictures of each class, each with all its episodes "
        "(docs/reliability.md). * does not hold 0. Training seeds are another matter: "
        "an interval is of these two checkpoints."
    )
    return table


def _by_class(pair: EpisodeTable) -> Table:
    table = _table("classes", "By class", "class", "IoU (%)")
    for value, name in enumerate(pair.class_names):
        own = pair.choose(pair.class_index == value)
        _add(table, name, estimate(own, *_NAMES), len(own))
    return table


def _by_size(pair: EpisodeTable) -> Table:
    table = _table("sizes", "By the object's share of the picture", "object")
    shares = pair.object_shares(_NAMES[0])
    ends = [0.0, *np.quantile(shares, [1 / 3, 2 / 3]).tolist(), 1.0]
    for place, size in enumerate(_SIZES):
        last = place == len(_SIZES) - 1
        own = pair.choose((shares >= ends[place]) & ((shares < ends[place + 1]) | last))
        label = f"{size}, {100 * ends[place]:.1f} to {100 * ends[place + 1]:.1f} %"
        _add(table, label, estimate(own, *_NAMES), len(own))
    table.notes.append(
        "Thirds of the episodes; of each the mean over the classes that it has, pooled as the metric does."
    )
    return table


def _most_different(pair: EpisodeTable) -> Table:
    """The episodes whose IoUs differ most, whichever way."""
    columns = [("", "episode"), ("", "class"), ("", "query"), ("IoU (%)", "A"), ("IoU (%)", "B"), ("", "A − B")]
    table = Table("compare_episodes", "Episodes that differ most", columns)
    ious = np.stack([np.nan_to_num(pair.ious(name)) for name in _NAMES], axis=1)
    gaps = ious[:, 0] - ious[:, 1]
    for one in np.argsort(-abs(gaps), kind="stable")[:_MOST].tolist():
        values = [*map(_points, ious[one].tolist()), _points(float(gaps[one]), signed=True)]
        where = f"seed {pair.seed[one]}, episode {pair.index[one]}"
        labels = [where, pair.class_names[pair.class_index[one]], pair.queries[one]]
        table.add([*labels, *values], ours=True)
        table.record(", ".join(labels), columns[3:], "ours", values)
    table.notes.append("scripts/inspect/inspect_episode.py CKPT --seed S --episode N draws one whole.")
    return table


def _histogram(pair: EpisodeTable, path: Path) -> Figure:
    """How many episodes have which IoU."""
    figure = new_figure(7.5, 4)
    axes = figure.subplots()
    bins = np.linspace(0, 100, 21).tolist()
    for name, colour in zip(_NAMES, (BLUE, VERMILION), strict=True):
        ious = 100 * pair.ious(name)
        known = ious[np.isfinite(ious)]
        axes.hist(
            known, bins, histtype="step", linewidth=1.8, color=colour, label=f"{name}, median {np.median(known):.1f}"
        )
    axes.set_title("IoU of each episode")
    axes.set_xlabel("IoU of an episode (%)")
    axes.set_ylabel("episodes")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    return Figure("compare", f"IoU of the {len(pair)} episodes, each on its own.", save_figure(figure, path))
