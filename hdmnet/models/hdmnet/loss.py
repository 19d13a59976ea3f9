"""Losses: cross entropy of final and meta prediction, and the correlation distillation (paper Sec. 3.4, Eqs. 8-9).

The distillation's rivals in the paper's Table 6 are here too; `DISTILLATION_KINDS` names them:

* "kl_teacher": the method. KL divergence between softmaxes over the positions, the next coarser map as the teacher.
* "ce_teacher" ("CE+KD"): the same teachers, but cross entropy position by position, foreground against background. As
  distributions over the positions the cross entropy would have the gradient of the KL divergence, the teacher being
  detached; the paper reports the two as different.
* "ce_truth" ("CE"): that cross entropy of each map against the ground truth, without any teacher.

Dimension letters: B batch, H W input pixels, h_l w_l size of stage l (1 = finest), P positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.checks import check_choice, check_positive, check_weight
from hdmnet.models.losses import probability_loss, segmentation_loss
from hdmnet.models.method import Segmentation

LOG_EPS = 1e-12
DISTILLATION_KINDS = ("kl_teacher", "ce_teacher", "ce_truth")


class HDMNetLoss(nn.Module):
    """Cross entropy of final and meta prediction, and the correlation distillation (Sec. 3.4 and 4.1).

    The cross entropy of the base learner's prediction carries no gradient, as that is frozen: it has no weight. Without
    an ensemble the meta learner's prediction is the final one, and counts once.

    Args:
        final: Weight of the final prediction's term.
        meta: Weight of the meta learner's, where it is another one.
        distillation: Weight of the distillation; 0 switches it off, and measures it all the same.
        distillation_kind: One of `DISTILLATION_KINDS` (Table 6).
        temperature: T of Eq. 8.
        final_on: "probabilities": softmax cross entropy of the fused probabilities, as in the release; "log": their
            negative log-likelihood. A final prediction that is logits is not concerned.

    Raises:
        ValueError: A value is out of range or unknown.
    """

    def __init__(
        self,
        *,
        final: float = 1.0,
        meta: float = 1.0,
        distillation: float = 1.0,
        distillation_kind: str = "kl_teacher",
        temperature: float = 1.0,
        final_on: str = "probabilities",
    ) -> None:
        super().__init__()
        for name, weight in (("final", final), ("meta", meta), ("distillation", distillation)):
            check_weight(f"loss.{name}", weight)
        check_choice("loss.final_on", final_on, ("probabilities", "log"))
        check_positive("loss.temperature", temperature)
        check_choice("loss.distillation_kind", distillation_kind, DISTILLATION_KINDS)
        self.final, self.meta, self.distillation = final, meta, distillation
        self.distillation_kind, self.temperature, self.final_on = distillation_kind, temperature, final_on

    def forward(self, output: Segmentation, query_mask: Tensor) -> dict[str, Tensor]:
        """Score an answer.

        Args:
            output: With correlation maps, and "meta" among its auxiliary predictions where it was fused.
            query_mask: (B, H, W) integer, 0/1/255.

        Returns:
            Scalars: ``loss``, the weighted sum; ``final``; ``meta`` where it was fused; ``distillation`` and one a
            stage.
        """
        score = probability_loss if self.final_on == "log" and output.is_probability else segmentation_loss
        terms = {"final": score(output.logits, query_mask)}
        total = self.final * terms["final"]
        if "meta" in output.auxiliary:
            terms["meta"] = segmentation_loss(output.auxiliary_logits["meta"], query_mask)
            total = total + self.meta * terms["meta"]
        if output.maps.get("correlation"):
            stages = distillation_per_stage(
                output.maps["correlation"], query_mask, self.temperature, self.distillation_kind
            )
            terms["distillation"] = torch.stack(stages).mean()
            terms |= {f"distillation_stage{i}": value for i, value in enumerate(stages, start=1)}
            if self.distillation:
                total = total + self.distillation * terms["distillation"]
        return {"loss": total, **terms}


def ground_truth_teacher(query_mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The teacher of the coarsest correlation map, made from the ground truth.

    The release resizes a map of 1 on foreground and -1e9 elsewhere (255 too) and takes its softmax. In exact arithmetic
    that is: uniform over the cells whose interpolation footprint is foreground only; if there is none, all on the
    cell(s) with the largest foreground share; uniform with no foreground at all. Computed so here, as -1e9 drowns the
    differences in float32.

    Args:
        query_mask: (B, H, W) integer, 0/1/255.
        size: (h, w) of the coarsest stage.

    Returns:
        (B, h·w) float, sums to 1.
    """
    foreground = (query_mask == 1).double()[:, None]
    # Halves or odd weights of the same taps may sum up in another order: compare up to a whisker far below one tap's
    # weight.
    share = F.interpolate(foreground, size, mode="bilinear", align_corners=False).flatten(1)
    best = share.amax(1, keepdim=True)
    chosen = (share >= best - 1e-9).double()  # (B, P)
    return (chosen / chosen.sum(1, keepdim=True)).float()


