"""The two baselines of every result: the untrained prototype on the same trunk, and support masks of ones.

`add_controls` decides where they run: in the test's own pass, a picture then going through the trunk once for all, or,
where the features of all of them would not fit into `reuse_memory_gb`, in a pass of their own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from hdmnet.callbacks.build import build_callbacks
from hdmnet.config.values import image_size
from hdmnet.models.frozen_backbone import FrozenBackbone
from hdmnet.models.method import FINAL
from hdmnet.models.prototype.model import Prototype
from hdmnet.models.trunk import FrozenTrunk
from hdmnet.run.build import build_few_shot_data, build_trainer
from hdmnet.runtime.errors import one_line
from hdmnet.tasks.controls import ONES, UNTRAINED, Controls, untrained_beside
from hdmnet.tasks.episode_table import join_tables
from hdmnet.tasks.feature_store import measure_features
from hdmnet.tasks.intervals import estimate

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from hdmnet.data.datamodules.few_shot import FewShotDataModule
    from hdmnet.models.method import FewShotMethod
    from hdmnet.tasks.episode_table import EpisodeTable
    from hdmnet.tasks.few_shot import FewShotTask

HELPS = (
    "what helps, where it is not in use yet: model=correlation, which sees similarities alone; a backbone with "
    "ImageNet weights or DINOv2's (docs/backbones.md); more base classes and pictures; or model=prototype, which "
    "needs no training: docs/reliability.md"
)


def build_controls(cfg: DictConfig, model: FewShotMethod, *, everything: bool = False) -> Controls | None:
    """The controls that the config asks for; None where it asks for none. Those that cannot be are in `missing`.

    With `everything` all are asked for, on all episodes of the first seed.
    """
    number = 1 if everything else int(cfg.get("baseline_episodes") or 0)  # an earlier version's job lacks the key
    everything = everything or bool(cfg.dataset.controls)
    if cfg.support_mask != "given" or not (number or everything):
        return None
    untrained, missing = None, {}
    if not number:
        missing[UNTRAINED] = "not asked for (baseline_episodes=0)"
    elif type(model) is Prototype:
        missing[UNTRAINED] = "this is the untrained prototype"
    else:
        try:
            untrained = untrained_beside(model)
            if not isinstance(getattr(model, "trunk", None), FrozenBackbone | FrozenTrunk):
                _try_out(untrained, model, image_size(cfg.dataset.image_size))
        except Exception as error:  # of a class from outside anything may come; it must not end the run
            untrained, missing[UNTRAINED] = None, f"model={cfg.model.name}: {one_line(error) or type(error).__name__}"
    controls = Controls(model, untrained=untrained, limit=None if everything else number)
    controls.missing |= missing
    return controls


@torch.no_grad()
def _try_out(untrained: Prototype, model: FewShotMethod, size: tuple[int, int]) -> None:
    """Segment a blank picture (H, W): a backbone from outside may give what a prototype cannot stand on."""
    device = next(model.parameters()).device
    blank = torch.zeros(1, 3, *size, device=device)
    untrained(blank, blank[:, None], torch.ones(1, 1, *size, device=device))


def run_along(task: FewShotTask, data: FewShotDataModule, controls: Controls) -> bool:
    """Have the controls run in the pass that comes next, where their features fit in beside the method's own.

    Args:
        task: Gets the controls.
        data: Set up; is told how much memory a picture takes now. `leave` undoes both.
        controls: From `build_controls`.

    Returns:
        Whether they will: else they need a pass of their own.
    """
    measure = partial(measure_features, controls.method, data.image_size, controls)
    if data.reuse_memory_gb is not None and not data.fits(measure):
        return False
    task.controls, data.measure_features = controls, measure
    return True


def leave(task: FewShotTask, data: FewShotDataModule) -> None:
    """Undo `run_along`."""
    task.controls, data.measure_features = None, partial(measure_features, task.model, data.image_size)


def run_apart(cfg: DictConfig, task: FewShotTask, data: FewShotDataModule, controls: Controls) -> None:
    """Run method and controls on the first episodes of the first test seed; `task.episodes` gets the controls'."""
    number = len(data.test_manifests[0]) if controls.limit is None else min(controls.limit, len(data.test_manifests[0]))
    apart = build_few_shot_data(cfg, data.dataset, num_test_seeds=1, num_test_episodes=number)
    apart.keeps_masks = data.keeps_masks
    apart.measure_features = partial(measure_features, task.model, apart.image_size, controls)
    if apart.reuse_memory_gb is not None and apart.episode_bytes() > apart.reuse_memory_gb * 1e9:
        apart.reuse_memory_gb = None  # not even those of one episode: each is encoded anew
    trainer = build_trainer(cfg, "controls", callbacks=build_callbacks(cfg, "control"), logger=False)
    task.controls, task.num_test_seeds = controls, 1
    tested = task.episodes
    trainer.test(task, datamodule=apart, verbose=False)
    beside = {name: pixels for name, pixels in task.episodes.pixels.items() if name in controls.names}
    task.episodes = join_tables([tested, replace(task.episodes, pixels=beside)], task.class_names)


def describe_baselines(controls: Controls, episodes: EpisodeTable) -> dict[str, Any]:
    """The entry `baselines` of a result, see `hdmnet.run.result`.

    Args:
        controls: That were run.
        episodes: What came of it.
    """
    episodes = episodes.first_seed()
    own = estimate(episodes, FINAL)
    entry: dict[str, Any] = {"num_episodes": 0, "miou": math.nan}
    if own is not None:
        entry = {"num_episodes": own.num_episodes, "miou": own.values[0]}
    missing = dict(controls.missing)
    for name in controls.names:
        found = None if name in missing else estimate(episodes, FINAL, name)
        if found is None:
            missing.setdefault(name, "no episode to count")
            continue
        entry["num_episodes"] = found.num_episodes
        entry["miou"] = found.values[0]
        entry[name] = {
            "miou": found.values[1],
            "difference": found.difference,
            "interval": [found.low, found.high],
            "is_above": found.is_above if math.isfinite(found.low) else None,
        }
    learns = any(parameter.requires_grad for parameter in controls.method.parameters())
    return {**entry, "missing": missing, "warning": _warn(entry, learns)}


def _warn(entry: dict[str, Any], learns: bool) -> str | None:
    """One line where a method is no better than its controls; None where it is, or nothing tells."""
    found = []
    for name, what in (
        (ONES, "does not use its support: with support masks of ones it reaches"),
        (UNTRAINED, "does no better than a method without training: on the same trunk the untrained prototype reaches"),
    ):
        one = entry.get(name)
        if one is not None and one["is_above"] is False and (learns or name == ONES):
            low, high = (100 * end for end in one["interval"])
            found.append(
                f"{what} {100 * one['miou']:.1f} mIoU, it itself {100 * entry['miou']:.1f} (difference "
                f"{100 * one['difference']:+.1f}, 95 % interval {low:+.1f} to {high:+.1f})"
            )
    if not found:
        return None
    return f"the {'trained model' if learns else 'method'} {'; it '.join(found)}; {HELPS}"
