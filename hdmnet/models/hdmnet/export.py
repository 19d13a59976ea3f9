"""HDMNet for exporters: the same function in plain dense operations, of pictures of any size.

Exporters follow neither sizes that depend on data (`PackedRows`), nor weights that are folded when they are first used
(`FrozenTrunk`), nor functions with a backward of their own (`InverseSoftmaxAttention`). Here a support keeps all its
positions, with a mask; every score exists; pooling is a product with a matrix that is made from the size. Everything
else is `HDMNet`'s own code. Results differ from its by rounding only; memory grows with query times support positions.

Dimension letters: B queries, S supports, K shots, H W pixels, h w feature size, N query positions, M support positions,
C channels, d head channels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.backbones.base import LAYER3, encode
from hdmnet.models.base_learner import BaseLearner, PyramidPooling
from hdmnet.models.ensemble import gram_matrix
from hdmnet.models.folding import bin_means, fold_batch_norm
from hdmnet.models.hdmnet.baseline import AlternatingMetaLearner
from hdmnet.models.hdmnet.features import SupportFeatures
from hdmnet.models.hdmnet.matching import COUNT_EPS, CorrelationMatching
from hdmnet.models.hdmnet.model import HDMNet
from hdmnet.models.hdmnet.pyramid import REDUCTIONS
from hdmnet.models.method import Segmentation, foreground_probability
from hdmnet.models.packed import PackedRows, Rows
from hdmnet.models.prior import EPS, stretch
from hdmnet.models.trunk import FrozenTrunk, TrunkFeatures

FAR = 1e9  # taken off what must not count in a maximum or a softmax


@dataclass
class MaskedRows:
    """What `PackedRows` holds, with one number of rows for all items, and a mask; does for the matching what that does.

    Attributes:
        values: (S, M, C) float.
        mask: (S, M) float, 1 on foreground.
    """

    values: Tensor
    mask: Tensor

    def merge(self, size: int) -> MaskedRows:
        """Make one item of every `size` neighbours."""
        values, mask = (x.unflatten(0, (-1, size)).flatten(1, 2) for x in (self.values, self.mask))
        return MaskedRows(values, mask)

    def pad(self) -> tuple[Tensor, Tensor]:
        """Rows (S, M, C) and (S, M) bool, True on foreground."""
        return self.values, self.mask > 0.5


class ExportableHDMNet(HDMNet):
    """An HDMNet with weights of its own, frozen, that exporters can follow; called as the original is.

    Its supports may also be 1·K for any number of queries, which all share them.

    Args:
        model: The trained network; left as it is.

    Raises:
        ValueError: It is the baseline of Table 4, whose supports have to have the query's size.
    """

    def __init__(self, model: HDMNet) -> None:
        if isinstance(model.meta_learner, AlternatingMetaLearner):
            raise ValueError("model=baseline cannot be exported; expected model=hdmnet")
        super().__init__(
            base_learner=copy.deepcopy(model.trunk.base_learner),
            meta_learner=copy.deepcopy(model.meta_learner),
            ensemble=copy.deepcopy(model.ensemble),
            prior_norm=model.prior_norm,
        )
        self.trunk = DenseTrunk(self.trunk.base_learner)
        for layer in self.meta_learner.matching:
            layer.__class__ = DenseMatching  # it only computes otherwise what the layer holds
        self.requires_grad_(False).eval().to(memory_format=torch.contiguous_format)

    @property
    def smallest_side(self) -> int:
        """Least height and width in pixels that an exported graph admits; below, some map would be a single cell."""
        cells = max(2 * max(REDUCTIONS), (1 << len(self.meta_learner.matching) - 1) + 1)
        return (cells - 1) * self.trunk.feature_info[0].stride + 1

    def _goes_at_once(self, queries: Tensor, supports: Tensor) -> bool:
        return False

    def encode_support(self, images: Tensor, masks: Tensor) -> SupportFeatures:
        """As `HDMNet.encode_support`, of (S, 3, H, W), with `MaskedRows` where that has `PackedRows`."""
        mask = (masks == 1).to(images.dtype)
        features = next(iter(self.trunk.encode(images * mask[:, None])))
        reduced = self.meta_learner.reduce_support(features.layer3, features.layer2)
        merged, prototype = self.meta_learner.embed_support(reduced, mask)
        return SupportFeatures(
            stages=[_masked(stage, mask) for stage in self.meta_learner.pyramid(merged)],
            prototype=prototype,
            base_feature=_masked(features.base_feature, mask),
            layer4=_masked(features.layer4, mask),
            gram=None if self.ensemble is None else gram_matrix(features.layer2),
        )

    def prior(self, query: Tensor, keys: Rows, *, shots: int) -> Tensor:
        """As `prior_mask`, (B, 1, h, w), of `MaskedRows`."""
        masked = cast("MaskedRows", keys)
        rows, mask = (x.unflatten(0, (-1, shots)) for x in (masked.values, masked.mask))  # (B, K, M[, C])
        flat = query.flatten(2)[:, None]  # (B, 1, C, N)
        lengths = rows.norm(dim=3)[..., None] * flat.norm(dim=2)[:, :, None]  # (B, K, M, N)
        cosines = rows @ flat / (lengths + EPS) - FAR * (1 - mask[..., None])
        best = cosines.amax(2)  # (B, K, N)
        # Where there is background, its similarity is 0.
        best = torch.where(mask.sum(2, keepdim=True) < best.shape[2], best.clamp(min=0), best)
        if self.prior_norm:
            best = stretch(best)
        result: Tensor = best.mean(1).unflatten(1, query.shape[2:])[:, None]
        return result


class DenseTrunk(FrozenTrunk):
    """The trunk with batch normalisation folded once, in the base learner itself, and all pictures at once."""

    def __init__(self, base_learner: BaseLearner) -> None:
        folded = fold_batch_norm(base_learner.double().eval())  # folded weights are rounded only once
        super().__init__(cast("BaseLearner", folded.float()))

    def encode(self, images: Tensor) -> Iterator[TrunkFeatures]:
        """Encode pictures (B, 3, H, W) together."""
        learner = self.base_learner
        layer2, layer3, layer4 = encode(learner.backbone, images, size_of=LAYER3)[-3:]
        base_feature = learner.reduce(_pool_pyramid(learner.pyramid_pooling, layer4))
        yield TrunkFeatures(layer2, layer3, layer4, base_feature)


class DenseMatching(CorrelationMatching):
    """The matching with all its scores at once (Eqs. 4, 5 and 7; the other rows of Table 5)."""

    def correlate(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Message (B, heads, N, d) and maps (B, heads, N) of q (B, heads, N, d), k and v (B, heads, M, d)."""
        if self.score == "cosine":
            q, k = F.normalize(q, dim=3) / self.temperature, F.normalize(k, dim=3)
        else:
            q = q * q.shape[3] ** -0.5
        weight = valid[:, None, None].to(q.dtype)  # (B, 1, 1, M)
        count = weight.sum(3) + COUNT_EPS  # (B, 1, 1)
        scores = q @ k.transpose(2, 3)  # (B, heads, N, M)
        if self.normalise == "query":
            attention = scores.softmax(2)
        elif self.normalise == "support":
            attention = (scores - FAR * (1 - weight)).softmax(3)
        else:
            attention = scores / count[..., None]
        return (attention * weight) @ v, (scores * weight).sum(3) / count


