"""SSP's loss (paper Sec. 3.4): cross entropy of the predictions, and of each picture segmented by its own prototypes.

Dimension letters: B episodes, H W input pixels.
"""

from __future__ import annotations

from torch import Tensor, nn

from hdmnet.models.checks import check_weight
from hdmnet.models.class_prototypes import cosines
from hdmnet.models.losses import segmentation_loss
from hdmnet.models.method import upsample
from hdmnet.models.ssp.model import SSPSegmentation
from hdmnet.models.ssp.self_support import SCALE, pool


class SSPLoss(nn.Module):
    """Cross entropies, the final prediction's with weight 1.

    Args:
        first: Weight of the unrefined prediction's, where it was refined.
        self_query: Weight of the query's by the prototypes of its own mask.
        self_support: Weight of the supports' by theirs.

    Raises:
        ValueError: A weight is negative or not finite.
    """

    def __init__(self, *, first: float = 1.0, self_query: float = 1.0, self_support: float = 0.2) -> None:
        super().__init__()
        self.weights = {"first": first, "self_query": self_query, "self_support": self_support}
        for name, weight in self.weights.items():
            check_weight(f"loss.{name}", weight)

    def forward(self, output: SSPSegmentation, query_mask: Tensor) -> dict[str, Tensor]:
        """Score an answer.

        Args:
            output: Of a call in training mode; of another one only the predictions are scored.
            query_mask: (B, H, W) integer, 0/1/255.

        Returns:
            Scalars: ``loss``, the weighted sum, and the terms, not weighted.
        """
        terms = {"final": segmentation_loss(output.logits, query_mask)}
        if "first" in output.auxiliary:
            terms["first"] = segmentation_loss(output.auxiliary_logits["first"], query_mask)
        features, scores, masks = output.query_features, output.support_scores, output.support_masks
        if features is not None and scores is not None and masks is not None:
            own = SCALE * cosines(features, pool(features, query_mask))
            terms["self_query"] = segmentation_loss(upsample(own, output.size), query_mask)
            terms["self_support"] = segmentation_loss(upsample(scores, output.size), masks)
        total = terms["final"]
        for name, weight in self.weights.items():
            if name in terms:
                total = total + weight * terms[name]
        return {"loss": total, **terms}
