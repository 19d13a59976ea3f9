"""Correlation matching of query and support at one stage (paper Sec. 3.3, Eqs. 3-7).

Symbols: q, k = W^q F^q, W^k F^s, L2-normalised per head; t = `temperature` (0.1); scores C = q·k / t (Eq. 4); the
inverse softmax runs over the query positions (Eq. 5); C' = the correlation map (Eq. 7).

Three facts make it small and fast without changing a result:

* Only foreground support positions take part, so they are picked first: the background columns, which the release sets
  to 0 after the softmax, would add nothing.
* The inverse softmax treats every support position apart. So the supports are walked in blocks, whose scores are
  forgotten at once and made again in the backward pass: memory O(N·C) in place of O(N·N·K). A score is at most 1/t:
  that takes the place of the softmax's running maximum.
* C' is a mean of inner products, hence the inner product with a mean: no matrix at all.

Dimension letters: B batch, K shots, C channels, N query positions, M foreground support positions over all shots, d
head channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hdmnet.models.attention import CrossAttention, merge_heads, to_map, to_tokens
from hdmnet.models.checks import check_positive
from hdmnet.models.hdmnet.matching_variants import attend as attend_variant
from hdmnet.models.hdmnet.matching_variants import check_variant
from hdmnet.models.packed import Rows, find_foreground

COUNT_EPS = 1e-9
MIN_BOUNDED = 0.05
# Scores held at once: on a CPU what stays in its cache, on a GPU what keeps it busy.
BLOCK_SCORES_CPU, BLOCK_SCORES_GPU = 2**20, 2**24


class InverseSoftmaxAttention(torch.autograd.Function):
    """The inverse softmax of ``q @ k.T / t``, times v, never holding more than a block of scores."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, temperature: float) -> Tensor:
        """Of q (B, N, d), rows of length 1, k (B, M, d), of length 1 or 0, and v (B, M, e), all float: (B, N, e).

        Row i is the sum over j of A_ij v_j, with A_ij = exp(q_i·k_j / t) / sum_i exp(q_i·k_j / t).
        """
        message = torch.zeros(*q.shape[:2], v.shape[2], dtype=v.dtype, device=v.device)
        totals = []
        for part in _blocks(q, k):
            scores = _exponentials(q, k[:, part], temperature)  # (B, m, N)
            totals.append(scores.sum(2, keepdim=True))
            message.baddbmm_(scores.transpose(1, 2), v[:, part] / totals[-1])
        ctx.save_for_backward(q, k, v, torch.cat(totals, dim=1))
        ctx.temperature = temperature
        return message

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of q, k and v from that of the message (B, N, e), the scores made again."""
        q, k, v, totals = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.zeros_like(q), torch.empty_like(k), torch.empty_like(v)
        # In 32 bits, as the forward pass: `torch.compile` traces this where mixed precision is on.
        with torch.autocast(q.device.type, enabled=False):
            for part in _blocks(q, k):
                attention = _exponentials(q, k[:, part], ctx.temperature)  # (B, m, N)
                attention.div_(totals[:, part])  # rows sum to 1
                grad_v[:, part] = torch.bmm(attention, grad)
                # Softmax backward; the sum over the query of A * dA is v_j · dv_j.
                grad_scores = torch.bmm(v[:, part], grad.transpose(1, 2))
                grad_scores.sub_((v[:, part] * grad_v[:, part]).sum(2, keepdim=True)).mul_(attention)
                grad_k[:, part] = torch.bmm(grad_scores, q)
                grad_q.baddbmm_(grad_scores.transpose(1, 2), k[:, part])
        return grad_q.div_(ctx.temperature), grad_k.div_(ctx.temperature), grad_v, None


def _blocks(q: Tensor, k: Tensor) -> list[slice]:
    """Cut the positions of k (B, M, d) so that a block's scores with q (B, N, d) stay within the budget."""
    budget = BLOCK_SCORES_CPU if q.is_cpu else BLOCK_SCORES_GPU
    step = max(budget // (q.shape[0] * q.shape[1]), 16)
    return [slice(start, start + step) for start in range(0, k.shape[1], step)]


def _exponentials(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """exp(q·k / t - c), at most 1, with a c for each support position: (B, m, N) of q (B, N, d) and k (B, m, d)."""
    scores = torch.bmm(k / temperature, q.transpose(1, 2))
    # Scores lie within 1/t of 0; below t = 0.05 the exponentials of so wide a range would vanish in 32 bits.
    largest = 1.0 / temperature if temperature >= MIN_BOUNDED else scores.amax(2, keepdim=True)
    return scores.sub_(largest).exp_()


class CorrelationMatching(CrossAttention):
    """Match a query against the foreground of K supports by dense cosine correlation.

    A pre-norm layer whose attention is the correlation, then the prior masks are merged in by a 3×3 convolution. (The
    paper's Eq. 6 has a 1×1 projection: `merge_kernel=1`.)

    Args:
        channels: C.
        num_heads: Heads of the correlation.
        temperature: t of Eq. 4.
        num_priors: Prior masks merged in.
        dropout: As in the pyramid.
        merge_kernel: 3 as in the release, or 1 as in Eq. 6.
        num_shots: K of the training. The message grows with the number of support positions, so with another K at run
            time it is scaled by num_shots / K. None: never (the release needs a model of its own for each K).
        score: "cosine", or "dot" (paper Table 5).
        normalise: "query" (the inverse softmax), "support" or "none"; see `hdmnet.models.hdmnet.matching_variants`.

    Raises:
        ValueError: Unknown `score` or `normalise`, or another value out of range.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 2,
        temperature: float = 0.1,
        num_priors: int = 2,
        dropout: float = 0.1,
        merge_kernel: int = 3,
        num_shots: int | None = None,
        score: str = "cosine",
        normalise: str = "query",
    ) -> None:
        check_variant(score, normalise)
        check_positive("model.matching.temperature", temperature)
        if isinstance(num_heads, bool) or not isinstance(num_heads, int) or num_heads < 1 or channels % num_heads:
            raise ValueError(f"model.matching.num_heads={num_heads}: expected a divisor of {channels}")
        if type(merge_kernel) is not int or merge_kernel not in (1, 3):
            raise ValueError(f"model.matching.merge_kernel={merge_kernel}: expected 1 or 3")
        super().__init__(channels, num_heads=num_heads, dropout=dropout)
        self.score = score
        self.normalise = normalise
        self.temperature = temperature
        # A softmax or a mean over the support does not grow with the number of its positions.
        self.num_shots = num_shots if normalise == "query" else None
        merge = nn.Conv2d(channels + num_priors, channels, merge_kernel, padding=merge_kernel // 2, bias=False)
        nn.init.kaiming_normal_(merge.weight, mode="fan_out", nonlinearity="relu")
        self.merge = nn.Sequential(merge, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))

    def forward(self, query: Tensor, support: Tensor, support_mask: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Match one stage against whole support maps.

        Args:
            query: (B, C, h, w) float, F^q.
            support: (B, K, C, h_s, w_s) float, F^s.
            support_mask: (B, K, H, W) float, 1 on foreground and 0 elsewhere; resized by nearest neighbour.
            prior: (B, P, h_1, w_1) float; resized bilinearly (corners aligned) to (h, w).

        Returns:
            The enriched query X (B, C, h, w) and the correlation map C' (B, h, w), before any softmax.
        """
        foreground = find_foreground(support_mask.flatten(0, 1), (support.shape[3], support.shape[4]))
        return self.match(query, foreground.gather(support.flatten(0, 1)), prior, shots=support.shape[1])

    def match(self, query: Tensor, support: Rows, prior: Tensor, *, shots: int) -> tuple[Tensor, Tensor]:
        """As `forward`, from the foreground of B·K supports: items of (M_s, C), those of query 0 first."""
        size = (query.shape[2], query.shape[3])
        source, valid = support.merge(shots).pad()  # (B, M, C)
        tokens = to_tokens(query)  # (B, N, C)
        attended, correlation = self.attend(self.norm1(tokens), self.norm1(source), valid)
        if self.num_shots is not None and self.num_shots != shots:
            attended = attended * (self.num_shots / shots)
        tokens = tokens + attended
        tokens = tokens + self.feed_forward(self.norm2(tokens), size)
        prior = F.interpolate(prior, size, mode="bilinear", align_corners=True)
        merged: Tensor = self.merge(torch.cat([to_map(tokens, size), prior], dim=1))
        return merged, correlation.unflatten(1, size)

    def attend(self, query: Tensor, support: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Correlate normed tokens (B, N, C) and (B, M, C), where valid (B, M) bool (Eqs. 4, 5, 7).

        Returns:
            Projected, dropped-out message (B, N, C) and correlation map (B, N).
        """
        # 16 bits (mixed precision) would blur scores that reach 10; in 32 this costs next to nothing beside the trunk.
        q, k, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in self.heads(query, support))
        with torch.autocast(query.device.type, enabled=False):
            message, correlation = self.correlate(q, k, v, valid)
        return self.dropout(self.output(merge_heads(message))), correlation.mean(1)

    def correlate(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's own score and softmax on heads q (B, heads, N, d), k and v (B, heads, M, d), valid (B, M) bool.

        Returns:
            Message (B, heads, N, d) and correlation map of each head (B, heads, N).
        """
        if (self.score, self.normalise) == ("cosine", "query"):
            return correlate(q, k, v, valid, self.temperature)
        return attend_variant(q, k, v, valid, score=self.score, normalise=self.normalise, temperature=self.temperature)


def correlate(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Eqs. 4, 5 and 7: as `CorrelationMatching.correlate`, on heads (B, heads, N or M, d)."""
    q, k = F.normalize(q, dim=3), F.normalize(k, dim=3)
    weight = valid[:, None, :, None].to(q.dtype)
    flat = (x.flatten(0, 1) for x in (q, k, v * weight))
    message: Tensor = InverseSoftmaxAttention.apply(*flat, temperature).unflatten(0, q.shape[:2])
    mean_key = (k * weight).sum(2) / (weight.sum(2) + COUNT_EPS) / temperature  # (B, heads, d)
    return message, (q @ mean_key[..., None])[..., 0]
