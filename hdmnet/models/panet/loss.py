"""PANet's loss (paper Sec. 3.3 and 3.4): cross entropy of the query, and of the supports by the query's prototypes.

Dimension letters: B episodes, K shots, H W input pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.checks import check_weight
from hdmnet.models.losses import segmentation_loss
from hdmnet.models.method import upsample
from hdmnet.models.panet.model import PANetSegmentation


class PANetLoss(nn.Module):
    """Cross entropy of the prediction, and the prototype alignment regularisation.

    Args:
        align: λ, weight of the alignment; 0 switches it off, and measures it all the same.

    Raises:
        ValueError: It is negative or not finite.
    """

    def __init__(self, *, align: float = 1.0) -> None:
        super().__init__()
        check_weight("loss.align", align)
        self.align = align

    def forward(self, output: PANetSegmentation, query_mask: Tensor) -> dict[str, Tensor]:
        """Score an answer.

        Args:
            output: Of a call in training mode; of another one only the prediction is scored.
            query_mask: (B, H, W) integer, 0/1/255.

        Returns:
            Scalars: ``loss``, the weighted sum; ``final``; ``align``.
        """
        final = segmentation_loss(output.logits, query_mask)
        if output.support_scores is None or output.support_masks is None or output.aligned is None:
            return {"loss": final, "final": final}
        labels = (output.support_masks == 1).long().flatten(0, 1)  # 255 is background here
        scores = upsample(output.support_scores.flatten(0, 1), (labels.shape[1], labels.shape[2]), align_corners=False)
        each = F.cross_entropy(scores, labels, reduction="none").mean((1, 2)).unflatten(0, (len(query_mask), -1))
        align = (each * output.aligned[:, None]).mean()  # (B, K): an episode without any foreground adds 0
        return {"loss": final + self.align * align if self.align else final, "final": final, "align": align}
