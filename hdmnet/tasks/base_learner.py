"""Stage 1: train the base learner, an ordinary segmenter of the fold's base classes (following BAM)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch

from hdmnet.metrics import SegmentationIoU
from hdmnet.models.folding import BATCH_NORMS
from hdmnet.models.losses import segmentation_loss
from hdmnet.runtime.errors import ConfigError
from hdmnet.tasks.schedule import poly_schedule

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from torch import Tensor

    from hdmnet.data.types import SegmentationSample
    from hdmnet.models.base_learner import BaseLearner

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseOptimiserSettings:
    """SGD (release) or AdamW (for training from nothing), with poly decay.

    `head_lr_factor` multiplies the rate of pyramid pooling and head. `freeze_backbone`: "none" (as BAM does), "norm"
    (its batch normalisation keeps its statistics) or "all" (only pyramid pooling and head learn: for small data, and
    for backbones whose batch normalisation is folded in).
    """

    optimizer: str = "sgd"
    lr: float = 2.5e-4
    momentum: float = 0.9
    weight_decay: float = 1e-4
    power: float = 0.9
    head_lr_factor: float = 1.0
    warmup_steps: int = 0
    freeze_backbone: str = "none"

    def __post_init__(self) -> None:
        """Refuse unknown choices."""
        if self.freeze_backbone not in ("none", "norm", "all"):
            raise ConfigError(f"optim.base.freeze_backbone={self.freeze_backbone!r}: expected 'none', 'norm' or 'all'")
        if self.optimizer not in ("sgd", "adamw"):
            raise ConfigError(f"optim.base.optimizer={self.optimizer!r}: expected 'sgd' or 'adamw'")


class BaseLearnerTask(L.LightningModule):
    """Loss, optimiser and metric of stage 1.

    Args:
        model: The base learner; all of it trains, but for a backbone that is frozen.
        optimiser: Learning rates and schedule.
    """

    def __init__(self, *, model: BaseLearner, optimiser: BaseOptimiserSettings) -> None:
        super().__init__()
        self.model = model
        self.optimiser_settings = optimiser
        self.val_metric = SegmentationIoU(1 + model.num_base)
        self._tells_absent = True
        if optimiser.freeze_backbone == "all":
            model.backbone.requires_grad_(False)

    def on_train_batch_start(self, batch: SegmentationSample, batch_idx: int) -> None:
        """Keep what is frozen in evaluation mode, which Lightning leaves at every epoch and after every validation."""
        freeze = self.optimiser_settings.freeze_backbone
        for module in self.model.backbone.modules():
            if freeze == "all" or (freeze == "norm" and isinstance(module, BATCH_NORMS)):
                module.eval()

    def training_step(self, batch: SegmentationSample, batch_idx: int) -> Tensor:
        """Cross entropy over background and base classes, 255 ignored; a scalar."""
        loss = segmentation_loss(self.model(batch.image), batch.mask)
        self.log("base/loss", loss.detach(), batch_size=len(batch.image))  # the progress bar looks it up
        return loss

    def validation_step(self, batch: SegmentationSample, batch_idx: int) -> None:
        """Pool one batch of validation pictures at network size."""
        self.val_metric.update(self.model(batch.image).argmax(1), batch.mask)

    def on_validation_epoch_end(self) -> None:
        """Log the base classes' mIoU, background left out."""
        values = self.val_metric.compute()
        self.val_metric.reset()
        self.log("base/miou", float(values["miou"]), prog_bar=True)
        absent = (~values["iou_per_class"][1:].isfinite()).nonzero().flatten().tolist()
        if absent and self._tells_absent and self.trainer.is_global_zero:
            names = getattr(cast(Any, self.trainer).datamodule, "base_names", None)
            named = ", ".join(f"base class {place + 1}" if names is None else names[place] for place in absent)
            log.warning(
                "stage 1: no validation pixel is, or is taken for, %s: base/miou is the mean of the others", named
            )
        self._tells_absent &= not absent

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Backbone at `lr`, pyramid pooling and head at `head_lr_factor` times it; poly decay every iteration."""
        settings, model = self.optimiser_settings, self.model
        head = [p for m in (model.pyramid_pooling, model.reduce, model.classifier) for p in m.parameters()]
        groups = [{"params": head, "lr": settings.lr * settings.head_lr_factor, "name": "head"}]
        learning = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
        if learning:
            groups.append({"params": learning, "lr": settings.lr, "name": "backbone"})
        optimizer: torch.optim.Optimizer
        if settings.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                groups, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
            )
        else:
            optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = poly_schedule(optimizer, steps, settings.power, settings.warmup_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
