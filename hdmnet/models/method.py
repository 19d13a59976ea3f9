"""The interface of every few-shot method: its inputs, its outputs, and what more it may offer.

A method is a `FewShotMethod`: episodes in, a `Segmentation` out. One that encodes query and support apart from each
other (`EncodesApart`) has its features kept and used again in tests and by `Segmenter`; `encodes_apart` makes the same
of any other method, with the pictures themselves as its features.

Dimension letters: B episodes, K shots, H W input pixels, h w feature size, C channels of an auxiliary prediction, Q S
pictures encoded as queries and as supports.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor, nn

from hdmnet.models.batch import Batch

FINAL = "final"  # the prediction that counts, in `FewShotMethod.reported`
Features = Batch  # what a method that encodes apart keeps of one or more pictures
_SMALL = 1e-6  # least of a fused "probability", which can be negative


@dataclass
class Segmentation:
    """What a method answers to B episodes.

    Attributes:
        scores: (B, 2, h, w) float, background and foreground: logits, or probabilities where `is_probability`.
        size: (H, W) in input pixels, of what is upsampled.
        auxiliary: Further predictions by name, each (B, C, h, w) float logits at a size of its own: HDMNet's meta
            learner and base learner, one a scale of PFENet.
        maps: For pictures and distillation, by name ("prior", "correlation"): (B, h_l, w_l) float each, finest first.
        is_probability: Whether `scores` are probabilities (fused predictions, which need not add up to 1).
        align_corners: Of the upsampling; PANet does without.
        decided: (B, H, W) integer, 0 and 1, of a method that decides by a rule of its own (HSNet's vote over the
            supports); None: foreground is where its score is the larger.
        likeness: (B,) float, how like the supports' foreground a query's likest position is, on a scale that is the
            same for all classes: tells which of several are shown. None: the method has no such measure.
    """

    scores: Tensor
    size: tuple[int, int]
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    maps: dict[str, list[Tensor]] = field(default_factory=dict)
    is_probability: bool = False
    align_corners: bool = True
    decided: Tensor | None = None
    likeness: Tensor | None = None

    # Full resolution is made only when asked for: 61 base classes at 633² are 98 MB a picture.
    @cached_property
    def logits(self) -> Tensor:
        """(B, 2, H, W) float."""
        return upsample(self.scores, self.size, align_corners=self.align_corners)

    @cached_property
    def auxiliary_logits(self) -> Mapping[str, Tensor]:
        """(B, C, H, W) float each, upsampled when it is looked up."""
        return _Upsampled(self.auxiliary, self.size, self.align_corners)

    def logits_of(self, name: str) -> Tensor:
        """(B, C, H, W) float: of the final prediction, or of an auxiliary one."""
        return self.logits if name == FINAL else self.auxiliary_logits[name]

    @property
    def prediction(self) -> Tensor:
        """(B, H, W) int64, 0 and 1."""
        return (self.logits[:, 1] > self.logits[:, 0]).long() if self.decided is None else self.decided.long()


class _Upsampled(Mapping[str, Tensor]):
    """Maps at full resolution, each made when it is first asked for."""

    def __init__(self, scores: Mapping[str, Tensor], size: tuple[int, int], align_corners: bool) -> None:
        self._scores, self._size, self._align_corners = scores, size, align_corners
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            self._made[name] = upsample(self._scores[name], self._size, align_corners=self._align_corners)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)


def upsample(scores: Tensor, size: tuple[int, int], *, align_corners: bool = True) -> Tensor:
    """Scores (B, C, h, w) at the input's size, (B, C, H, W): bilinear, corners aligned, as most of the field does."""
    return F.interpolate(scores, size, mode="bilinear", align_corners=align_corners)


def foreground_probability(scores: Tensor, *, is_probability: bool) -> Tensor:
    """Background and foreground (..., 2, H, W) → (..., H, W) in [0, 1], above 0.5 where foreground is ahead.

    Fused maps (`is_probability`) do not add up to 1 and may leave [0, 1]: they are scaled so that they do.
    """
    background, foreground = scores.unbind(-3)
    if not is_probability:
        return (foreground - background).sigmoid()
    background, foreground = background.clamp(min=_SMALL), foreground.clamp(min=_SMALL)
    share: Tensor = foreground / (background + foreground)
    return share


