"""Stage 2: train and test a few-shot method on episodes.

The task knows that an episode goes in and a `Segmentation` comes out; loss, optimiser and schedule are given to it.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, cast

import lightning as L
from torch import nn

from hdmnet.data.types import EvaluationBatch
from hdmnet.metrics import FewShotIoU
from hdmnet.models.method import FINAL, encodes_apart
from hdmnet.runtime.console import name_some
from hdmnet.runtime.private_api import fuse_optimizer
from hdmnet.tasks.controls import Controls
from hdmnet.tasks.episode_table import EpisodeTable, gather_tables, join_tables, tabulate_batch
from hdmnet.tasks.feature_store import FeatureStore, add_to_metrics, count_predictions

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from hdmnet.data.types import Episode
    from hdmnet.models.method import FewShotMethod, Segmentation

log = logging.getLogger(__name__)


class FewShotTask(L.LightningModule):
    """Loss, optimiser and metrics of stage 2.

    Args:
        model: The method.
        class_names: Of the classes that are tested, in the order of ``class_index``.
        val_class_names: Of those that are validated; None: the same.
        too_few: Names of those that are known to have too few images for an episode: validation need not say so again.
        validates_base: Whether these are the base classes, in the order in which training counts them.
        tests_base: Whether those that are tested are, as no class was left out.
        absent_is_zero: Whether a class without a pixel to count has an IoU of 0, see `FewShotIoU`.
        num_test_seeds: Test seeds whose episodes the test loader mixes; may be lowered later for a test of fewer.
        loss: Called as ``loss(output, query_mask)``; gives scalars by name, of which ``loss`` is the one to minimise.
            None: only to be tested.
        optimizer: Makes an optimiser of parameter groups; None: only to be tested.
        schedule: Makes a scheduler, stepped every iteration, of an optimiser and the number of steps; None: constant.
        groups: Arguments of the model's ``parameter_groups``, ``lr`` among them.
        image_mean: RGB in 0..1, to draw pictures.
        image_std: RGB.
        checkpoint_extra: Plain containers written into every checkpoint.
    """

    def __init__(
        self,
        *,
        model: FewShotMethod,
        class_names: Sequence[str],
        val_class_names: Sequence[str] | None = None,
        too_few: Collection[str] = (),
        validates_base: bool = False,
        tests_base: bool = False,
        absent_is_zero: bool = False,
        num_test_seeds: int = 1,
        loss: nn.Module | None = None,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer] | None = None,
        schedule: Callable[[Optimizer, int], LRScheduler] | None = None,
        groups: Mapping[str, Any] | None = None,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        checkpoint_extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.class_names = tuple(class_names)
        self.val_class_names = self.class_names if val_class_names is None else tuple(val_class_names)
        self.validates_base, self.tests_base = validates_base, tests_base
        self.loss = loss
        self.make_optimizer, self.make_schedule, self.groups = optimizer, schedule, dict(groups or {})
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.checkpoint_extra = checkpoint_extra or {}
        self.absent_is_zero = absent_is_zero
        self.num_test_seeds = num_test_seeds
        # One metric a reported prediction and seed; validation has one seed.
        self.val_metrics = self._metrics(1, self.val_class_names)
        self.test_metrics = self._metrics(num_test_seeds, self.class_names)
        self.val_results: dict[str, list[dict[str, Any]]] = {}
        self.test_results: dict[str, list[dict[str, Any]]] = {}
        self._tells_left_out, self._too_few = True, frozenset(too_few)
        self.features = FeatureStore()  # filled in a validation or test, empty before and after
        self.controls: Controls | None = None  # what else a validation or test runs on the same episodes
        self._tables: list[EpisodeTable] = []
        self.episodes = join_tables([], ())  # of the last one: what it and its controls got right, episode by episode

    def _metrics(self, num_seeds: int, names: Sequence[str]) -> nn.ModuleDict:
        def seeds() -> nn.ModuleList:
            return nn.ModuleList(
                FewShotIoU(len(names), class_names=names, absent_is_zero=self.absent_is_zero) for _ in range(num_seeds)
            )

        return nn.ModuleDict({name: seeds() for name in self.model.reported})

    def forward(self, episode: Episode, *, class_index: Tensor | None = None) -> Segmentation:
        """Segment a batch of episodes, queries (B, 3, H, W) and so on, as `FewShotMethod.forward` does."""
        told = {} if episode.query_padding is None else {"query_padding": episode.query_padding}
        output: Segmentation = self.model(
            episode.query_image, episode.support_images, episode.support_masks, class_index, **told
        )
        return output

    def training_step(self, batch: Episode, batch_idx: int) -> Tensor:
        """The loss of a batch of episodes, a scalar."""
        assert self.loss is not None
        terms: dict[str, Tensor] = self.loss(self(batch, class_index=batch.class_index), batch.query_mask)
        for name, value in terms.items():
            # Not for the progress bar: Lightning would wait for the value at every step. The bar looks it up.
            self.log(f"train/{name}", value.detach(), batch_size=len(batch.query_image))
        return terms["loss"]

    def validation_step(self, batch: Episode | EvaluationBatch, batch_idx: int) -> dict[str, Any]:
        """Pool one batch of validation episodes; returns what the pictures are drawn from."""
        # Of a base class: as in training, its own base learner's prediction must not speak against it.
        class_index = batch.class_index if self.validates_base else None
        return self._evaluate(batch, self.val_metrics, self.val_class_names, class_index)

    def test_step(self, batch: Episode | EvaluationBatch, batch_idx: int) -> dict[str, Any]:
        """Pool one batch of test episodes; returns what the pictures are drawn from."""
        class_index = batch.class_index if self.tests_base else None
        return self._evaluate(batch, self.test_metrics, self.class_names, class_index)

    def _evaluate(
        self,
        batch: Episode | EvaluationBatch,
        metrics: nn.ModuleDict,
        class_names: Sequence[str],
        class_index: Tensor | None = None,
    ) -> dict[str, Any]:
        if isinstance(batch, EvaluationBatch):
            masks, mask_index, item = batch.query_masks_original, batch.mask_index, batch.item
        else:
            masks = list(batch.query_mask if batch.query_mask_original is None else batch.query_mask_original)
            mask_index = item = list(range(len(masks)))
        output, beside, chosen = self._segment(batch, item, class_index)
        counted: dict[str, tuple[Tensor, Sequence[int]]] = {}
        for name in metrics:
            pixels = count_predictions(output, name, masks, mask_index=mask_index)
            counted[name] = pixels, range(len(pixels))
            add_to_metrics(
                pixels,
                class_index=batch.class_index,
                metrics=_seeds(metrics, name),
                item=item,
                seed_index=batch.seed_index.tolist(),
            )
        own_masks = [mask_index[i] for i in chosen]
        counted |= {
            name: (count_predictions(one, FINAL, masks, mask_index=own_masks), chosen) for name, one in beside.items()
        }
        self._tables.append(tabulate_batch(batch, class_names, item, counted))
        return {"episode": batch, "output": output, "class_names": class_names}

    def _segment(
        self, batch: Episode | EvaluationBatch, item: Sequence[int], class_index: Tensor | None
    ) -> tuple[Segmentation, dict[str, Segmentation], list[int]]:
        """The answer to the B episodes of a batch; those of the controls, by name, to some of them; to which."""
        apart, controls = encodes_apart(self.model), self.controls
        if controls is None:
            if isinstance(batch, EvaluationBatch):
                return self.features.segment(apart, batch, class_index), {}, []
            return self(batch, class_index=class_index), {}, []
        chosen = sorted({item[place] for place in controls.chosen(batch.index, batch.seed_index)})
        if isinstance(batch, EvaluationBatch):
            found = controls.match(*self.features.take(controls, batch), chosen, class_index)
        else:
            found = controls.run(batch, chosen, class_index)
        return found.pop(FINAL), found, chosen

    def on_validation_epoch_start(self) -> None:
        """Begin without features: what encodes them may have learnt since a validation that was cut short."""
        self.features.clear()
        self._tables = []

    def on_test_epoch_start(self) -> None:
        """Begin without features."""
        self.features.clear()
        self._tables = []

    def on_validation_epoch_end(self) -> None:
        """Log validation mIoU and FB-IoU of each reported prediction."""
        self.features.clear()
        if self.controls is not None:
            self.episodes = gather_tables(self._tables, self.val_class_names)
        self._tables = []
        for name in self.val_metrics:
            suffix = "" if name == FINAL else f"_{name}"
            metric = _seeds(self.val_metrics, name)[0]
            values = metric.compute()
            metric.reset()
            self.val_results[name] = [values]
            if name == FINAL:
                self._tell_left_out(values["iou_per_class"])
            miou = float(values["miou"])
            # NaN would end the choice of the best checkpoint silently; no episode at all is 0.
            self.log(f"val/miou{suffix}", 0.0 if math.isnan(miou) else miou, prog_bar=not suffix)
            self.log(f"val/fb_iou{suffix}", float(values["fb_iou"]))

    def _tell_left_out(self, iou_per_class: Tensor) -> None:
        """Say once which classes (C,) have no IoU: the best checkpoint is chosen without them."""
        defined = iou_per_class.reshape(-1).isfinite().tolist()
        pairs = zip(self.val_class_names, defined, strict=True)
        names = [name for name, known in pairs if not known and name not in self._too_few]
        if names and self._tells_left_out and self.trainer.is_global_zero:
            value = "the mean of the others" if any(defined) else "0"
            log.warning("validation has no episode to count of %s: val/miou is %s", name_some(names), value)
        self._tells_left_out &= not names

    def on_test_epoch_end(self) -> None:
        """Keep each seed's figures in `test_results`, by prediction."""
        self.features.clear()
        self.episodes, self._tables = gather_tables(self._tables, self.class_names), []
        self.test_results = {}
        for name in self.test_metrics:
            seeds = _seeds(self.test_metrics, name)[: self.num_test_seeds]
            self.test_results[name] = [metric.compute() for metric in seeds]
            for metric in seeds:
                metric.reset()

    def test_nothing(self) -> None:
        """Put the figures of a test without any episode into `test_results`."""
        count = len(self.class_names)
        nothing = {"miou": math.nan, "fb_iou": math.nan, "iou_per_class": [math.nan] * count, "counts": [0] * count}
        self.test_results = {name: [nothing] * self.num_test_seeds for name in self.test_metrics}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser over the model's groups, and its schedule, stepped every iteration."""
        assert self.make_optimizer is not None
        optimizer = self.make_optimizer(self.model.parameter_groups(**self.groups))
        if self.device.type != "cpu":
            fuse_optimizer(optimizer)
        if self.make_schedule is None:
            return optimizer
        scheduler = self.make_schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to build the model again: plain containers only, so that loading runs nothing."""
        checkpoint["hdmnet"] = self.checkpoint_extra


def _seeds(metrics: nn.ModuleDict, name: str) -> list[FewShotIoU]:
    """The metrics of a prediction, one a seed."""
    return list(cast("nn.ModuleList", metrics[name]))  # type: ignore[arg-type]
