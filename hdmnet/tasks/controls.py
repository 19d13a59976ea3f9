"""The baselines that run on the test's episodes: the untrained prototype, and the method with support masks of ones.

Neither is trained, and the second is told nothing of the object: a trained method that is no better than both has
learnt nothing that its user asked for. Where the method's trunk allows it, a picture goes through the trunk once for
all three.

Dimension letters: B episodes, K shots, Q S pictures encoded as queries and as supports, H W input pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from hdmnet.data.types import Episode
from hdmnet.models.backbones.base import encoding_once
from hdmnet.models.batch import Batch
from hdmnet.models.frozen_backbone import FrozenBackbone
from hdmnet.models.method import FINAL, FewShotMethod, Segmentation, encodes_apart
from hdmnet.models.prototype.model import Prototype
from hdmnet.models.similarity import QueryUnits, SupportUnits, foreground_share
from hdmnet.models.trunk import FrozenTrunk
from hdmnet.tasks.feature_store import match

UNTRAINED, ONES = "untrained_prototype", "support_mask_ones"


class NoTrunkError(ValueError):
    """A method has no backbone that a prototype could stand on."""


@dataclass
class SideBySide(Batch):
    """The features of B pictures for the method and for its controls.

    Attributes:
        parts: By name, "final" being the method. Tensors that two of them share are kept once.
    """

    parts: dict[str, Batch]

    def unbind(self) -> list[SideBySide]:
        """One item each, in memory of their own."""
        columns = {name: part.unbind() for name, part in self.parts.items()}
        for name, field, earlier, its_field in self._shared():
            for one, other in zip(columns[name], columns[earlier], strict=True):
                setattr(one, field, getattr(other, its_field))
        return [SideBySide(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors, of what is shared once."""
        shared: int = sum(getattr(self.parts[name], field).nbytes for name, field, *_ in self._shared())
        total: int = sum(part.num_bytes for part in self.parts.values())
        return total - shared

    def _shared(self) -> Iterator[tuple[str, str, str, str]]:
        """Part and field of each tensor that is also a field of an earlier part, and that one's part and field."""
        seen: dict[int, tuple[str, str]] = {}
        for name, part in self.parts.items():
            for field, value in part._items():
                if isinstance(value, Tensor):
                    if id(value) in seen:
                        yield (name, field, *seen[id(value)])
                    seen.setdefault(id(value), (name, field))


