"""Stage 2: train and test a few-shot segmenter on episodes.

The task knows that an episode goes in and logits come out (with optional correlation maps, which are distilled if there
are any), and nothing else of HDMNet: other methods run on the same task.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from hdmnet.data.types import EvaluationBatch
from hdmnet.metrics import FewShotIoU
from hdmnet.models.hdmnet.loss import DISTILLATION_KINDS, distillation_per_stage
from hdmnet.models.losses import probability_loss, segmentation_loss
from hdmnet.tasks.feature_store import EncodesApart, FeatureStore, add_to_metrics, count_predictions
from hdmnet.tasks.schedule import poly_schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch.utilities.types import OptimizerLRScheduler

    from hdmnet.data.types import Episode
    from hdmnet.tasks.feature_store import Output

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms, the distillation's temperature T (paper Eq. 8), how the fused prediction is scored.

    `final_on`: "probabilities": softmax cross entropy of the fused probabilities, as in the release; "log": their
    negative log-likelihood. A final prediction that is logits (no ensemble) is not concerned.
    `distillation_kind`: which loss the correlation maps get, see `hdmnet.models.hdmnet.loss` (paper Table 6).
    """

    final: float = 1.0
    meta: float = 1.0
    distillation: float = 1.0
    temperature: float = 1.0
    final_on: str = "probabilities"
    distillation_kind: str = "kl_teacher"

    def __post_init__(self) -> None:
        """Refuse an unknown reading or kind."""
        if self.final_on not in ("probabilities", "log"):
            raise ValueError(f"loss.final_on={self.final_on!r}: expected 'probabilities' or 'log'")
        if self.distillation_kind not in DISTILLATION_KINDS:
            known = ", ".join(DISTILLATION_KINDS)
            raise ValueError(f"loss.distillation_kind={self.distillation_kind!r}: expected one of {known}")


@dataclass(frozen=True)
class OptimiserSettings:
    """AdamW with poly decay (Sec. 4.1; the release's factor of ten on the layers outside the transformer)."""

    lr: float = 1e-4
    weight_decay: float = 0.01
    head_lr_factor: float = 10.0
    power: float = 0.9
    warmup_steps: int = 0


