"""How episodes are evaluated: features reused where the model allows it, predictions pooled at the query's own size.

Reuse changes which pictures are encoded together and which episodes are matched together. A convolution or a matrix
product may be computed by another kernel for another batch size, so features and logits agree with those of one
episode at a time up to float rounding (relative 1e-6 or so in float32), and a pixel whose two logits are that close may
change sides: expect a few pixels in a million, and none at all with equal batches. The same holds between two batch
sizes without reuse. Nothing else differs: pooling is exact integer arithmetic, in whatever order.

Dimension letters: B episodes, Q S pictures to encode as queries and as supports, K shots, H W network's square, H0 W0
original size.
"""

from __future__ import annotations

import inspect
import itertools
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from hdmnet.data.episodes.encode_once import FeatureBytes
from hdmnet.models.method import FINAL, encodes_apart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from hdmnet.data.types import EvaluationBatch, FeatureKey
    from hdmnet.metrics import FewShotIoU
    from hdmnet.models.method import EncodesApart, EncodesPictures, Features, FewShotMethod, Segmentation


@torch.no_grad()
def measure_features(
    model: FewShotMethod, image_size: tuple[int, int], apart: EncodesPictures | None = None
) -> FeatureBytes:
    """Find out how much memory the features of one picture (H, W) take, by encoding a blank one.

    In the parameters' precision; under autocast it can be less. `apart` encodes in the model's place.
    """
    training = model.training
    model.eval()  # nothing may be learnt from a blank picture
    apart = encodes_apart(model) if apart is None else apart
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    picture = torch.zeros(1, 3, *image_size, device=device)
    masks = [torch.full((1, *image_size), value, dtype=torch.uint8, device=device) for value in (0, 1)]
    query, (empty, full) = apart.encode_query(picture), (apart.encode_support(picture, mask) for mask in masks)
    model.train(training)
    return FeatureBytes(query.num_bytes, empty.num_bytes, full.num_bytes)


def match(
    model: Any, queries: Sequence[Features], supports: Sequence[Features], *, shots: int, class_index: Tensor | None
) -> Segmentation:
    """Segment B queries, each encoded, by B·K supports, those of query 0 first.

    Their base classes (B,), if they are of such, are told to a model that asks for them.
    """
    told: dict[str, Any] = {"shots": shots}
    if class_index is not None and "class_index" in inspect.signature(model.match).parameters:
        told["class_index"] = class_index
    output: Segmentation = model.match(type(queries[0]).stack(queries), type(supports[0]).stack(supports), **told)
    return output


class FeatureStore:
    """The features that an evaluation keeps; what and for how long, the plan of the batches says.

    Attributes:
        num_bytes: Memory of what is kept now.
        peak_bytes: The most so far.
        num_encoded: Pictures encoded so far.
    """

    def __init__(self) -> None:
        self.num_bytes = self.peak_bytes = self.num_encoded = 0
        self._features: dict[FeatureKey, Features] = {}

    def clear(self) -> None:
        """Forget all features."""
        self._features.clear()
        self.num_bytes = 0

    def take(self, model: EncodesPictures, batch: EvaluationBatch) -> tuple[list[Any], list[list[Any]]]:
        """Encode what the next batch of a plan brings, (Q, 3, H, W) and (S, 3, H, W).

        Returns:
            Of its B episodes the query's features, and those of the K supports.
        """
        for key in batch.drop:
            self.num_bytes -= self._features.pop(key).num_bytes
        if batch.new_queries:
            self._keep(batch.new_queries, model.encode_query(batch.query_images))
        if batch.new_supports:
            self._keep(batch.new_supports, model.encode_support(batch.support_images, batch.support_masks))
        queries = [self._features[key] for key in batch.queries]
        return queries, [[self._features[key] for key in several] for several in batch.supports]

    def segment(self, model: EncodesApart, batch: EvaluationBatch, class_index: Tensor | None = None) -> Segmentation:
        """Encode what the next batch of a plan brings, then segment its B episodes, of base classes (B,) or None."""
        return self.segment_ways(model, batch, 1, class_index)[0]

    def segment_ways(
        self, model: EncodesApart, batch: EvaluationBatch, way: int, class_index: Tensor | None = None
    ) -> list[Segmentation]:
        """As `segment`, of episodes of `way` classes: the answers to the B queries for each of them."""
        queries, supports = self.take(model, batch)
        shots = len(supports[0]) // way
        return [
            match(
                model,
                queries,
                [one for several in supports for one in several[start : start + shots]],
                shots=shots,
                class_index=class_index,
            )
            for start in range(0, len(supports[0]), shots)
        ]

    def _keep(self, keys: Sequence[FeatureKey], features: Features) -> None:
        for key, one in zip(keys, features.unbind(), strict=True):
            self._features[key] = one
            self.num_bytes += one.num_bytes
        self.num_encoded += len(keys)
        self.peak_bytes = max(self.peak_bytes, self.num_bytes)