class Controls:
    """A method together with its controls, that encodes pictures for all of them.

    Args:
        method: The method.
        untrained: The prototype, None to leave it out.
        ones: Whether the method also sees support masks of ones.
        limit: The controls run on the first so many episodes of the first seed; None: on all of that seed.
    """

    def __init__(
        self, method: FewShotMethod, *, untrained: Prototype | None, ones: bool = True, limit: int | None = None
    ) -> None:
        self.method, self.apart = method, encodes_apart(method)
        self.untrained, self.ones, self.limit = untrained, ones, limit
        self.missing: dict[str, str] = {}  # controls that had to be given up, and why
        # Methods that see unit vectors of the very trunk: theirs are the prototype's.
        trunk = getattr(method, "trunk", None)
        self._has_units = (
            untrained is not None and isinstance(trunk, FrozenBackbone) and trunk.levels == untrained.trunk.levels
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the controls."""
        return (*([UNTRAINED] if self.untrained is not None else []), *([ONES] if self.ones else []))

    def chosen(self, index: Tensor, seed_index: Tensor) -> list[int]:
        """Of episodes with these places in manifests (E,) of these seeds (E,), those that the controls run on."""
        pairs = zip(index.tolist(), seed_index.tolist(), strict=True)
        return [i for i, (place, seed) in enumerate(pairs) if seed == 0 and (self.limit is None or place < self.limit)]

    def encode_query(self, images: Tensor) -> SideBySide:
        """Encode query pictures (Q, 3, H, W) float, normalised."""
        self._move(images.device)
        with encoding_once():
            parts: dict[str, Batch] = {FINAL: self.apart.encode_query(images)}
            if self.untrained is not None:
                own = parts[FINAL]
                shared = self._has_units and isinstance(own, QueryUnits)
                parts[UNTRAINED] = own if shared else self.untrained.encode_query(images)
        return SideBySide(parts)

    def encode_support(self, images: Tensor, masks: Tensor) -> SideBySide:
        """Encode supports (S, 3, H, W) float, normalised, with masks (S, H, W), 0/1/255."""
        self._move(images.device)
        with encoding_once():
            own = self.apart.encode_support(images, masks)
            shared = self._has_units and type(own) is SupportUnits
            parts: dict[str, Batch] = {FINAL: own}
            if self.untrained is not None:
                parts[UNTRAINED] = own if shared else self.untrained.encode_support(images, masks.to(images.device))
            if self.ones:
                ones = torch.ones_like(masks)
                if shared:
                    units = cast("SupportUnits", own).units
                    share = foreground_share(ones.to(units.device), (units.shape[2], units.shape[3]))
                    parts[ONES] = SupportUnits(units, share)
                else:
                    parts[ONES] = self.apart.encode_support(images, ones)
        return SideBySide(parts)

    def match(
        self,
        queries: Sequence[SideBySide],
        supports: Sequence[Sequence[SideBySide]],
        chosen: Sequence[int],
        class_index: Tensor | None = None,
    ) -> dict[str, Segmentation]:
        """Segment B encoded queries by K encoded supports each; with the controls those that are chosen.

        Returns:
            By name, of the method ("final") all B, of the controls the chosen ones, in this order.
        """

        def segment(apart: Any, parts: tuple[str, str], items: Sequence[int]) -> Segmentation:
            query = [queries[i].parts[parts[0]] for i in items]
            support = [one.parts[parts[1]] for i in items for one in supports[i]]
            index = None if class_index is None else class_index[list(items)]
            return match(apart, query, support, shots=len(supports[0]), class_index=index)

        found = {FINAL: segment(self.apart, (FINAL, FINAL), range(len(queries)))}
        ways = {UNTRAINED: (self.untrained, (UNTRAINED, UNTRAINED)), ONES: (self.apart, (FINAL, ONES))}
        return found | self._try({name: partial(segment, *ways[name], chosen) for name in self.names if chosen})

    def run(
        self, episode: Episode, chosen: Sequence[int], class_index: Tensor | None = None
    ) -> dict[str, Segmentation]:
        """As `match`, of a batch of whole episodes."""
        self._move(episode.query_image.device)
        queries, images, masks = episode.query_image, episode.support_images, episode.support_masks
        items = list(chosen)
        picked = queries[items], images[items], masks[items]
        index = None if class_index is None else class_index[items]
        ways = {
            UNTRAINED: lambda: cast("Prototype", self.untrained)(*picked[:2], picked[2].to(images.device)),
            ONES: lambda: self.method(*picked[:2], torch.ones_like(picked[2]), index),
        }
        with encoding_once():
            found = {FINAL: self.method(queries, images, masks, class_index)}
            return found | self._try({name: ways[name] for name in self.names if items})

    def _move(self, device: torch.device) -> None:
        """Bring a backbone that is the prototype's own to the method's device."""
        if self.untrained is not None:
            with torch.inference_mode(False):  # or its weights would be none that can be loaded or copied
                self.untrained.to(device)

    def _try(self, ways: Mapping[str, Callable[[], Segmentation]]) -> dict[str, Segmentation]:
        """Run controls; one that takes more memory than the device has is given up, as it must not end the test."""
        found = {}
        for name, run in ways.items():
            if name not in self.missing:
                try:
                    found[name] = run()
                except torch.OutOfMemoryError:
                    self.missing[name] = "out of the device's memory; lower batch_size"
        return found


def untrained_beside(method: nn.Module) -> Prototype:
    """The untrained prototype on a method's own trunk, as that is now: its levels, in its precision.

    Raises:
        NoTrunkError: The method holds no backbone, or one that gives its features in another way.
    """
    trunk = getattr(method, "trunk", None)
    if isinstance(trunk, FrozenBackbone | FrozenTrunk):
        return Prototype(encoder=trunk).eval()
    backbones = [part for part in method.modules() if hasattr(part, "feature_info") and hasattr(part, "multiple_of")]
    if not backbones:
        raise NoTrunkError("it keeps no backbone that gives features of levels")
    backbone = backbones[0]
    if any(parameter.requires_grad for parameter in backbone.parameters()):
        backbone = copy.deepcopy(backbone).requires_grad_(False)  # the prototype's own is fixed
    return Prototype(encoder=backbone).eval()
