"""HSNet whole (Min et al., ICCV 2021): hypercorrelations of all blocks, squeezed by 4-D convolutions.

Dimension letters: B episodes, K shots, S supports (B·K), H W input pixels, C_l channels of level l, h w query's and m n
support's size at a level, L levels of a stage, M support positions that the mask leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.batch import Batch
from hdmnet.models.frozen_backbone import FrozenBackbone
from hdmnet.models.hsnet.learner import CorrelationLearner
from hdmnet.models.method import ApartMethod, Segmentation, upsample
from hdmnet.models.packed import Foreground, PackedRows

EPS = 1e-5  # added to the lengths


@dataclass
class QueryFeatures(Batch):
    """B queries.

    Attributes:
        levels: (B, C_l, h, w) float each, of length 1 at every position.
        size: (H, W) of the pictures.
    """

    levels: list[Tensor]
    size: tuple[int, int]


@dataclass
class SupportFeatures(Batch):
    """S supports.

    Attributes:
        levels: S items (M, C_l) each, of length 1: the positions where the resized mask is not 0.
        kept: (S, m, n) bool of each stage, which positions these are.
    """

    levels: list[PackedRows]
    kept: list[Tensor]


class HSNet(ApartMethod):
    """Few-shot segmenter, trained with one support; with more of them, each votes.

    Args:
        encoder: A backbone whose levels are the blocks of its stages, or a base learner that has trained one.
        num_shots: K of the training episodes, of which the first support is trained with.
    """

    def __init__(self, *, encoder: nn.Module, num_shots: int = 1) -> None:
        super().__init__()
        self.trunk = FrozenBackbone(encoder, one_size=False)
        self.learner = CorrelationLearner([(len(levels), levels[0].stride) for levels in self.trunk.stages])

    def forward(
        self, query_image: Tensor, support_images: Tensor, support_masks: Tensor, class_index: Tensor | None = None
    ) -> Segmentation:
        """Segment query pictures (B, 3, H, W), as `FewShotMethod.forward` says; `class_index` is not used."""
        if self.training:  # votes have no gradient
            support_images, support_masks = support_images[:, :1], support_masks[:, :1]
        return super().forward(query_image, support_images, support_masks)

    def encode_query(self, images: Tensor) -> QueryFeatures:
        """Encode query pictures (B, 3, H, W) float, normalised."""
        levels = [_unit(level) for level in self.trunk(images)]
        return QueryFeatures(levels, (images.shape[2], images.shape[3]))

    def encode_support(self, images: Tensor, masks: Tensor) -> SupportFeatures:
        """Encode supports (S, 3, H, W) with masks (S, H, W), 0/1/255; the pictures themselves are not masked."""
        mask = (masks == 1).to(images.dtype)[:, None]
        stages = self.trunk.by_stage(self.trunk(images))
        sizes = [(stage[0].shape[2], stage[0].shape[3]) for stage in stages]
        self.learner.check_sizes(sizes)
        rows, kept = [], []
        for stage, size in zip(stages, sizes, strict=True):
            soft = upsample(mask, size)[:, 0]  # (S, m, n)
            # On a GPU all positions are kept: nothing is waited for.
            kept.append(soft > 0 if soft.is_cpu else torch.ones_like(soft, dtype=torch.bool))
            found = _positions(kept[-1])
            # The soft mask scales the features, and their length takes it out again, but for eps.
            weights = soft.flatten()[found.index, None]
            rows += [PackedRows(_unit(found.gather(level).values * weights), found.counts) for level in stage]
        return SupportFeatures(rows, kept)

    def match(self, query: QueryFeatures, support: SupportFeatures, *, shots: int) -> Segmentation:
        """Segment B encoded queries by B·K encoded supports, those of query 0 first.

        Returns:
            Of one support its logits; of several, as probabilities, which share of them votes for what, and what is
            decided by it. The correlations are means over levels, support positions and shots.
        """
        answers = []
        for shot in range(shots):
            kept = [one[shot::shots] for one in support.kept]
            rows = [PackedRows.cat(level.unbind()[shot::shots]) for level in support.levels]
            stages = zip(self.trunk.by_stage(query.levels), self.trunk.by_stage(rows), kept, strict=True)
            correlations = [correlate(*stage) for stage in stages]
            maps = [correlation.mean((1, 4, 5)) for correlation in correlations]
            answers.append(Segmentation(self.learner(correlations), query.size, maps={"correlation": maps}))
        return answers[0] if shots == 1 else vote(answers)


def _positions(kept: Tensor) -> Foreground:
    """Where (S, m, n) bool is set; on a GPU it is everywhere."""
    if not kept.is_cpu:
        return Foreground(torch.arange(kept.numel(), device=kept.device), (kept[0].numel(),) * len(kept))
    return Foreground(kept.flatten().nonzero()[:, 0], tuple(kept.flatten(1).sum(1).tolist()))


def correlate(query: Sequence[Tensor], support: Sequence[PackedRows], kept: Tensor) -> Tensor:
    """Cosines of all query positions with all support positions, where positive (paper Eq. 2); 0 where none is kept.

    Args:
        query: (B, C_l, h, w) float each, of length 1.
        support: B items (M, C_l) each, of length 1.
        kept: (B, m, n) bool, which support positions they are.

    Returns:
        (B, L, h, w, m, n) float.
    """
    maps = []
    for features, rows in zip(query, support, strict=True):
        keys = rows.pad()[0]  # (B, M, C_l)
        maps.append(torch.bmm(features.flatten(2).transpose(1, 2), keys.transpose(1, 2)).relu_())
    found: Tensor = torch.stack(maps, dim=3)  # (B, h·w, M, L)
    places = kept.flatten(1)
    if min(support[0].counts) < places.shape[1]:
        # Of a position that is left out the zeros that are put to the end.
        column = torch.where(places, places.cumsum(1) - 1, found.shape[2])
        padded = F.pad(found, (0, 0, 0, 1)).split(1)
        items = [one.index_select(2, its) for one, its in zip(padded, column, strict=True)]
        found = items[0] if len(items) == 1 else torch.cat(items)
    result: Tensor = found.unflatten(2, kept.shape[1:]).unflatten(1, query[0].shape[2:]).permute(0, 5, 1, 2, 3, 4)
    return result


def vote(answers: Sequence[Segmentation]) -> Segmentation:
    """The answer of K supports (paper Sec. 3.5), each of which says foreground or not at every pixel.

    Foreground is where a pixel has at least half of the votes of the pixel in its picture that has most.
    """
    votes = torch.stack([one.prediction for one in answers]).sum(0)  # (B, H, W)
    most = votes.amax((1, 2), keepdim=True).clamp(min=1)
    share = votes.to(answers[0].scores.dtype) / len(answers)
    maps = {
        name: [torch.stack(level).mean(0) for level in zip(*(one.maps[name] for one in answers), strict=True)]
        for name in answers[0].maps
    }
    scores = torch.stack([1 - share, share], dim=1)
    return Segmentation(scores, answers[0].size, maps=maps, is_probability=True, decided=(2 * votes >= most).long())


def _unit(features: Tensor) -> Tensor:
    """Vectors along dimension 1 brought to length 1."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    lengths: Tensor = features.norm(dim=1, keepdim=True, dtype=dtype)
    return (features / (lengths + EPS)).to(features.dtype)