class FewShotMethod(nn.Module, ABC):
    """A few-shot segmenter.

    A config builds it as `Method(encoder=…, num_shots=K, **the other keys of conf/model/<name>.yaml)`; the encoder is a
    backbone or a base learner, as its key `encoder` says.

    Attributes:
        reported: Predictions whose figures are pooled: "final", and names in `Segmentation.auxiliary`.
        takes_host_masks: Whether support masks may be on the CPU where the pictures are on a GPU. A method whose sizes
            depend on them reads them there without waiting for the GPU.
        takes_padding: Whether `forward` has an argument `query_padding`, (B, H, W) integer, 255 where the picture was
            padded; training then tells it.
        segments_base: Whether `Segmentation.auxiliary` holds "base", the logits of a base learner.
    """

    reported: tuple[str, ...] = (FINAL,)
    takes_host_masks: bool = False
    takes_padding: bool = False
    segments_base: bool = False

    def train(self, mode: bool = True) -> FewShotMethod:
        """Switch the mode; a backbone that `prepare_trunk` has fixed stays in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if getattr(module, "stays_in_eval", False):
                module.train(False)
        return self

    @abstractmethod
    def forward(
        self, query_image: Tensor, support_images: Tensor, support_masks: Tensor, class_index: Tensor | None = None
    ) -> Segmentation:
        """Segment the query pictures.

        Args:
            query_image: (B, 3, H, W) float, normalised.
            support_images: (B, K, 3, H, W) float, normalised.
            support_masks: (B, K, H, W) any dtype: 1 foreground, 0 background, 255 ignore.
            class_index: (B,) int64 in [0, N), only in training: which of the N base classes an episode is of.

        Returns:
            The answer to the B episodes.
        """

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The optimiser's groups, dicts with ``params``, ``lr`` and ``name``: here all that learns, at `lr`.

        A method that says otherwise may take further arguments, from `optim.groups`.
        """
        learning = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": learning, "lr": lr, "name": "all"}]


class EncodesPictures(Protocol):
    """What encodes queries and supports apart from each other and from the episodes they meet in."""

    @abstractmethod
    def encode_query(self, images: Tensor) -> Features:
        """Encode (Q, 3, H, W) float pictures, normalised."""

    @abstractmethod
    def encode_support(self, images: Tensor, masks: Tensor) -> Features:
        """Encode (S, 3, H, W) float pictures with their masks (S, H, W), 0/1/255."""


@runtime_checkable
class EncodesApart(EncodesPictures, Protocol):
    """A method that does so, and matches what it has encoded."""

    @abstractmethod
    def match(self, query: Any, support: Any, *, shots: int) -> Segmentation:
        """Segment B queries, each with its `shots` supports: those of query 0 come first.

        One with an argument `class_index` gets that of `FewShotMethod.forward` where base classes are validated.
        """


class ApartMethod(FewShotMethod, EncodesApart):
    """A method that encodes apart in training too: all supports at once, then the queries.

    Not for one whose layers learn statistics from a batch, which would depend on how pictures are put together.
    """

    def forward(
        self, query_image: Tensor, support_images: Tensor, support_masks: Tensor, class_index: Tensor | None = None
    ) -> Segmentation:
        """Segment query pictures (B, 3, H, W), as `FewShotMethod.forward` says; `class_index` is not used."""
        supports = self.encode_support(support_images.flatten(0, 1), support_masks.flatten(0, 1))
        return self.match(self.encode_query(query_image), supports, shots=support_images.shape[1])


@dataclass
class Pictures(Features):
    """Queries or supports of a method that does not encode apart: (B, 3, H, W) float; masks (B, H, W) of supports."""

    images: Tensor
    masks: Any = None


class PicturesApart:
    """Makes an `EncodesApart` of any method; its features are the pictures.

    Args:
        method: Called on the pictures when they are matched.
    """

    def __init__(self, method: nn.Module) -> None:
        self.method = method

    def encode_query(self, images: Tensor) -> Pictures:
        """Keep pictures (Q, 3, H, W)."""
        return Pictures(images)

    def encode_support(self, images: Tensor, masks: Tensor) -> Pictures:
        """Keep pictures (S, 3, H, W) and masks (S, H, W)."""
        return Pictures(images, masks)

    def match(
        self, query: Pictures, support: Pictures, *, shots: int, class_index: Tensor | None = None
    ) -> Segmentation:
        """Run the method on B queries (B, 3, H, W) and B·K supports; of base classes (B,), or None."""
        images, masks = support.images.unflatten(0, (-1, shots)), support.masks.unflatten(0, (-1, shots))
        output: Segmentation = self.method(query.images, images, masks, class_index)
        return output


def encodes_apart(method: nn.Module) -> EncodesApart:
    """The method itself where it encodes apart, else with its pictures as features."""
    return method if isinstance(method, EncodesApart) else PicturesApart(method)
