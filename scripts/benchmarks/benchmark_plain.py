"""Methods written down step by step, with the weights of ours: what `benchmark_methods.py` compares with.

Each takes a model, whose mode it shares, and gives a function of query pictures (1, 3, H, W), supports (1, K, 3, H, W)
and masks (1, K, H, W) that returns the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hdmnet.models.backbones.base import encode
from hdmnet.models.class_prototypes import ClassPrototypes, QueryMap
from hdmnet.models.cyctr.model import CyCTRSegmentation
from hdmnet.models.cyctr.support import SupportTokens, draw, find_object
from hdmnet.models.cyctr.transformer import position_code
from hdmnet.models.method import Segmentation
from hdmnet.models.method import upsample as upsample_to
from hdmnet.models.panet.model import PANet
from hdmnet.models.ssp import self_support as ssp_parts
from hdmnet.models.ssp.model import SSP, SSPSegmentation

PlainForm = Callable[[Tensor, Tensor, Tensor], Segmentation]


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, h, w) at a size (H, W)."""
    return upsample_to(maps, (size[0], size[1]))


@torch.no_grad()
def features(model: Any, images: Tensor) -> list[list[Tensor]]:
    """Features of every block by stage, the trunk as it is."""
    stages: list[list[Tensor]] = model.trunk.by_stage(encode(model.trunk.backbone, images))
    return stages


