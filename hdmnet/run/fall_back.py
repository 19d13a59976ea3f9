"""`optim.fall_back`: where training did not help, the run keeps the method without training instead.

After training the chosen weights and the untrained prototype on the same trunk are run on the same validation episodes.
Where training gained no more than chance, the prototype takes the place of the trained method: it is the run's best
checkpoint, and what is tested. The trained weights stay beside it. More than chance it must be, as the weights were
chosen for what they reach on these very episodes.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf, open_dict

from hdmnet.callbacks.build import build_callbacks
from hdmnet.config.paths import find_option
from hdmnet.run.baselines import build_controls, describe_baselines, leave
from hdmnet.run.build import build_encoder, build_model, build_task, build_trainer
from hdmnet.run.checkpoints import load_strictly
from hdmnet.runtime import ranks
from hdmnet.runtime.checkpoint_file import BEST, RUN_KEY, write_durably
from hdmnet.tasks.controls import UNTRAINED
from hdmnet.tasks.feature_store import measure_features

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from hdmnet.data.datamodules.few_shot import FewShotDataModule
    from hdmnet.models.prototype.model import Prototype
    from hdmnet.tasks.few_shot import FewShotTask

log = logging.getLogger(__name__)

TRAINED = "trained.ckpt"  # where the trained weights lie that were not handed back


@dataclass
class Choice:
    """What the run hands back.

    Attributes:
        cfg: Config of what is tested.
        task: Holds it.
        checkpoint: Its file; None: it is in none.
        facts: The entry `training` of the result, see `hdmnet.run.result`.
        val_miou: On the validation episodes, a fraction.
    """

    cfg: DictConfig
    task: FewShotTask
    checkpoint: Path | None
    facts: dict[str, Any]
    val_miou: float | None = None


def undo(folder: Path) -> None:
    """Put the trained weights of a folder of checkpoints back, where a run that is resumed had replaced them."""
    if ranks.rank() == 0 and (folder / TRAINED).is_file():
        (folder / TRAINED).replace(folder / BEST)


def choose(cfg: DictConfig, task: FewShotTask, data: FewShotDataModule, checkpoint: Path) -> Choice | None:
    """Choose between the trained method and the untrained prototype, by the validation episodes.

    Args:
        cfg: The config of the training.
        task: Holds the chosen weights.
        data: Set up for the training.
        checkpoint: The file that holds them.

    Returns:
        None where they cannot be compared, which is logged.
    """
    controls = build_controls(cfg, task.model, everything=True)
    if controls is None or controls.untrained is None:
        why = "" if controls is None else f": {controls.missing.get(UNTRAINED)}"
        log.warning("optim.fall_back: there is no untrained prototype to compare with%s", why)
        return None
    memory, data.measure_features = (
        data.reuse_memory_gb,
        partial(measure_features, task.model, data.image_size, controls),
    )
    if memory is not None and data.episode_bytes() > memory * 1e9:
        data.reuse_memory_gb = None
    trainer = build_trainer(
        cfg, "did training help?", callbacks=build_callbacks(cfg, "control"), logger=False, num_sanity_val_steps=0
    )
    task.controls = controls
    trainer.validate(task, datamodule=data, verbose=False)
    leave(task, data)
    data.reuse_memory_gb = memory
    validated = describe_baselines(controls, task.episodes)
    found = validated.get(UNTRAINED)
    if found is None:
        log.warning("optim.fall_back: no validation episode to compare on; the trained method is handed back")
        return None
    stays = bool(found["is_above"])
    facts = {
        "helped": stays,
        "method": cfg.model.name,
        "handed_back": cfg.model.name if stays else "prototype",
        "validation": validated,
        "trained_checkpoint": str(checkpoint),
    }
    if stays:
        return Choice(cfg, task, checkpoint, facts, validated["miou"])
    own = _untrained_config(cfg, controls.untrained)
    model = build_model(own, build_encoder(own, data.num_base, weights=None))
    load_strictly(model, controls.untrained.state_dict(), "the untrained prototype")
    other = build_task(own, model, data)
    best = checkpoint.parent / BEST
    if ranks.rank() == 0:
        if checkpoint == best:
            checkpoint.replace(checkpoint.parent / TRAINED)
        write_durably({"state_dict": other.state_dict(), RUN_KEY: other.checkpoint_extra}, best)
    if checkpoint == best:
        facts["trained_checkpoint"] = str(checkpoint.parent / TRAINED)
    return Choice(own, other, best, facts, found["miou"])


def _untrained_config(cfg: DictConfig, untrained: Prototype) -> DictConfig:
    """The config with the prototype for its method, on the trunk as the method has it."""
    file = find_option("model", "prototype")
    assert file is not None
    node = OmegaConf.load(file)
    node.encoder = cfg.model.get("encoder", node.encoder)
    node.levels = list(untrained.trunk.levels)
    own = copy.deepcopy(cfg)
    with open_dict(own):
        if cfg.model.get("trunk") is not None:
            node.trunk = copy.deepcopy(cfg.model.trunk)
        own.model = node
    return own
