"""CyCTR's loss: Dice of the query, and of the supports as the query segments them.

Dimension letters: B episodes, H W input pixels.
"""

from __future__ import annotations

from torch import Tensor, nn

from hdmnet.models.checks import check_weight
from hdmnet.models.cyctr.model import CyCTRSegmentation
from hdmnet.models.losses import dice_loss
from hdmnet.models.method import upsample


class CyCTRLoss(nn.Module):
    """Dice losses, the query's with weight 1.

    Args:
        support: Weight of the supports'.

    Raises:
        ValueError: The weight is negative or not finite.
    """

    def __init__(self, *, support: float = 1.0) -> None:
        super().__init__()
        check_weight("loss.support", support)
        self.support = support

    def forward(self, output: CyCTRSegmentation, query_mask: Tensor) -> dict[str, Tensor]:
        """Score an answer.

        Args:
            output: Of a call in training mode; of another one only the query is scored.
            query_mask: (B, H, W) integer, 0/1/255.

        Returns:
            Scalars: ``loss``, the weighted sum, and the terms, not weighted.
        """
        terms = {"final": dice_loss(output.logits, query_mask)}
        total = terms["final"]
        if output.score_supports is not None and output.support_masks is not None:
            scores = upsample(output.score_supports(query_mask), output.size)
            terms["support"] = dice_loss(scores, output.support_masks)
            total = total + self.support * terms["support"]
        return {"loss": total, **terms}
