"""Pictures of test episodes: correlation maps of two runs (Figures 7, 12 and 13), the same episodes by all methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hdmnet.reporting.collect import Run
from hdmnet.reporting.figures import STYLES, WITH, WITHOUT, Figure, by_dataset, distillation_pairs, pairs_of
from hdmnet.reporting.studies import Study
from hdmnet.runtime.errors import InputError, MissingFileError

if TYPE_CHECKING:
    from hdmnet.data.types import Episode
    from hdmnet.visual.episode_grid import Picture


@dataclass(frozen=True)
class _Episodes:
    """Some test episodes and what a run's model makes of them."""

    batches: list[Episode]  # one episode each, collated, normalised
    outputs: list[Any]  # the model's answer to each
    class_names: tuple[str, ...]  # of the novel classes
    backbone: Any  # its config, whose mean and deviation undo the normalisation


def draw_maps(runs: Sequence[Run], folder: Path, num_episodes: int) -> tuple[list[Figure], list[str]]:
    """Draw the figures of one pair of runs of each data set, on the CPU.

    Args:
        runs: All there are; those with a checkpoint are used.
        folder: Where to.
        num_episodes: How many episodes; 0: no figure.

    Returns:
        The figures, and a line for each data set that cannot be drawn.
    """
    figures: list[Figure] = []
    warnings: list[str] = []
    for dataset, group in by_dataset(runs).items() if num_episodes else ():
        studies = distillation_pairs(group, lambda run: run.checkpoint is not None)
        if not studies:
            continue
        pair = pairs_of(studies[0])[0]
        try:
            seen = [_run_episodes(run, num_episodes) for run in pair]
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            warnings.append(f"Figures 7, 12 and 13: {dataset} left out, its runs cannot be shown: {reason}")
            continue
        figures += _draw(dataset, studies[0], pair, seen, folder)
    return figures, warnings


def draw_methods(runs: Sequence[Run], folder: Path, num_episodes: int) -> tuple[list[Figure], list[str]]:
    """Draw the same test episodes of every method on each data set: query with truth, one column a method.

    Args:
        runs: All there are; of each method the first with a checkpoint, of the fold, shot and episodes that most share.
        folder: Where to.
        num_episodes: How many episodes; 0: no figure.

    Returns:
        The figures, and a line for each run that cannot be shown.
    """
    from hdmnet.visual.episode_grid import save_sheet

    figures: list[Figure] = []
    warnings: list[str] = []
    for dataset, group in by_dataset(runs).items() if num_episodes else ():
        seen = {}
        for run in _comparable(group):
            try:
                seen[run.method] = _run_episodes(run, num_episodes)
            except (ValueError, OSError) as error:
                warnings.append(f"{run.folder} is not among the methods' pictures: {' '.join(str(error).split())}")
        if len(seen) > 1:
            path = folder / f"methods_{dataset}.png"
            one = _comparable(group)[0].result
            where = f"{dataset}, fold {one['fold']}, {one['shot']}-shot"
            save_sheet([_methods_row(seen, number) for number in range(num_episodes)], path, f"{where}: every method")
            figures.append(Figure("methods", f"{where}: the first test episodes, not chosen, by every method.", path))
    return figures, warnings


def _comparable(runs: Sequence[Run]) -> list[Run]:
    """One run a method, all of one fold, shots and list of episodes: those that most methods have."""
    groups: dict[tuple[Any, ...], dict[str, Run]] = {}
    for run in runs:
        if run.checkpoint is not None and not run.is_control:
            key = run.result["fold"], run.result["shot"], run.manifests[:1]
            groups.setdefault(key, {}).setdefault(run.method, run)
    return list(max(groups.values(), key=len, default={}).values())


def _methods_row(seen: Mapping[str, _Episodes], number: int) -> Picture:
    """One episode: supports, query with truth, and what every method makes of it, in the first one's frame."""
    import torch

    from hdmnet.models.method import Segmentation
    from hdmnet.tasks.feature_store import resize
    from hdmnet.visual.episode_grid import draw_batch_item

    first = next(iter(seen.values()))
    batch = first.batches[number]
    size = batch.query_image.shape[-2:]
    masks = {name: resize(one.outputs[number].prediction, size).bool() for name, one in seen.items()}
    scores = {name: torch.stack([~mask, mask], dim=1).float() for name, mask in masks.items()}
    shown = {
        "episode": batch,
        "output": Segmentation(next(iter(scores.values())), (size[0], size[1]), auxiliary=scores),
        "class_names": first.class_names,
    }
    mean, std = list(first.backbone.mean), list(first.backbone.std)
    return draw_batch_item(shown, 0, mean=mean, std=std, reported=tuple(seen))