class FewShotTask(L.LightningModule):
    """Losses, optimiser and metrics of stage 2.

    Args:
        model: Called as ``model(query_image, support_images, support_masks, class_index)``; gives its own optimiser
            groups by ``parameter_groups(lr=…, head_lr_factor=…)``.
        class_names: Of the test episodes' classes, in the order of ``class_index``.
        val_class_names: Of the validation episodes' classes; None: the same.
        num_test_seeds: Test seeds whose episodes the test loader mixes; may be lowered later for a test of fewer.
        loss: Weights of the terms.
        optimiser: Learning rates and schedule.
        image_mean: RGB in 0..1, to draw pictures.
        image_std: RGB.
        checkpoint_extra: Plain containers written into every checkpoint.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        class_names: Sequence[str],
        val_class_names: Sequence[str] | None = None,
        num_test_seeds: int = 1,
        loss: LossWeights | None = None,
        optimiser: OptimiserSettings | None = None,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        checkpoint_extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.class_names = tuple(class_names)
        self.loss_weights = loss or LossWeights()
        self.optimiser_settings = optimiser or OptimiserSettings()
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.checkpoint_extra = checkpoint_extra or {}
        self.num_test_seeds = num_test_seeds
        val_names = self.class_names if val_class_names is None else tuple(val_class_names)
        # One metric a prediction ("final", "meta") and seed; validation has one seed.
        self.val_metrics = _metrics(len(val_names), val_names, 1)
        self.test_metrics = _metrics(len(self.class_names), self.class_names, num_test_seeds)
        self.val_results: dict[str, list[dict[str, Any]]] = {}
        self.test_results: dict[str, list[dict[str, Any]]] = {}
        self._tells_left_out = True
        self.features = FeatureStore()  # filled in a validation or test, empty before and after

    def forward(self, episode: Episode, *, class_index: Tensor | None = None) -> Output:
        """Segment a batch of episodes; see the model for the shapes."""
        output: Output = self.model(episode.query_image, episode.support_images, episode.support_masks, class_index)
        return output

    def training_step(self, batch: Episode, batch_idx: int) -> Tensor:
        """Weighted sum of the loss terms (Sec. 3.4 and 4.1), a scalar."""
        output = self(batch, class_index=batch.class_index)
        terms = self.losses(output, batch.query_mask)
        size = len(batch.query_image)
        for name, value in terms.items():
            self.log(f"train/{name}", value.detach(), batch_size=size, prog_bar=name == "loss")
        return terms["loss"]

    def losses(self, output: Output, query_mask: Tensor) -> dict[str, Tensor]:
        """Loss terms by name.

        Args:
            output: The model's answer.
            query_mask: (B, H, W) integer, 0/1/255.

        Returns:
            Scalars: ``loss`` (the weighted sum), ``final``, ``meta``, ``distillation`` and one a stage.
        """
        weights = self.loss_weights
        final_loss = (
            probability_loss if weights.final_on == "log" and output.final_is_probability else segmentation_loss
        )
        final = final_loss(output.final_logits, query_mask)
        alone = output.meta_logits is output.final_logits  # nothing was fused
        terms = {"final": final, "meta": final if alone else segmentation_loss(output.meta_logits, query_mask)}
        total = weights.final * terms["final"] + weights.meta * terms["meta"]
        if output.correlation_maps:
            stages = distillation_per_stage(
                output.correlation_maps, query_mask, weights.temperature, weights.distillation_kind
            )
            terms["distillation"] = torch.stack(stages).mean()
            terms |= {f"distillation_stage{i}": value for i, value in enumerate(stages, start=1)}
            if weights.distillation:
                total = total + weights.distillation * terms["distillation"]
        return {"loss": total, **terms}

    def validation_step(self, batch: Episode | EvaluationBatch, batch_idx: int) -> dict[str, Any]:
        """Pool one batch of validation episodes; returns what the pictures are drawn from."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Episode | EvaluationBatch, batch_idx: int) -> dict[str, Any]:
        """Pool one batch of test episodes; returns what the pictures are drawn from."""
        return self._evaluate(batch, self.test_metrics)

    def _evaluate(self, batch: Episode | EvaluationBatch, metrics: nn.ModuleDict) -> dict[str, Any]:
        if isinstance(batch, EvaluationBatch):
            output = self.features.segment(cast(EncodesApart, self.model), batch)
            masks, mask_index, item = batch.query_masks_original, batch.mask_index, batch.item
        else:
            output = self(batch)
            masks = list(batch.query_mask if batch.query_mask_original is None else batch.query_mask_original)
            mask_index = item = list(range(len(masks)))
        final = count_predictions(output.final_logits, masks, mask_index=mask_index)
        alone = output.meta_logits is output.final_logits  # nothing was fused
        meta = final if alone else count_predictions(output.meta_logits, masks, mask_index=mask_index)
        for name, pixels in (("final", final), ("meta", meta)):
            add_to_metrics(
                pixels,
                class_index=batch.class_index,
                metrics=_seeds(metrics, name),
                item=item,
                seed_index=batch.seed_index.tolist(),
            )
        return {"episode": batch, "output": output, "class_names": self.class_names}

    def on_validation_epoch_start(self) -> None:
        """Begin without features: what encodes them may have learnt since a validation that was cut short."""
        self.features.clear()

    def on_test_epoch_start(self) -> None:
        """Begin without features."""
        self.features.clear()

    def on_validation_epoch_end(self) -> None:
        """Log validation mIoU and FB-IoU, of the final and of the meta learner's own prediction."""
        self.features.clear()
        for name, suffix in (("final", ""), ("meta", "_meta")):
            metric = _seeds(self.val_metrics, name)[0]
            values = metric.compute()
            metric.reset()
            self.val_results[name] = [values]
            if name == "final":
                self._tell_left_out(values["iou_per_class"])
            miou = float(values["miou"])
            # NaN would end the choice of the best checkpoint silently; no episode at all is 0.
            self.log(f"val/miou{suffix}", 0.0 if math.isnan(miou) else miou, prog_bar=not suffix)
            self.log(f"val/fb_iou{suffix}", float(values["fb_iou"]))

    def _tell_left_out(self, iou_per_class: Tensor) -> None:
        """Say once which classes (C,) have no IoU: the best checkpoint is chosen without them."""
        defined = iou_per_class.reshape(-1).isfinite().tolist()
        names = [name for name, known in zip(self.class_names, defined, strict=True) if not known]
        if names and self._tells_left_out and self.trainer.is_global_zero:
            value = "the mean of the others" if any(defined) else "0"
            log.warning("validation has no episode to count of %s: val/miou is %s", ", ".join(names), value)
        self._tells_left_out &= not names

    def on_test_epoch_end(self) -> None:
        """Keep each seed's figures in `test_results`, by prediction."""
        self.features.clear()
        self.test_results = {}
        for name in self.test_metrics:
            seeds = _seeds(self.test_metrics, name)[: self.num_test_seeds]
            self.test_results[name] = [metric.compute() for metric in seeds]
            for metric in seeds:
                metric.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over the model's groups, poly decay every iteration."""
        settings = self.optimiser_settings
        model = cast(Any, self.model)
        groups = model.parameter_groups(lr=settings.lr, head_lr_factor=settings.head_lr_factor)
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.999), weight_decay=settings.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = poly_schedule(optimizer, steps, settings.power, settings.warmup_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to build the model again: plain containers only, so that loading runs nothing."""
        checkpoint["hdmnet"] = self.checkpoint_extra


def _metrics(num_classes: int, names: tuple[str, ...], num_seeds: int) -> nn.ModuleDict:
    def seeds() -> nn.ModuleList:
        return nn.ModuleList(FewShotIoU(num_classes, class_names=names) for _ in range(num_seeds))

    return nn.ModuleDict({"final": seeds(), "meta": seeds()})


def _seeds(metrics: nn.ModuleDict, name: str) -> list[FewShotIoU]:
    """The metrics of a prediction, one a seed."""
    return list(cast("nn.ModuleList", metrics[name]))  # type: ignore[arg-type]