def answers(outputs: Sequence[Segmentation]) -> tuple[Tensor, Tensor]:
    """Logits (B, C, 2, H, W) and foreground probabilities (B, C, H, W) from the outputs of C classes."""
    logits = torch.stack([output.logits for output in outputs], dim=1)
    return logits, foreground_probability(logits, is_probability=outputs[0].is_probability)


class _Export(nn.Module):
    """What both exported forms share: an `ExportableHDMNet`, and RGB mean and std, of colours in [0, 1]."""

    def __init__(self, model: HDMNet, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = ExportableHDMNet(model)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def normalise(self, pictures: Tensor) -> Tensor:
        """(..., 3, H, W) float, RGB from 0 to 255 → the same shape, as the network takes it."""
        result: Tensor = (pictures / 255 - self.get_buffer("mean")) / self.get_buffer("std")
        return result


class SupportAsInput(_Export):
    """What is exported when the support is an input; see `_Export` for the arguments."""

    def forward(self, query: Tensor, support_images: Tensor, support_masks: Tensor) -> tuple[Tensor, Tensor]:
        """Segment B queries, each with its K supports.

        Args:
            query: (B, 3, H, W) float, RGB from 0 to 255.
            support_images: (B, K, 3, H_s, W_s) float, RGB from 0 to 255.
            support_masks: (B, K, H_s, W_s) any dtype: 1 foreground, 0 background, 255 ignore (counts as background).

        Returns:
            Logits (B, 1, 2, H, W) and foreground probability (B, 1, H, W).
        """
        pictures = self.normalise(query), self.normalise(support_images)
        return answers([self.model(*pictures, support_masks)])


class SupportFitted(_Export):
    """What is exported with the supports fitted in: of them, only the foreground's features are kept, as constants.

    `supports` are of C classes, from the model's `encode_support`, K of each; otherwise as `_Export`.
    """

    def __init__(
        self, model: HDMNet, mean: Sequence[float], std: Sequence[float], supports: Sequence[SupportFeatures]
    ) -> None:
        super().__init__(model, mean, std)
        self.supports = nn.ModuleList(_Constants(support) for support in supports)

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, 3, H, W) float, RGB from 0 to 255 → logits (B, C, 2, H, W) and probabilities (B, C, H, W)."""
        encoded = self.model.encode_query(self.normalise(query))
        constants = [cast("_Constants", support) for support in self.supports]
        return answers([self.model.match(encoded, one.features(), shots=one.shots) for one in constants])


class _Constants(nn.Module):
    """The K supports of one class as buffers."""

    def __init__(self, support: SupportFeatures) -> None:
        super().__init__()
        self.shots = len(support.prototype)
        self.register_buffer("prototype", support.prototype)
        self.register_buffer("gram", support.gram)
        stages = cast("list[PackedRows]", support.stages)
        several = (support.base_feature, support.layer4, *stages)
        self.num_parts = len(several)
        for i, ragged in enumerate(several):
            values, valid = ragged.pad()
            self.register_buffer(f"values{i}", values)
            self.register_buffer(f"mask{i}", valid.to(values.dtype))

    def features(self) -> SupportFeatures:
        """As the matching takes them."""
        parts: list[Any] = [
            MaskedRows(self.get_buffer(f"values{i}"), self.get_buffer(f"mask{i}")) for i in range(self.num_parts)
        ]
        base_feature, layer4, *stages = parts
        return SupportFeatures(stages, cast("Tensor", self.prototype), base_feature, layer4, cast("Any", self.gram))


def _masked(maps: Tensor, masks: Tensor) -> Any:
    """Rows of maps (S, C, h, w) under masks (S, H, W) float, resized by nearest neighbour."""
    small = masks[:, _nearest(masks.shape[1], maps.shape[2])][:, :, _nearest(masks.shape[2], maps.shape[3])]
    mask = small.flatten(1)  # (S, M)
    return MaskedRows(maps.flatten(2).transpose(1, 2), mask)


def _nearest(source: int, target: int) -> Tensor:
    """Places (target,) int64 that torch's nearest neighbour takes from `source`; other runtimes round otherwise."""
    steps = torch.arange(target, dtype=torch.float32)
    ratio = torch.full_like(steps, source) / torch.full_like(steps, target)
    return (steps * ratio).floor().clamp(max=source - 1).to(torch.int64)


def _pool_pyramid(pooling: PyramidPooling, x: Tensor) -> Tensor:
    """`PyramidPooling.forward` of (B, C, h, w), folded, without adaptive pooling: exporters would fix its size."""
    parts = [x]
    for bins, branch in zip(pooling.bins, pooling.branches, strict=True):
        rows, columns = (bin_means(size, bins, x.device).to(x) for size in x.shape[2:])
        pooled = cast("nn.Sequential", branch)[1:](rows @ x @ columns.transpose(0, 1))
        parts.append(F.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=True))
    return torch.cat(parts, dim=1)