def plain_hsnet(model: Any) -> PlainForm:
    """HSNet, one support after the other."""
    learner = model.learner

    def convolve(conv: Any, x: Tensor) -> Tensor:
        b, _, h, w, m, n = x.shape
        stride = conv.support.stride[0]
        kept = x[..., ::stride, ::stride]
        planes = kept.permute(0, 4, 5, 1, 2, 3).reshape(-1, x.shape[1], h, w)
        of_query = conv.query(planes).view(b, *kept.shape[4:], -1, h, w).permute(0, 3, 4, 5, 1, 2)
        of_support = conv.support(x.permute(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1], m, n))
        out: Tensor = of_query + of_support.view(b, h, w, -1, *kept.shape[4:]).permute(0, 3, 1, 2, 4, 5)
        return out

    def run_block(block: Any, x: Tensor) -> Tensor:
        for conv, norm in zip(block[::3], block[1::3], strict=True):
            x = F.group_norm(convolve(conv, x), norm.num_groups, norm.weight, norm.bias, norm.eps).relu()
        return x

    def correlate(query: Tensor, support: Tensor) -> Tensor:
        query, support = (x / (x.norm(dim=1, keepdim=True) + 1e-5) for x in (query, support))
        return torch.einsum("bchw,bcmn->bhwmn", query, support).clamp(min=0)

    def segment(query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
        squeezed = []
        pairs = zip(features(model, query), features(model, support), learner.squeeze, strict=True)
        for of_query, of_support, block in pairs:
            maps = [correlate(q, s * upsample(mask, s.shape[2:])) for q, s in zip(of_query, of_support, strict=True)]
            squeezed.append(run_block(block, torch.stack(maps, 1)))
        x = squeezed.pop()
        for mix in reversed(learner.mix):
            finer = squeezed.pop()
            b, c, h, w, m, n = x.shape
            planes = upsample(x.permute(0, 4, 5, 1, 2, 3).reshape(-1, c, h, w), finer.shape[2:4])
            x = run_block(mix, finer + planes.view(b, m, n, c, *finer.shape[2:4]).permute(0, 3, 4, 5, 1, 2))
        x = learner.decode_coarse(x.mean((4, 5)))
        scores: Tensor = learner.decode_fine(upsample(x, (2 * x.shape[2], 2 * x.shape[3])))
        return scores

    def run(query: Tensor, supports: Tensor, masks: Tensor) -> Segmentation:
        size = (query.shape[2], query.shape[3])
        answers = [segment(query, supports[:, k], masks[:, k, None]) for k in range(supports.shape[1])]
        if len(answers) == 1:
            return Segmentation(answers[0], size)
        votes = torch.stack([upsample(one, size).argmax(1) for one in answers]).sum(0)
        return Segmentation(torch.stack([len(answers) - votes, votes], 1) / len(answers), size, is_probability=True)

    return run


def plain_dcama(model: Any) -> PlainForm:
    """DCAMA, all scores at once and everything side by side."""
    decoder = model.decoder

    def aggregate(attention: Any, query: Tensor, supports: Tensor, values: Tensor) -> Tensor:
        q = attention.encode(query, attention.query)
        k = attention.encode(supports, attention.key).flatten(0, 1)[None]
        q, k = (x.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for x in (q, k))
        weights = attention.dropout((q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(3))
        out: Tensor = (weights @ values.view(1, 1, -1, 1)).mean(1).view(1, *query.shape[2:])
        return out

    def run(query: Tensor, supports: Tensor, masks: Tensor) -> Segmentation:
        (first_q, *of_query), (first_s, *of_support) = features(model, query), features(model, supports[0])
        squeezed = []
        for attention, block, q, s in zip(model.attention, decoder.squeeze, of_query, of_support, strict=True):
            values = upsample(masks[0, :, None], s[0].shape[2:])
            maps = [aggregate(attention, a, b, values) for a, b in zip(q, s, strict=True)]
            squeezed.append(block(torch.stack(maps, 1)))
        x = squeezed.pop()
        for mix in reversed(decoder.mix):
            finer = squeezed.pop()
            x = mix(finer + upsample(x, finer.shape[2:]))
        x = torch.cat([x, of_query[0][-1], of_support[0][-1].amax(0, keepdim=True)], 1)
        x = torch.cat([upsample(x, first_q[-1].shape[2:]), first_q[-1], first_s[-1].amax(0, keepdim=True)], 1)
        x = decoder.decode_coarse(x)
        for stack in (decoder.decode_middle, decoder.decode_fine):
            x = stack(upsample(x, (2 * x.shape[2], 2 * x.shape[3])))
        return Segmentation(x, (query.shape[2], query.shape[3]))

    return run


def plain_bam(model: Any) -> PlainForm:
    """BAM, one support after the other; prior and Gram matrices of all positions, everything concatenated."""
    learner, ensemble = model.trunk.base_learner, model.ensemble
    *parts, last = learner.backbone.parts

    def layers(images: Tensor) -> tuple[Tensor, Tensor]:
        x = images
        for part in parts:
            layer2, x = x, part(x)
        return upsample(layer2, x.shape[2:]), x

    def unit(x: Tensor) -> Tensor:
        return F.normalize(x, dim=1)

    def gram(layer2: Tensor) -> Tensor:
        rows = F.normalize(layer2.flatten(2), dim=2)
        return rows @ rows.transpose(1, 2)

    @torch.no_grad()
    def frozen(query: Tensor, supports: Tensor, masks: Tensor) -> tuple[Any, ...]:
        layer2, layer3 = layers(query)
        layer4 = last(layer3)
        base = learner.classifier(learner.reduce(learner.pyramid_pooling(layer4)))
        described = []
        for k in range(supports.shape[1]):
            s2, s3 = layers(supports[:, k])
            mask = upsample(masks[:, k, None], s3.shape[2:])
            cosine = unit(layer4).flatten(2).transpose(1, 2) @ unit(last(s3 * mask) * mask).flatten(2)
            best = cosine.amax(2)  # (1, h·w)
            low, high = best.amin(1, keepdim=True), best.amax(1, keepdim=True)
            prior = ((best - low) / (high - low + 1e-7)).view(1, 1, *layer4.shape[2:])
            distance = (gram(layer2) - gram(s2)).flatten(1).norm(dim=1) / layer2.shape[1]
            described.append((torch.cat([s3, s2], 1), mask, prior, distance))
        return torch.cat([layer3, layer2], 1), base, described

    def run(query: Tensor, supports: Tensor, masks: Tensor) -> Segmentation:
        middle, base, described = frozen(query, supports, masks)
        distances = torch.stack([distance for *_, distance in described], 1)
        weights = ensemble.weigh_shots(distances)[0]
        prior, prototype = torch.zeros_like(described[0][2]), middle.new_zeros(1, 1, 1, 1)
        for weight, (mid, mask, own, _) in zip(weights, described, strict=True):
            reduced = model.down_support.dropout(F.relu(model.down_support[0](mid)))
            mean = (reduced * mask).sum((2, 3), keepdim=True) / (mask.sum((2, 3), keepdim=True) + 5e-4)
            prior, prototype = prior + weight * own, prototype + weight * mean
        reduced = model.down_query.dropout(F.relu(model.down_query[0](middle)))
        x = F.relu(model.merge[0](torch.cat([reduced, prototype.expand_as(reduced), prior], 1)))
        whole, *local = model.aspp(x)
        x = F.relu(model.reduce[0](torch.cat([whole.expand_as(x), *local], 1)))
        scores = model.classify(x + model.refine(x))
        size = (query.shape[2], query.shape[3])
        return Segmentation(ensemble(scores, base, distances), size, auxiliary={"meta": scores, "base": base})

    return run


class PlainSSP(SSP):
    """SSP with batch normalisation as layers, torch's own memory layout, and both classes' adaptive prototypes."""

    def __init__(self, model: SSP) -> None:
        super().__init__(encoder=model.backbone, refine=model.refine)
        self.trunk = self.backbone
        self.to(memory_format=torch.contiguous_format).train(model.training)

    def match(self, query: QueryMap, support: ClassPrototypes, *, shots: int) -> SSPSegmentation:
        """As `SSP.match`."""
        own = ssp_parts.adaptive_background

        def both(rows: Tensor, units: Tensor, chosen: Tensor) -> Tensor:
            own(rows, units, ~chosen | (torch.arange(chosen.shape[1]) < ssp_parts.FEWEST))  # thrown away, as there
            return own(rows, units, chosen)

        ssp_parts.adaptive_background = both
        try:
            return super().match(query, support, shots=shots)
        finally:
            ssp_parts.adaptive_background = own


class PlainPANet(PANet):
    """PANet with torch's own memory layout, and features upsampled to the pictures' size."""

    def __init__(self, model: PANet) -> None:
        super().__init__(encoder=model.backbone)
        self.to(memory_format=torch.contiguous_format).train(model.training)

    def pool(self, features: Tensor, masks: Tensor) -> Tensor:
        """As `PANet.pool`, by the formula; one support and class after the other, as there."""
        vectors = []
        for feature, mask in zip(features.split(1), masks, strict=True):
            for chosen in (mask != 1, mask == 1):
                large = F.interpolate(feature, mask.shape, mode="bilinear", align_corners=False)
                vectors.append((large * chosen).sum((2, 3)) / (chosen.sum() + 1e-5))
        return torch.unflatten(torch.cat(vectors), 0, (-1, 2))


def plain_cyctr(model: Any) -> PlainForm:
    """CyCTR, everything concatenated, the attention's scores made whole, every position of the prior compared."""
    of = model.transformer

    def attend_near(attention: Any, x: Tensor, position: Tensor, size: Sequence[int]) -> Tensor:
        heads, points, (h, w) = attention.num_heads, attention.num_points, size
        offsets = attention.offsets(x + position).view(len(x), -1, heads, points, 2)
        weights = attention.weights(x + position).view(len(x), -1, heads, points).softmax(3)
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        centre = torch.stack([(columns + 0.5) / w, (rows + 0.5) / h], 2).view(1, -1, 1, 1, 2)
        places = 2 * (centre + offsets / torch.tensor([w, h])) - 1
        values = attention.value(x).view(len(x), h, w, heads, -1)
        found = [
            F.grid_sample(values[..., n, :].permute(0, 3, 1, 2), places[:, :, n], align_corners=False)
            for n in range(heads)
        ]
        mixed = (torch.stack(found, 1) * attention.dropout(weights).transpose(1, 2)[:, :, None]).sum(4)
        out: Tensor = attention.output(mixed.flatten(1, 2).transpose(1, 2))
        return out

    def attend_across(attention: Any, x: Tensor, taken: Any) -> Tensor:
        q, k, v = (
            linear(y).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
            for linear, y in ((attention.query, x), (attention.key, taken.values), (attention.value, taken.values))
        )
        scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
        back = scores.argmax(3).gather(2, scores.argmax(2))
        flags = taken.is_object[:, None].expand_as(back)
        excluded = (flags != flags.gather(2, back)) | taken.invalid[:, None]
        weights = attention.dropout((scores - 1e4 * excluded[:, :, None]).softmax(3))
        out: Tensor = attention.dropout(attention.output((weights @ v).transpose(1, 2).flatten(2)))
        return out

    def run(query: Tensor, supports: Tensor, masks: Tensor) -> CyCTRSegmentation:
        with torch.no_grad():
            of_query, of_support = (encode(model.trunk.backbone, x, size_of=0) for x in (query, supports[0]))
        mid_q = model.reduce_query(torch.cat(of_query[:2], 1))
        mid_s = model.reduce_support(torch.cat(of_support[:2], 1))
        size = mid_q.shape[2:]
        soft = upsample(masks[0, :, None], size)
        prototype = (mid_s * soft).sum((2, 3)) / (soft.sum((2, 3)) + 5e-4)
        high_q, high_s = of_query[2].flatten(2), (of_support[2] * soft).flatten(2)
        lengths = high_s.norm(dim=1)[:, :, None] * high_q.norm(dim=1)[:, None]
        best = (high_s.transpose(1, 2) @ high_q / (lengths + 1e-7)).amax(1)
        low, high = best.amin(1, keepdim=True), best.amax(1, keepdim=True)
        prior = ((best - low) / (high - low + 1e-7)).mean(0).view(1, 1, *size)
        mean = prototype.mean(0)[None, :, None, None].expand_as(mid_q)
        merged_q = model.merge_query(torch.cat([mid_q, mean, prior], 1))
        merged_s = model.merge_support(torch.cat([mid_s, prototype[:, :, None, None].expand_as(mid_s)], 1))
        flags = find_object(masks[0], (size[0], size[1])).reshape(1, -1)
        tokens = SupportTokens(merged_s.flatten(2).transpose(1, 2).flatten(0, 1)[None], flags, torch.zeros_like(flags))
        position = position_code(torch.zeros(1, *size, dtype=torch.bool), merged_q.shape[1]) + of.level
        x, taken = merged_q.flatten(2).transpose(1, 2), None
        for layer in of.layers:
            if taken is None or of.training:
                taken = draw(tokens, of._count(len(masks[0])), own_flags=of.own_flags, fixed=not of.training)
            x = layer.norm1(x + layer.self_dropout(attend_near(layer.self_attention, x, position, size)))
            x = layer.norm2(x + layer.feed_forward1(x))
            x = layer.norm3(x + attend_across(layer.cross_attention, x, taken))
            x = layer.norm4(x + layer.feed_forward2(x))
        decoded = model.project(x.transpose(1, 2).unflatten(2, size))
        decoded = decoded + model.refine(decoded)
        output = CyCTRSegmentation(model.classify(decoded), (query.shape[2], query.shape[3]))
        if model.training:
            output.support_masks = masks[0]
            output.score_supports = partial(model.support_head, decoded, mid_q, mid_s)
        return output

    return run


PLAIN: dict[str, Callable[[Any], PlainForm]] = {
    "hsnet": plain_hsnet,
    "dcama": plain_dcama,
    "cyctr": plain_cyctr,
    "ssp": PlainSSP,
    "panet": PlainPANet,
    "bam": plain_bam,
}
