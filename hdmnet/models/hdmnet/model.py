"""HDMNet whole: frozen trunk, prior masks, pyramid, matching, decoder, ensemble (paper Fig. 3).

Dimension letters: B batch, K shots, H W input pixels, C channels, h_1 w_1 feature size, h_l w_l size of stage l, N base
classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.checks import check_choice, check_switch
from hdmnet.models.ensemble import Ensemble, gram_distance, gram_matrix
from hdmnet.models.folding import BATCH_NORMS
from hdmnet.models.hdmnet.features import QueryFeatures, SupportFeatures
from hdmnet.models.hdmnet.meta_learner import MetaLearner, SupportMaps
from hdmnet.models.method import FINAL, FewShotMethod, Segmentation
from hdmnet.models.packed import (
    Foreground,
    PaddedForeground,
    Rows,
    find_foreground,
    find_foregrounds,
    measure_capacities,
    pad_foreground,
)
from hdmnet.models.prior import prior_mask
from hdmnet.models.trunk import FrozenTrunk, PreparedTrunk, TrunkFeatures

NORMS = ("fixed", "bn", "syncbn")


@dataclass
class _Plan:
    """What a forward pass on all pictures at once has to know beforehand.

    Attributes:
        trunk: Its weights in the precision of the call.
        shots: K.
        capacity: Positions of a support, as features, that hold its foreground.
        stage_capacities: The same of a query's K supports, at each stage.
    """

    trunk: PreparedTrunk
    shots: int
    capacity: int
    stage_capacities: list[int]


class HDMNet(FewShotMethod):
    """Few-shot segmenter: trunk, meta learner, ensemble.

    Args:
        base_learner: The trained base learner; it is frozen here.
        meta_learner: HDMNet proper.
        ensemble: Fusion with the base learner; None = the meta learner's prediction is final.
        norm: "fixed": batch normalisation of the new modules stays in evaluation mode, as in the release (`fix_bn`);
            "bn" or "syncbn": it learns its statistics (the paper's text), on each GPU apart or over all.
        prior_norm: Stretch the priors to [0, 1] (PFENet; the release does not).

    Raises:
        ValueError: Unknown `norm`.
    """

    reported: tuple[str, ...] = (FINAL, "meta")
    segments_base = True
    takes_host_masks = True

    def __init__(
        self,
        *,
        base_learner: BaseLearner,
        meta_learner: MetaLearner,
        ensemble: Ensemble | None,
        norm: str = "fixed",
        prior_norm: bool = False,
    ) -> None:
        super().__init__()
        check_choice("model.norm", norm, NORMS)
        check_switch("model.prior_norm", prior_norm)
        self.norm = norm
        self.prior_norm = prior_norm
        if ensemble is None:
            self.reported = (FINAL,)
        self.trunk = FrozenTrunk(base_learner)
        self.meta_learner = meta_learner
        self.ensemble = ensemble
        if norm == "syncbn":
            nn.SyncBatchNorm.convert_sync_batchnorm(self.meta_learner)
        self.train(self.training)

    def train(self, mode: bool = True) -> HDMNet:
        """Switch the mode; the trunk, and with ``norm="fixed"`` every batch normalisation, stays in evaluation mode."""
        super().train(mode)
        if self.norm == "fixed":
            for module in self.meta_learner.modules():
                if isinstance(module, BATCH_NORMS):
                    module.train(False)
        return self

    def forward(
        self, query_image: Tensor, support_images: Tensor, support_masks: Tensor, class_index: Tensor | None = None
    ) -> Segmentation:
        """Segment the query pictures, as `FewShotMethod.forward` says; (B, 3, H, W) and so on.

        The class that `class_index` names must not be suppressed by the base learner.
        """
        shots = support_images.shape[1]
        support_images, support_masks = support_images.flatten(0, 1), support_masks.flatten(0, 1)
        if self._goes_at_once(query_image, support_images):
            plan = self._plan(query_image, support_masks, shots, coarse=torch.compiler.is_compiling())
            query, supports = self._encode_at_once(query_image, support_images, support_masks, plan)
        else:
            supports = self.encode_support(support_images, support_masks)
            query = self.encode_query(query_image)
        return self.match(query, supports, shots=shots, class_index=class_index)

    def _goes_at_once(self, queries: Tensor, supports: Tensor) -> bool:
        """Whether all pictures go through the network together; a CPU takes less memory and time for one at a time."""
        return queries.shape[2:] == supports.shape[2:] and (not queries.is_cpu or torch.compiler.is_compiling())

    @torch.compiler.disable
    def _plan(self, images: Tensor, masks: Tensor, shots: int, *, coarse: bool) -> _Plan:
        """What depends on values, of pictures (B, 3, H, W) float and masks (B·K, H, W) any dtype.

        `coarse` is of `measure_capacities`.
        """
        capacities = measure_capacities(masks == 1, self._map_sizes(images), shots, coarse=coarse)
        return _Plan(self.trunk.prepare(images.device), shots, capacities[0][0], capacities[1][1:])

    def _encode_at_once(
        self, queries: Tensor, supports: Tensor, masks: Tensor, plan: _Plan
    ) -> tuple[QueryFeatures, SupportFeatures]:
        """As `encode_query` and `encode_support`, in one batch, and with sizes that depend on no value but the plan.

        The pyramid goes over the supports in `match`, together with the queries.
        """
        mask = (masks.to(supports.device, non_blocking=True) == 1).to(supports.dtype)
        features = self.trunk(torch.cat([queries, supports * mask[:, None]]), plan.trunk)
        query, support = features.split(len(queries))
        size, *stage_sizes = self._map_sizes(queries)
        described, merged = self._describe_supports([support], mask, pad_foreground(mask, size, plan.capacity))
        stages = [
            pad_foreground(mask, stage, capacity, plan.shots)
            for stage, capacity in zip(stage_sizes, plan.stage_capacities, strict=True)
        ]
        described.stages = SupportMaps(merged, stages)
        return self._describe_queries([query], (queries.shape[2], queries.shape[3])), described

    def _map_sizes(self, images: Tensor) -> list[tuple[int, int]]:
        """Sizes (h, w) of features and of stages, of pictures (B, 3, H, W)."""
        stride = self.trunk.feature_info[0].stride
        size = (-(-images.shape[2] // stride), -(-images.shape[3] // stride))
        return [size, *self.meta_learner.stage_sizes(size)]

    def encode_query(self, images: Tensor) -> QueryFeatures:
        """Encode query pictures (B, 3, H, W) float, normalised: all that `match` needs of them."""
        return self._describe_queries(self.trunk.encode(images), (images.shape[2], images.shape[3]))

    def _describe_queries(self, parts: Iterable[TrunkFeatures], size: tuple[int, int]) -> QueryFeatures:
        """From what the trunk says of pictures of a size (H, W)."""
        reduced, base_features, layer4, grams = [], [], [], []
        for features in parts:
            reduced.append(self.meta_learner.reduce_query(features.layer3, features.layer2))
            base_features.append(features.base_feature)
            layer4.append(features.layer4)
            if self.ensemble is not None:
                grams.append(gram_matrix(features.layer2))
        base_feature = torch.cat(base_features)
        return QueryFeatures(
            share=self.meta_learner.query_share(torch.cat(reduced)),
            base_feature=base_feature,
            layer4=torch.cat(layer4),
            gram=torch.cat(grams) if grams else None,
            base_scores=self.trunk.classify(base_feature),
            size=size,
        )

    def encode_support(self, images: Tensor, masks: Tensor) -> SupportFeatures:
        """Encode support pictures, each with its mask, of all shots and episodes alike.

        Args:
            images: (S, 3, H, W) float, normalised.
            masks: (S, H, W) any dtype: 1 foreground, 0 background, 255 ignore (counts as background).

        Returns:
            All that `match` needs of them.
        """
        # Mask the pictures: what is not foreground is the mean colour (0 after normalisation).
        mask = (masks.to(images.device, non_blocking=True) == 1).to(images.dtype)
        masked = images * mask[:, None]
        if images.is_cpu:
            features, merged = self._describe_supports(self.trunk.encode(masked), mask)
            features.stages = self.meta_learner.support_stages(merged, mask)
            return features
        # Before the trunk runs: there is less to wait for, if the masks lie on the GPU too.
        size, *stages = find_foregrounds(masks == 1, self._map_sizes(images), images.device)
        features, merged = self._describe_supports([self.trunk(masked)], mask, size)
        features.stages = self.meta_learner.support_stages(merged, mask, stages)
        return features

    def _describe_supports(
        self, parts: Iterable[TrunkFeatures], mask: Tensor, foreground: Foreground | PaddedForeground | None = None
    ) -> tuple[SupportFeatures, Tensor]:
        """From what the trunk says of masked pictures, with masks (S, H, W) float.

        Returns:
            All but the stages, and the features (S, C, h, w) that the stages are made of.
        """
        reduced, grams = [], []
        base_features: list[Any] = []
        layer4: list[Any] = []
        start = 0
        for features in parts:
            chunk = mask[start : start + len(features.layer4)]
            start += len(chunk)
            # Keep the foreground of the high-level features, for the priors.
            size = (features.layer4.shape[2], features.layer4.shape[3])
            own = find_foreground(chunk, size) if foreground is None else foreground
            base_features.append(own.gather(features.base_feature))
            layer4.append(own.gather(features.layer4))
            # Reduce the mid-level features, for matching.
            reduced.append(self.meta_learner.reduce_support(features.layer3, features.layer2))
            # Describe the picture's style, for the ensemble.
            if self.ensemble is not None:
                grams.append(gram_matrix(features.layer2))
        # Merge them with their prototype.
        merged, prototype = self.meta_learner.embed_support(torch.cat(reduced), mask)
        described = SupportFeatures(
            stages=[],
            prototype=prototype,
            base_feature=type(base_features[0]).cat(base_features),
            layer4=type(layer4[0]).cat(layer4),
            gram=torch.cat(grams) if grams else None,
        )
        return described, merged

    def match(
        self, query: QueryFeatures, support: SupportFeatures, *, shots: int, class_index: Tensor | None = None
    ) -> Segmentation:
        """Segment B encoded queries by B·K encoded supports.

        Args:
            query: B queries.
            support: B·K supports, those of query 0 first.
            shots: K.
            class_index: (B,) int64, as in `forward`.

        Returns:
            Scores; "meta" (of an ensemble) and "base" as auxiliary predictions; "correlation" and "prior" maps.
        """
        # Compute the two prior masks: from the base learner's feature, then from layer 4.
        with torch.no_grad():
            pairs = ((query.base_feature, support.base_feature), (query.layer4, support.layer4))
            prior = torch.cat([self.prior(q, s, shots=shots) for q, s in pairs], dim=1)  # (B, 2, h, w)
        # Merge them and the mean prototype into the query's features.
        merged = self.meta_learner.embed_query(query.share, support.prototype.unflatten(0, (-1, shots)), prior)
        # Match at every stage, and decode from the coarsest to the finest.
        scores, correlation_maps = self.meta_learner.match(merged, support.stages, prior, shots=shots)
        auxiliary = {"base": query.base_scores}
        # Fuse with the base learner's prediction.
        if self.ensemble is not None:
            assert query.gram is not None
            assert support.gram is not None
            with torch.no_grad():
                distances = gram_distance(query.gram, support.gram.unflatten(0, (-1, shots)))
            auxiliary["meta"] = scores
            scores = self.ensemble(scores, query.base_scores, distances, class_index)
        return Segmentation(
            scores,
            query.size,
            auxiliary=auxiliary,
            maps={"correlation": correlation_maps, "prior": list(prior.unbind(1))},
            is_probability=self.ensemble is not None,
        )

    def prior(self, query: Tensor, keys: Rows, *, shots: int) -> Tensor:
        """One prior mask (B, 1, h, w); see `prior_mask`."""
        return prior_mask(query, keys, shots=shots, normalise=self.prior_norm)

    def parameter_groups(self, lr: float, *, head_lr_factor: float = 10.0) -> list[dict[str, Any]]:
        """The release's: the transformer at `lr`; reductions, merges and ensemble, a group each, at ten times it."""
        meta = self.meta_learner
        transformer = [*meta.pyramid.parameters(), *meta.matching.parameters(), *meta.decoder.parameters()]
        heads: dict[str, nn.Module] = {
            "down_support": meta.down_support,
            "down_query": meta.down_query,
            "support_merge": meta.support_merge,
            "query_merge": meta.query_merge,
        }
        if self.ensemble is not None:
            heads |= {"gram_merge": self.ensemble.gram_merge, "base_merge": self.ensemble.base_merge}
            # The release leaves its shot weights out of the optimiser, at their random start.
            if self.ensemble.num_shots > 1 and self.ensemble.shot_weighting == "intended":
                heads["shot_weights"] = self.ensemble.shot_weights
        groups: list[dict[str, Any]] = [{"params": transformer, "lr": lr, "name": "transformer"}]
        groups += [{"params": list(m.parameters()), "lr": lr * head_lr_factor, "name": n} for n, m in heads.items()]
        return groups


def build_hdmnet(
    encoder: BaseLearner,
    *,
    num_shots: int = 1,
    num_stages: int = 3,
    ensemble: bool = True,
    norm: str = "fixed",
    prior_norm: bool = False,
    shot_weighting: str = "intended",
    dropout: float = 0.1,
    mid_dropout: float = 0.5,
    matching: Mapping[str, Any] | None = None,
) -> HDMNet:
    """Put an HDMNet together on a base learner (the `model=hdmnet` config); raises ValueError for a wrong value.

    Args:
        encoder: The base learner, trained on the fold's base classes.
        num_shots: K of the training episodes.
        num_stages: See `MetaLearner`, as for the last three.
        ensemble: Fuse with the base learner.
        norm: See `HDMNet`.
        prior_norm: See `HDMNet`.
        shot_weighting: See `Ensemble`.
        dropout: In pyramid and matching.
        mid_dropout: Of the reduced mid-level features.
        matching: Of `CorrelationMatching`.
    """
    meta_learner = MetaLearner(
        mid_channels=mid_channels(encoder),
        num_stages=num_stages,
        dropout=dropout,
        mid_dropout=mid_dropout,
        matching={"num_shots": num_shots, **(matching or {})},
    )
    fusion = build_ensemble(ensemble, num_shots, shot_weighting)
    return HDMNet(base_learner=encoder, meta_learner=meta_learner, ensemble=fusion, norm=norm, prior_norm=prior_norm)


def mid_channels(encoder: BaseLearner) -> int:
    """Channels of layers 2 and 3 together."""
    return sum(level.channels for level in encoder.backbone.feature_info[-3:-1])


def build_ensemble(wanted: bool, num_shots: int, shot_weighting: str) -> Ensemble | None:
    """The ensemble, or None where it is not wanted (`model.ensemble`)."""
    check_switch("model.ensemble", wanted)
    return Ensemble(num_shots=num_shots, shot_weighting=shot_weighting) if wanted else None
