"""Figures 6, 8 and 9 from finished runs; Figures 7, 12 and 13 are drawn in `maps.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hdmnet.callbacks.curves import read_metrics, running_mean
from hdmnet.reporting.collect import Run
from hdmnet.reporting.paper import paper_tables
from hdmnet.reporting.settings import settings_of, without
from hdmnet.reporting.studies import Study, base_label, label_apart, row_of, told_method
from hdmnet.visual.colours import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from hdmnet.visual.figure import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WITH, WITHOUT = "table6_kl_teacher", "table6_none"  # the rows with and without correlation distillation
STYLES = {WITH: ("with distillation", BLUE, "-"), WITHOUT: ("without distillation", VERMILION, "--")}
_MOST_CLASSES = 6  # and more, in Fig. 8
_EPISODE_LOOKS: tuple[dict[str, Any], ...] = (  # of Fig. 9
    {"color": VERMILION, "marker": "o", "linestyle": "--"},
    {"color": BLUE, "marker": "s", "linestyle": "-"},
    {"color": GREEN, "marker": "^", "linestyle": ":"},
    {"color": PURPLE, "marker": "D", "linestyle": "-."},
    {"color": ORANGE, "marker": "v", "linestyle": (0, (1, 3))},
)


@dataclass(frozen=True)
class Figure:
    """A picture of the report."""

    number: int | str  # of the paper's figure; a name where it is none of the paper's
    caption: str  # what it shows, of which runs
    path: Path  # the PNG

    @property
    def heading(self) -> str:
        """Its number, where it has one, and its caption."""
        return self.caption if isinstance(self.number, str) else f"Figure {self.number}. {self.caption}"


def by_dataset(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs by the name of their data set, in order of names."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(str(run.result["dataset"]), []).append(run)
    return dict(sorted(groups.items()))


def distillation_pairs(runs: Iterable[Run], usable: Callable[[Run], bool]) -> list[Study]:
    """Studies of usable runs with and without correlation distillation, that differ in nothing else.

    Returns:
        The studies with rows `WITH` and `WITHOUT`, those with most pairs of fold and seed first.
    """
    studies: dict[Any, Study] = {}
    names = paper_tables()[6].ablations
    for run in filter(usable, runs):
        row, axes, _ = row_of(run, names)
        if row in STYLES:
            study = studies.setdefault(without(settings_of(run), axes), Study(axes=axes))
            study.rows.setdefault(row, []).append(run)
    found = [study for study in studies.values() if pairs_of(study)]
    label_apart(found, with_shot=True)
    return sorted(found, key=lambda study: (-len(pairs_of(study)), study.label))


def pairs_of(study: Study) -> list[tuple[Run, Run]]:
    """(with, without) of a study for each fold and training seed that has both, in order; the newest of each."""
    sides: list[dict[tuple[int, int], Run]] = [{}, {}]
    for side, row in zip(sides, (WITH, WITHOUT), strict=True):
        for run in sorted(study.rows.get(row, []), key=lambda run: run.modified):
            side[run.result["fold"], run.result["seed"]] = run
    return [(sides[0][key], sides[1][key]) for key in sorted(sides[0].keys() & sides[1].keys())]


# ----------------------------------------------------------------------------------------------------------- Fig. 6


def draw_curves(runs: Sequence[Run], folder: Path) -> list[Figure]:
    """Fig. 6: training and validation with and without distillation, by fold; a figure for each data set.

    Args:
        runs: All there are; those with a `metrics.csv` are used.
        folder: Where to.
    """
    figures = []
    for dataset, group in by_dataset(runs).items():
        studies = distillation_pairs(group, lambda run: (run.folder / "metrics.csv").is_file())
        if not studies:
            continue
        pairs = pairs_of(studies[0])
        folds = sorted({one.result["fold"] for one, _ in pairs})
        figure = new_figure(max(3.6 * len(folds), 6.0), 5.6)
        axes = figure.subplots(2, len(folds), squeeze=False, sharex="col", sharey="row")
        for column, fold in enumerate(folds):
            own = [pair for pair in pairs if pair[0].result["fold"] == fold]
            _curves_of_fold((axes[0, column], axes[1, column]), own)
            axes[0, column].set_title(f"fold {fold}")
        highest = max(panel.dataLim.y1 for panel in axes[1])
        axes[1, 0].set_ylim(0, 1.1 * highest if highest > 0 else 1)
        axes[0, 0].set_ylabel("training loss\n(segmentation, final)")
        axes[1, 0].set_ylabel("validation mIoU (%)")
        if axes[0, 0].get_legend_handles_labels()[0]:  # none where runs were too short to log a loss
            figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=2, frameon=False, loc="outside lower center")
        figure.suptitle(studies[0].label, fontsize=10, wrap=True)
        seeds = sorted({one.result["seed"] for one, _ in pairs})
        told = f"training seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
        caption = (
            f"Training loss (running mean) and validation mIoU on the novel classes, with and without correlation "
            f"distillation; {studies[0].label}, {told}"
            + (" (thin), their mean thick" if len(seeds) > 1 else "")
            + ". The paper's figure shows training mIoU, which is not logged."
        )
        figures.append(Figure(6, caption, save_figure(figure, folder / f"figure6_{dataset}.png")))
    return figures


def _curves_of_fold(axes: Sequence[Axes], pairs: Sequence[tuple[Run, Run]]) -> None:
    """Draw the runs of one fold: training above, validation below."""
    for side, row in enumerate((WITH, WITHOUT)):
        label, colour, style = STYLES[row]
        series = [read_metrics(pair[side].folder / "metrics.csv") for pair in pairs]
        columns = ("train/final", 1.0, True), ("val/miou", 100.0, False)
        for panel, (column, factor, smooth) in zip(axes, columns, strict=True):
            lines = [_line(metrics[column], factor, smooth) for metrics in series if column in metrics]
            thin = len(lines) > 1
            thick: dict[str, Any] = {"linewidth": 1.8, "label": label, "marker": "" if smooth else "o"}
            for steps, values in lines:
                look = {"linewidth": 0.7, "alpha": 0.5} if thin else thick
                panel.plot(steps, values, style, color=colour, markersize=3.5, **look)
            if thin and all(np.array_equal(lines[0][0], steps) for steps, _ in lines):
                mean = np.mean([values for _, values in lines], axis=0)
                panel.plot(lines[0][0], mean, style, color=colour, linewidth=2.0, label=label)
            panel.grid(alpha=0.3)
    axes[1].set_xlabel("optimiser step")


def _line(series: tuple[list[float], list[float]], factor: float, smooth: bool) -> tuple[Any, Any]:
    """Steps and values, (n,) each; smoothed by the running mean of a tenth of the points."""
    steps, values = np.asarray(series[0]), [factor * value for value in series[1]]
    return steps, np.asarray(running_mean(values, max(1, len(values) // 10)) if smooth else values)


# ----------------------------------------------------------------------------------------------------------- Fig. 8


def draw_class_counts(runs: Sequence[Run], folder: Path) -> tuple[list[Figure], list[str]]:
    """Fig. 8: how many classes a picture holds, by fold; a figure for each data set.

    Args:
        runs: All there are; one of each data set says where the pictures are.
        folder: Where to.

    Returns:
        The figures, and a line for each data set that is not there.
    """
    figures, warnings = [], []
    for dataset, group in by_dataset(runs).items():
        try:
            counts = class_counts(max(group, key=lambda run: run.modified))
        except (ValueError, OSError) as error:
            warnings.append(f"Figure 8: {dataset} left out, its pictures are not there: {' '.join(str(error).split())}")
            continue
        figure = new_figure(7.0, 3.8)
        axes = figure.subplots()
        positions, width = np.arange(1, _MOST_CLASSES + 1), 0.8 / len(counts)
        looks = zip(cycle((BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)), cycle(("", "//", "..", "\\\\")), strict=True)
        for index, ((fold, numbers), (colour, hatch)) in enumerate(zip(counts.items(), looks, strict=False)):
            left = positions + (index - (len(counts) - 1) / 2) * width
            total = sum(numbers)
            shares = [100 * number / total if total else 0.0 for number in numbers]
            label = f"fold {fold} ({total} pictures)"
            axes.bar(left, shares, width, color=colour, hatch=hatch, edgecolor="white", label=label)
        axes.set_xticks(positions, [*map(str, positions[:-1]), f"{_MOST_CLASSES} or more"])
        axes.set(xlabel="classes in a picture", ylabel="share of the fold's pictures (%)")
        axes.set_title(f"{dataset}: classes in a test picture")
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        figure.legend(fontsize=9, frameon=False, ncols=2, loc="outside lower center")
        caption = (
            f"How many classes a test picture of {dataset} holds, by fold: validation pictures that can be a query "
            "(a novel class of the fold with enough area); every class in it counts, base or novel."
        )
        figures.append(Figure(8, caption, save_figure(figure, folder / f"figure8_{dataset}.png")))
    return figures, warnings


def class_counts(run: Run) -> dict[int, list[int]]:
    """Numbers of query pictures with 1, 2, … `_MOST_CLASSES` or more classes, by fold, of a run's data set.

    Raises:
        ValueError: The config does not fit this version, or a mask is damaged.
        FileNotFoundError: The data set is not there.
    """
    from hdmnet.config.stored import stored_config
    from hdmnet.data.catalog import load_catalog
    from hdmnet.run.build import build_dataset, skipped_files

    counts = {}
    cfg = stored_config(run.config, str(run.path))
    cache = Path(str(cfg.paths.cache_dir))
    for fold in range(build_dataset(cfg).num_folds):
        if "fold" in cfg.dataset:  # the embedded pictures are drawn for a fold
            cfg.dataset.fold = fold
        dataset = build_dataset(cfg)
        folder = cache / "catalogs" if cache.is_dir() else None
        catalog = load_catalog(dataset, "val", folder, skip=skipped_files(cfg) is not None, progress=False)
        view = catalog.view(dataset.class_split(fold).val, min_area=dataset.min_area)
        per_image = np.bincount(catalog.image_index, minlength=len(catalog))
        queries = per_image[np.isin(catalog.ids, view.ids)]
        counts[fold] = np.bincount(np.minimum(queries, _MOST_CLASSES), minlength=_MOST_CLASSES + 1)[1:].tolist()
    return counts


# ----------------------------------------------------------------------------------------------------------- Fig. 9


def draw_episode_numbers(runs: Sequence[Run], folder: Path) -> list[Figure]:
    """Fig. 9: mIoU from one test seed to the next, with few and with many test episodes, by fold.

    Args:
        runs: All there are; evaluations of one setting, fold and training seed with unequal numbers of episodes and at
            least two test seeds are compared.
        folder: Where to.
    """
    figures = []
    for dataset, group in by_dataset(runs).items():
        panels = _episode_panels(group)
        if not panels:
            continue
        figure = new_figure(max(3.4 * len(panels), 6.0), 4.6)
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        numbers = sorted({number for panel in panels.values() for number in panel})
        for panel, (fold, own) in zip(axes, panels.items(), strict=True):
            for number, run in sorted(own.items()):
                values = [100 * value for value in run.result["test"]["miou_per_seed"] if value is not None]
                look = _EPISODE_LOOKS[numbers.index(number) % len(_EPISODE_LOOKS)]
                label = f"{number:,}: range {max(values) - min(values):.1f}"
                panel.plot(range(1, len(values) + 1), values, label=label, markersize=4, **look)
            panel.set(title=f"fold {fold}", xlabel="test seed")
            panel.locator_params(axis="x", integer=True)
            panel.grid(alpha=0.3)
            panel.legend(fontsize=9, title="episodes", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        axes[0].set_ylabel("mIoU (%)")
        one = next(iter(next(iter(panels.values())).values()))
        figure.suptitle(f"{dataset}, {one.method}: mIoU by test seed")
        caption = (
            f"mIoU over test seeds with {' and '.join(f'{number:,}' for number in numbers)} episodes a seed; "
            f"{base_label(one, told_method(one.method))}. Range: largest less smallest, in points."
        )
        figures.append(Figure(9, caption, save_figure(figure, folder / f"figure9_{dataset}.png")))
    return figures


def _episode_panels(runs: Iterable[Run]) -> dict[int, dict[int, Run]]:
    """By fold, the runs by number of episodes, of the setting that has most folds."""
    settings: dict[Any, dict[int, dict[int, Run]]] = {}
    for run in sorted(runs, key=lambda run: run.modified):
        if run.num_test_seeds > 1:
            key = (without(settings_of(run), ()), run.result["seed"])
            panel = settings.setdefault(key, {}).setdefault(run.result["fold"], {})
            panel[int(run.result["test"]["num_episodes"])] = run
    panels = [{fold: own for fold, own in sorted(found.items()) if len(own) > 1} for found in settings.values()]
    return max(panels, key=len, default={})