def _run_episodes(run: Run, num_episodes: int) -> _Episodes:
    """Run the first episodes of the first test seed through a run's model.

    Raises:
        ValueError: Config, checkpoint or data do not fit this version.
        FileNotFoundError: Data or checkpoint are not there.
    """
    import torch

    from hdmnet.config.stored import stored_config
    from hdmnet.data.types import collate_episodes
    from hdmnet.run import build
    from hdmnet.run.checkpoints import run_entry, run_state_dict
    from hdmnet.runtime.checkpoint_file import read_checkpoint

    path = run.checkpoint
    if path is None:
        raise MissingFileError(f"{run.folder} has no checkpoint any more; expected checkpoints/best.ckpt")
    content = read_checkpoint(path)
    entry = run_entry(content, path)
    if entry is None:
        raise InputError(f"{path} is not of an hdmnet run; expected checkpoints/best.ckpt of a run's folder")
    cfg = stored_config(run.config, str(run.path))
    cache = Path(str(cfg.paths.cache_dir)) / "catalogs"
    size = {"num_test_seeds": 1, "num_test_episodes": num_episodes, "num_workers": 0}
    found = cache if cache.is_dir() else None
    data = build.build_few_shot_data(cfg, build.build_dataset(cfg), cache_dir=found, **size)
    data.setup("test")
    model = build.build_trained(cfg, run_state_dict(content), path, entry["facts"]).eval()
    dataset: Any = data.test_dataloader().dataset
    batches, outputs = [], []
    with torch.inference_mode():
        for index in range(num_episodes):
            batch = data.on_after_batch_transfer(collate_episodes([dataset[index]]), 0)
            batches.append(batch)
            outputs.append(model(batch.query_image, batch.support_images, batch.support_masks))
    return _Episodes(batches, outputs, tuple(data.novel_names), cfg.backbone)


def _row(seen: _Episodes, number: int, suffix: str, num_maps: int | None) -> Picture:
    """One episode: supports, query, prediction and the correlation maps of the first `num_maps` stages (None: all)."""
    from hdmnet.models.method import Segmentation
    from hdmnet.visual.episode_grid import draw_batch_item

    output = seen.outputs[number]
    maps = {"correlation": output.maps.get("correlation", [])[:num_maps]}
    shown = {
        "episode": seen.batches[number],
        "output": Segmentation(output.scores, output.size, maps=maps),
        "class_names": [f"{name}{suffix}" for name in seen.class_names],
    }
    return draw_batch_item(shown, 0, mean=list(seen.backbone.mean), std=list(seen.backbone.std))


def _draw(dataset: str, study: Study, pair: tuple[Run, Run], seen: Sequence[_Episodes], folder: Path) -> list[Figure]:
    """The three figures of a pair of runs (with, without)."""
    from hdmnet.visual.episode_grid import save_sheet

    one = pair[0].result
    where = f"{study.label}, fold {one['fold']}, training seed {one['seed']}"
    names = [STYLES[row][0] for row in (WITH, WITHOUT)]
    numbers = range(len(seen[0].batches))

    def row(number: int, side: int, num_maps: int | None) -> Picture:
        return _row(seen[side], number, f", {names[side]}", num_maps)

    sides = (1, 0)  # without first, as the paper has it
    chosen = "the first test episodes, not chosen"
    legend = "Each map is stretched from its own least to its own largest value (above it); white: the truth's outline."
    sheets = {
        7: (
            [row(number, side, None) for number in numbers[:2] for side in sides],
            f"Correlation maps of all stages (1 is the finest) without and with distillation; {where}; {chosen}.",
        ),
        12: (
            [np.concatenate([row(number, side, 1) for side in sides], axis=1) for number in numbers],
            f"Correlation map of the first stage and prediction, without and with distillation; {where}; {chosen}.",
        ),
        13: (
            [_row(seen[0], number, "", None) for number in numbers],
            f"Correlation pyramid, from the finest stage to the coarsest, with distillation; {where}; {chosen}.",
        ),
    }
    figures = []
    for number, (rows, caption) in sheets.items():
        path = folder / f"figure{number}_{dataset}.png"
        save_sheet(rows, path, where)
        figures.append(Figure(number, f"{caption} {legend}", path))
    return figures