def count_predictions(output: Segmentation, name: str, masks: Sequence[Tensor], *, mask_index: Sequence[int]) -> Tensor:
    """Compare predictions with the truth, at the truth's size, as the release does.

    Args:
        output: The answer to B episodes.
        name: "final", or an auxiliary prediction of two channels.
        masks: (H0, W0) uint8, 0/1/255 each.
        mask_index: B places in `masks`; items that share a mask stand together, and are resized together.

    Returns:
        (B, 2, 2) int64 on the CPU, pixels as `hdmnet.metrics.count_pixels` gives them.
    """
    from hdmnet.metrics import tally_pixels  # here: `Segmenter` needs `resize` only, and no torchmetrics

    by_rule = output.decided if name == FINAL else None
    predicted = output.logits_of(name) if by_rule is None else by_rule
    tallies, checks = [], []
    for place, run in itertools.groupby(range(len(predicted)), key=lambda number: mask_index[number]):
        items = list(run)
        mask = masks[place]
        resized = resize(predicted[items[0] : items[-1] + 1], mask.shape[-2:])
        tally, check = tally_pixels(resized, mask.expand(len(items), *mask.shape))
        tallies.append(tally)
        checks.append(check)
    tally = torch.cat(tallies).cpu()  # the one wait for a GPU
    for check, own in zip(checks, tally.split([len(one) for one in tallies]), strict=True):
        check(own)
    return tally[:, :4].reshape(-1, 2, 2)


def add_to_metrics(
    pixels: Tensor,
    *,
    class_index: Tensor,
    metrics: Sequence[FewShotIoU],
    item: Sequence[int],
    seed_index: Sequence[int],
) -> None:
    """Add the counts (B, 2, 2) of E episodes of classes (B,), some of which equal one another, to their seeds' metrics.

    `item` says which of the B each of the E equals, `seed_index` to which of the metrics it belongs.
    """
    class_index = class_index.cpu()
    for seed in sorted(set(seed_index)):
        chosen = [one for one, its_seed in zip(item, seed_index, strict=True) if its_seed == seed]
        metrics[seed].add(pixels[chosen], class_index[chosen])


def at_size(output: Segmentation, item: int, size: torch.Size, name: str = FINAL) -> tuple[Tensor, Tensor]:
    """What is said of one of the B queries, at a size (H0, W0), as `count_predictions` compares it.

    Returns:
        Scores (2, H0, W0) float, and where foreground is, (H0, W0) bool: ahead in the scores, or by the method's rule.
    """
    scores = resize(output.logits_of(name)[item : item + 1], size)[0]
    if name == FINAL and output.decided is not None:
        return scores, resize(output.decided[item : item + 1], size)[0].bool()
    return scores, scores[1] > scores[0]


def resize(prediction: Tensor, size: torch.Size) -> Tensor:
    """Bring a prediction to the size (H0, W0).

    Scores (B, 2, H, W) float are interpolated as in the release; of labels (B, H, W), 0 and 1, the nearest is taken.
    """
    if prediction.shape[-2:] == size:
        return prediction
    if prediction.ndim == 3:
        return F.interpolate(prediction[:, None].float(), tuple(size), mode="nearest-exact")[:, 0] > 0.5
    return F.interpolate(prediction, tuple(size), mode="bilinear", align_corners=True)
