"""The dense form: what the official release computes, written plainly from the paper's equations, on our parameters.

It is the baseline of `benchmark.py`: every support position takes part, every product is held whole, supports are
encoded one shot after the other by plain modules. It must give the same predictions as ours.

Dimension letters: B batch, K shots, C channels, h w feature size, N = h·w positions, S = K·N support positions, H W
input pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.attention import merge_heads, split_heads, to_map, to_tokens
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.ensemble import gram_distance, gram_matrix
from hdmnet.models.hdmnet.matching import CorrelationMatching
from hdmnet.models.hdmnet.meta_learner import PRIOR_WEIGHT
from hdmnet.models.hdmnet.model import HDMNet
from hdmnet.models.method import Segmentation

PROTOTYPE_EPS, PRIOR_EPS, COUNT_EPS = 5e-4, 1e-7, 1e-9


def dense_matching(
    layer: CorrelationMatching, query: Tensor, support: Tensor, support_mask: Tensor, prior: Tensor
) -> tuple[Tensor, Tensor]:
    """As `CorrelationMatching.forward`, from the whole N × S matrix of scores (Eqs. 4 to 7)."""
    size = (query.shape[2], query.shape[3])
    mask = F.interpolate(support_mask, support.shape[-2:], mode="nearest").flatten(1)[:, None, None]  # (B, 1, 1, S)
    tokens = to_tokens(query)  # (B, N, C)
    normed = layer.norm1(tokens)
    source = layer.norm1(support.flatten(3).transpose(2, 3).flatten(1, 2))  # (B, S, C)
    q, k, v = (
        split_heads(projection(x), layer.num_heads)
        for projection, x in ((layer.query, normed), (layer.key, source), (layer.value, source))
    )
    scores = (
        F.normalize(q, dim=3) @ F.normalize(k, dim=3).transpose(2, 3) / layer.temperature
    )  # (B, heads, N, S), Eq. 4
    attention = scores.softmax(dim=2) * mask  # Eq. 5, over the query; the background is set to 0 afterwards
    message = layer.dropout(layer.output(merge_heads(attention @ v)))
    correlation = ((scores * mask).sum(3) / (mask.sum(3) + COUNT_EPS)).mean(1)  # Eq. 7
    tokens = tokens + message
    tokens = tokens + layer.feed_forward(layer.norm2(tokens), size)
    prior = F.interpolate(prior, size, mode="bilinear", align_corners=True)
    merged: Tensor = layer.merge(torch.cat([to_map(tokens, size), prior], dim=1))
    return merged, correlation.unflatten(1, size)


def dense_prior(query: Tensor, support: Tensor, support_mask: Tensor) -> Tensor:
    """Prior mask (B, 1, h, w) of features (B, C, h, w) and (B, K, C, h, w), each support against all its positions."""
    mask = F.interpolate(support_mask, support.shape[-2:], mode="nearest")
    q = query.flatten(2)  # (B, C, N)
    priors = []
    for k in range(support.shape[1]):
        s = (support[:, k] * mask[:, k, None]).flatten(2).transpose(1, 2)  # (B, N, C)
        cosine = s @ q / (s.norm(dim=2, keepdim=True) * q.norm(dim=1, keepdim=True) + PRIOR_EPS)  # (B, N, N)
        priors.append(cosine.amax(1))
    mean: Tensor = torch.stack(priors).mean(0).unflatten(1, query.shape[-2:])
    return mean[:, None]


class PlainTrunk(nn.Module):
    """Backbone, pyramid pooling and the base learner's reducing convolution, as the plain modules they are.

    Args:
        learner: In evaluation mode.
    """

    def __init__(self, learner: BaseLearner) -> None:
        super().__init__()
        self.learner = learner

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pictures (B, 3, H, W) → layers 2, 3, 4 and feature 5, each (B, C_l, h_l, w_l)."""
        layer2, layer3, layer4 = self.learner.backbone(images)
        if layer2.shape[-2:] != layer3.shape[-2:]:
            layer2 = F.interpolate(layer2, layer3.shape[-2:], mode="bilinear", align_corners=True)
        return layer2, layer3, layer4, self.learner.reduce(self.learner.pyramid_pooling(layer4))


class DenseHDMNet(nn.Module):
    """An HDMNet computed as the release does.

    Args:
        model: Whose parameters are used, and shared.
        learner: A base learner with the weights of the model's own.
    """

    def __init__(self, model: HDMNet, learner: BaseLearner) -> None:
        super().__init__()
        self.model = model
        self.trunk = PlainTrunk(learner.eval())

    def train(self, mode: bool = True) -> DenseHDMNet:
        """Switch the model's mode; the trunk stays in evaluation mode."""
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(
        self, query_image: Tensor, support_images: Tensor, support_masks: Tensor, class_index: Tensor | None = None
    ) -> Segmentation:
        """As `HDMNet.forward`."""
        meta, ensemble = self.model.meta_learner, self.model.ensemble
        mask = (support_masks == 1).to(query_image.dtype)
        query = self.trunk(query_image)
        supports = [self.trunk(support_images[:, k] * mask[:, k, None]) for k in range(support_images.shape[1])]
        layer2, _, layer4, feature5 = (torch.stack(level, dim=1) for level in zip(*supports, strict=True))
        with torch.no_grad():
            prior = torch.cat([dense_prior(query[3], feature5, mask), dense_prior(query[2], layer4, mask)], dim=1)
            base_scores = self.trunk.learner.classifier(query[3])
        q = meta.down_query(torch.cat([query[1], query[0]], dim=1))
        size = q.shape[-2:]
        merged, prototypes = [], []
        for k, features in enumerate(supports):
            s = meta.down_support(torch.cat([features[1], features[0]], dim=1))
            soft = F.interpolate(mask[:, k, None], size, mode="bilinear", align_corners=True)
            prototype = (s * soft).sum((2, 3), keepdim=True) / (soft.sum((2, 3), keepdim=True) + PROTOTYPE_EPS)
            prototypes.append(prototype)
            merged.append(meta.support_merge(torch.cat([s, prototype.expand_as(s)], dim=1)))
        mean = torch.stack(prototypes).mean(0).expand_as(q)
        resized = F.interpolate(prior, size, mode="bilinear", align_corners=True)
        q_stages = meta.pyramid(meta.query_merge(torch.cat([q, mean, PRIOR_WEIGHT * resized], dim=1)))
        s_stages = [torch.stack(stage, dim=1) for stage in zip(*(meta.pyramid(s) for s in merged), strict=True)]
        matched, maps = [], []
        for layer, one, other in zip(meta.matching, q_stages, s_stages, strict=True):
            assert isinstance(layer, CorrelationMatching)
            enriched, correlation = dense_matching(layer, one, other, mask, prior)
            matched.append(enriched)
            maps.append(correlation)
        meta_scores = final_scores = meta.decoder(matched)
        if ensemble is not None:
            with torch.no_grad():
                grams = torch.stack([gram_matrix(layer2[:, k]) for k in range(layer2.shape[1])], dim=1)
                distances = gram_distance(gram_matrix(query[0]), grams)
            final_scores = ensemble(meta_scores, base_scores, distances, class_index)
        shape = (query_image.shape[2], query_image.shape[3])
        return Segmentation(
            final_scores,
            shape,
            auxiliary={"base": base_scores} if ensemble is None else {"base": base_scores, "meta": meta_scores},
            maps={"correlation": maps, "prior": list(prior.unbind(1))},
            is_probability=ensemble is not None,
        )
