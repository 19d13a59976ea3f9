"""The matching modules that the paper compares with its own (Table 5; Table 4, rows without "Corr.").

Written with q, k, v of one head, after the projections; C_ij is the score of query position i and support position j:

| `score` | C_ij | |
|---|---|---|
| "cosine" | ⟨q_i, k_j⟩ / (‖q_i‖ ‖k_j‖ t) | Eq. 4 |
| "dot" | ⟨q_i, k_j⟩ / √d | Eq. 2 |

| `normalise` | message to query position i | |
|---|---|---|
| "query" | Σ_j v_j exp(C_ij) / Σ_i' exp(C_i'j) | the inverse softmax, Eq. 5 |
| "support" | Σ_j v_j exp(C_ij) / Σ_j' exp(C_ij') | plain attention, Eq. 2 |
| "none" | Σ_j v_j C_ij / M | no softmax; the paper does not say how it is scaled: here by the mean |

"CA" of Table 5 is dot with support, "Cos" cosine with none, "Cos+SM" cosine with support, "Cos+Inv-SM" cosine with
query: the method itself, which `hdmnet.models.hdmnet.matching` computes faster. Only the supports' foreground takes
part, in every softmax and sum. The correlation map that is distilled is the same function of C in all of them, Eq. 7
before any softmax: the paper distils "the dot product between the query and key sequences" of CA too (Sec. 4.3).

Dimension letters: B batch, N query positions, M foreground support positions over all shots, d head channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hdmnet.models.checks import check_choice

SCORES = ("cosine", "dot")
NORMALISATIONS = ("query", "support", "none")
COUNT_EPS = 1e-9
BLOCK = 512  # support positions whose scores with all the query are held at once


def check_variant(score: str, normalise: str) -> None:
    """Refuse what is not in the tables above, with a ValueError."""
    check_choice("model.matching.score", score, SCORES)
    check_choice("model.matching.normalise", normalise, NORMALISATIONS)


def attend(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor, *, score: str, normalise: str, temperature: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Correlate query and support positions.

    Args:
        q: (B, heads, N, d) float, not normalised.
        k: (B, heads, M, d) float, not normalised.
        v: (B, heads, M, d) float.
        valid: (B, M) bool, False on padding, which counts nowhere. An item without any foreground gets zeros.
        score: "cosine" or "dot".
        normalise: "query", "support" or "none".
        temperature: t of Eq. 4; not used by "dot".

    Returns:
        Message (B, heads, N, d), and correlation map (B, heads, N): mean of C_ij over the foreground j (Eq. 7).

    Raises:
        ValueError: Unknown `score` or `normalise`.
    """
    check_variant(score, normalise)
    scale = q.shape[3] ** -0.5
    if score == "cosine":
        q, k, scale = F.normalize(q, dim=3), F.normalize(k, dim=3), 1.0 / temperature
    weight = valid[:, None, :, None].to(q.dtype)  # (B, 1, M, 1)
    q, k, v = q * scale, k * weight, v * weight
    count = weight.sum(2, keepdim=True) + COUNT_EPS
    # A mean of inner products is the inner product with a mean.
    correlation = (q @ (k.sum(2, keepdim=True) / count).transpose(2, 3))[..., 0]
    if normalise == "query":
        return _inverse_softmax(q, k, v), correlation
    if normalise == "support":
        return _softmax(q, k, v, valid), correlation
    return q @ (k.transpose(2, 3) @ v / count), correlation  # without a softmax no matrix of N·M is needed


def _softmax(q: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> Tensor:
    """Softmax over the support (Eq. 2), (B, heads, N, d); q holds the scale, v is 0 on padding."""
    # A row of padding only would be 0/0: such an item attends to one padded position, whose value is 0.
    nothing = ~valid.any(1)
    mask = torch.cat([valid[:, :1] | nothing[:, None], valid[:, 1:]], dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], scale=1.0)


def _inverse_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax over the query (Eq. 5), (B, heads, N, d), scores without a bound; blocks of M, recomputed backwards."""
    message = torch.zeros_like(q)
    for k_block, v_block in zip(k.split(BLOCK, 2), v.split(BLOCK, 2), strict=True):
        part = checkpoint(_inverse_softmax_block, q, k_block, v_block, use_reentrant=False, preserve_rng_state=False)
        message = message + part
    return message


def _inverse_softmax_block(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(2, 3)).softmax(2) @ v