def distillation_per_stage(
    correlation_maps: Sequence[Tensor], query_mask: Tensor, temperature: float = 1.0, kind: str = "kl_teacher"
) -> list[Tensor]:
    """Divergence of each stage from its teacher, mean over the batch (Eq. 9, Table 6).

    The teacher of the coarsest stage is the ground truth; of each other the next coarser map, detached, resized
    (with kind "ce_truth" the ground truth too).

    Args:
        correlation_maps: Finest first, each (B, h_l, w_l) float.
        query_mask: (B, H, W) integer, 0/1/255.
        temperature: T of Eq. 8, above 0, by which maps and teachers are divided; the release has none (T = 1).
        kind: One of `DISTILLATION_KINDS`.

    Returns:
        One scalar a stage, finest first.

    Raises:
        ValueError: The temperature is not above 0, there is no map, or `kind` is unknown.
    """
    check_positive("loss.temperature", temperature)
    check_choice("loss.distillation_kind", kind, DISTILLATION_KINDS)
    if not correlation_maps:
        raise ValueError("no correlation maps to distil; expected one a matching stage")
    losses: list[Tensor] = []
    teacher: Tensor | None = None
    for correlation_map in reversed(correlation_maps):  # coarse → fine
        # 16 bits (mixed precision) would lose the 1e-12 of the logarithms.
        student = correlation_map.to(torch.promote_types(correlation_map.dtype, torch.float32)) / temperature
        if teacher is not None:
            size = (student.shape[1], student.shape[2])
            teacher = F.interpolate(teacher[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        if kind == "kl_teacher":
            losses.append(_kl_divergence(student, teacher, query_mask))
        else:
            losses.append(_map_cross_entropy(student, teacher, query_mask))
        teacher = None if kind == "ce_truth" else student.detach()
    return losses[::-1]


def _kl_divergence(student: Tensor, teacher: Tensor | None, query_mask: Tensor) -> Tensor:
    """KL of two maps (B, h, w), softmaxed over the positions; without a teacher from the ground truth (Eq. 9)."""
    if teacher is None:
        target = ground_truth_teacher(query_mask, (student.shape[1], student.shape[2])).to(student.dtype)
    else:
        target = teacher.flatten(1).softmax(1)
    prediction = student.flatten(1).softmax(1)
    divergence = target * ((target + LOG_EPS).log() - (prediction + LOG_EPS).log())
    return divergence.sum(1).mean()


def _map_cross_entropy(student: Tensor, teacher: Tensor | None, query_mask: Tensor) -> Tensor:
    """Cross entropy of a map (B, h, w) read as the logit of foreground, position by position (Table 6, "CE").

    The paper leaves open how a correlation map is a prediction. Against the teacher's soft labels it is compared at its
    own size; against the ground truth at that one's, as the segmentation losses are, 255 ignored.
    """
    if teacher is not None:
        return F.binary_cross_entropy_with_logits(student, teacher.sigmoid())
    logits = F.interpolate(student[:, None], query_mask.shape[1:], mode="bilinear", align_corners=False)
    # Softmax of (0, x) is the sigmoid of x.
    return segmentation_loss(torch.cat([torch.zeros_like(logits), logits], dim=1), query_mask)


def correlation_distillation(
    correlation_maps: Sequence[Tensor], query_mask: Tensor, temperature: float = 1.0, kind: str = "kl_teacher"
) -> Tensor:
    """The mean of `distillation_per_stage` over the stages (Sec. 3.4), of maps (B, h_l, w_l): a scalar, at least 0."""
    return torch.stack(distillation_per_stage(correlation_maps, query_mask, temperature, kind)).mean()
