"""`Segmenter`: a network for a user's own pictures, in Python. Label one picture, segment the rest.

Pictures and masks go through the evaluator's geometry: resized straight to the network's size, logits resized back to
the picture's own, so that the masks are those that the test protocol scores.

Dimension letters: K supports, B queries, C classes, H0 W0 size of a picture as a viewer shows it, H W network's size,
h_l w_l size of stage l.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hdmnet.apps.segmenter_file import (
    UNTRAINED_BACKBONE,
    SegmenterSpec,
    build_pretrained_segmenter,
    build_untrained_segmenter,
    compose_predict,
    read_segmenter,
    read_supports,
    write_segmenter,
)
from hdmnet.apps.tiles import Tiles, segment_tiles
from hdmnet.apps.unfinished import Unfinished
from hdmnet.config.values import to_plain
from hdmnet.data.io.arrays import UInt8Array
from hdmnet.data.io.user_pictures import read_user_mask, read_user_picture
from hdmnet.data.normalise import normalise
from hdmnet.data.transforms import resize_image, resize_mask
from hdmnet.models.method import (
    EncodesApart,
    Features,
    FewShotMethod,
    Segmentation,
    encodes_apart,
    foreground_probability,
)
from hdmnet.models.prior import SharedRanges
from hdmnet.models.several_classes import decide_together, likeness_of, log_odds
from hdmnet.models.several_views import ViewAverage, add_views
from hdmnet.runtime.errors import InputError
from hdmnet.tasks.feature_store import at_size

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

Float32 = NDArray[np.float32]
Maps = dict[str, list[Float32]]  # by name ("prior", "correlation" …): (h_l, w_l) float32 each, finest first
DEFAULT_CLASS = "object"
MAX_CLASSES = 254  # an index mask has 8 bits, 255 is ignore


@dataclass(frozen=True)
class Prediction:
    """The answer to one picture, at its own size, as a viewer shows it.

    Attributes:
        mask: (H0, W0) uint8: 0 background, 1 the object; of several classes, 1..C in the order of `fit`, decided
            together (`hdmnet.models.several_classes`).
        probabilities: (H0, W0) float32 in [0, 1] of each class against the background; above 0.5 is foreground.
        maps: Of each class, if asked for.
    """

    mask: UInt8Array
    probabilities: dict[str, Float32]
    maps: dict[str, Maps] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, that of index 1 first."""
        return tuple(self.probabilities)

    @property
    def probability(self) -> Float32:
        """(H0, W0) float32 in [0, 1], of foreground: of several classes that of the likeliest."""
        return np.asarray(np.maximum.reduce(list(self.probabilities.values())), dtype=np.float32)


@dataclass(frozen=True)
class Fitted:
    """The supports of one class, encoded: `shots` of them."""

    features: Features
    shots: int


class Segmenter:
    """A few-shot segmenter for a user's own pictures: `fit` encodes the supports once, `predict` segments any number.

    `predict` may be called from several threads at once; a `fit` meanwhile counts for the calls that begin after it.

    Args:
        model: Its weights loaded.
        recipe: How to build the model again, for `save`; and its input's size, mean and standard deviation.
        device: "auto" (a GPU if there is one), "cpu", "cuda:1" …

    Raises:
        ValueError: There is no such device.
    """

    def __init__(self, model: FewShotMethod, recipe: SegmenterSpec, *, device: str | torch.device = "auto") -> None:
        self.recipe = recipe
        self.device = _device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self._apart: EncodesApart = encodes_apart(self.model)
        self._classes: dict[str, Fitted] = {}
        # Now, and not in two threads at once, the trunk folds its weights and fills its constants.
        with torch.no_grad():
            blank = torch.zeros(1, 3, *self.image_size, device=self.device)
            self._apart.encode_query(blank)
            self._support_type: type[Features] = type(self._apart.encode_support(blank, blank[:, 0]))

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        dataset: str | None = None,
        backbone: str | None = None,
        shot: int = 1,
        method: str = "hdmnet",
        image_size: int | Sequence[int] | None = None,
    ) -> Self:
        """Read a run's checkpoint, a fitted segmenter that `save` wrote, or a checkpoint of the official release.

        Args:
            path: `checkpoints/best.ckpt` of a run, say. Nothing in the file is run.
            device: "auto" (a GPU if there is one), "cpu", "cuda:1" …
            dataset: Only for official files: "pascal" or "coco".
            backbone: Only for official files: "resnet50_v2", "vgg16" or "vgg16_plain", as the method's release has it.
            shot: Only for official files: K it was trained with. Any number of supports may be given to `fit`.
            method: Only for official files: whose release it is of.
            image_size: Side, or (H, W), that the network sees; None: what it was trained with.

        Returns:
            The segmenter; fitted if it was saved so.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged, a base learner, or fits no model.
        """
        model, recipe, content = read_segmenter(path, dataset, backbone, shot, method, image_size)
        segmenter = cls(model, recipe, device=device)
        segmenter._classes = {
            name: Fitted(features, shots)
            for name, (features, shots) in read_supports(content, path, segmenter._support_type, segmenter.device)
        }
        return segmenter

    @classmethod
    def pretrained(cls, *, image_size: int | Sequence[int] | None = None, device: str | torch.device = "auto") -> Self:
        """The packaged segmenter, ready for supports of any kind of object: nothing is downloaded or trained.

        What it learnt from, how well it does and where it fails: docs/model_card.md.

        Args:
            image_size: Side, or (H, W), that the network sees; None: its own.
            device: "auto" (a GPU if there is one), "cpu", "cuda:1" …

        Raises:
            ValueError: A package that it needs is not installed.
        """
        return cls(*build_pretrained_segmenter(image_size), device=device)

    @classmethod
    def without_training(
        cls,
        method: str = "prototype",
        *,
        backbone: str = UNTRAINED_BACKBONE,
        image_size: int | Sequence[int] | None = None,
        device: str | torch.device = "auto",
        overrides: Sequence[str] = (),
    ) -> Self:
        """A method that has nothing to learn, on a backbone with its ImageNet weights: no checkpoint is needed.

        Args:
            method: One of conf/model: "prototype", "cluster_matching".
            backbone: One of conf/backbone.
            image_size: Side, or (H, W), that the network sees; None: 473.
            device: "auto" (a GPU if there is one), "cpu", "cuda:1" …
            overrides: More settings of `python -m hdmnet.predict`: ``["backbone.weights=FILE"]``.

        Raises:
            FileNotFoundError: The weights of the backbone are not there.
            ValueError: A name or setting is unknown, or the method has to be trained.
        """
        words = [f"model={method}", f"backbone={backbone}", *overrides]
        return cls(*build_untrained_segmenter(compose_predict(words), image_size), device=device)

    @classmethod
    def of_command(cls, cfg: DictConfig) -> Self:
        """What `predict` and `demo` are to segment with: their `ckpt`, or `model` and `backbone`, else `pretrained`.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: There are both, or a key of another one, or it does not fit.
        """
        plain = to_plain(cfg)
        views = plain.get("test_scales", [1.0]), plain.get("test_flip", False)  # not of `demo`
        if None not in (cfg.ckpt, cfg.model):
            raise InputError(f"ckpt={cfg.ckpt} and model={cfg.model.name} are both given; expected one of them")
        if cfg.ckpt is not None:
            settings = {"device": cfg.device, "image_size": plain["image_size"], **plain["official"]}
            return cls.from_checkpoint(cfg.ckpt, **settings).with_views(*views)
        if plain["official"]["dataset"] is not None or plain["official"]["backbone"] is not None:
            raise InputError("official.… says what the file of a release is, and ckpt is not given; expected ckpt=FILE")
        if cfg.model is None:
            if cfg.backbone.name != UNTRAINED_BACKBONE:
                raise InputError(
                    f"backbone={cfg.backbone.name} without model: the packaged segmenter has a trunk of its own; "
                    f"expected model=prototype backbone={cfg.backbone.name}, or no backbone"
                )
            log.info("neither ckpt nor model is given: the packaged segmenter is taken (docs/model_card.md)")
            return cls.pretrained(device=cfg.device, image_size=plain["image_size"]).with_views(*views)
        return cls(*build_untrained_segmenter(cfg, plain["image_size"]), device=cfg.device).with_views(*views)

    def with_views(self, scales: Sequence[float] = (1.0,), flip: bool = False) -> Self:
        """A segmenter of the same network, whose answer is the mean over views of each picture.

        Args:
            scales: Of `image_size`.
            flip: Whether the query's mirror image is a view too.

        Returns:
            Another one, without supports; itself where one view is asked for, as it is.

        Raises:
            ValueError: A scale is not above 0, or there is none.
        """
        model = add_views(self.model, scales, flip)
        return self if model is self.model else type(self)(model, self.recipe, device=self.device)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) that the network sees."""
        return self.recipe.image_size

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes fitted, that of index 1 first."""
        return tuple(self._classes)

    @property
    def fitted(self) -> dict[str, Fitted]:
        """The encoded supports of each class."""
        return dict(self._classes)

    # ------------------------------------------------------------------------------------------------------------ fit

    def fit(self, images: Any, masks: Any = None) -> Self:
        """Encode the supports, in place of earlier ones.

        Args:
            images: One picture or K: paths, PIL images, arrays (H0, W0[, C]) or tensors ([C, ]H0, W0), see
                `read_user_picture`. For several classes {name: (images, masks)}, and no `masks`.
            masks: As many: see `hdmnet.data.io.user_pictures.read_user_mask`; a box (x0, y0, x1, y1) will do.

        Returns:
            Itself.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A picture or mask is unreadable, empty or does not fit; the earlier supports stay.
        """
        if isinstance(images, Mapping):
            if masks is not None:
                raise InputError("fit got a mapping and masks: expected fit({name: (images, masks), …}) alone")
            given = {str(name): pair for name, pair in images.items()}
            if len(given) < len(images):
                raise InputError(f"fit got two classes of one name (as 1 and '1') among {list(images)}: expected names")
        else:
            given = {DEFAULT_CLASS: (images, masks)}
        if not 1 <= len(given) <= MAX_CLASSES:
            raise InputError(f"fit got {len(given)} classes: expected 1 to {MAX_CLASSES}")
        self._classes = {name: self.encode(name, pair) for name, pair in given.items()}
        return self

    @torch.no_grad()
    def encode(self, name: str, pair: Any) -> Fitted:
        """Encode the K supports of a class, given as (images, masks), see `fit`."""
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"class {name!r}: expected (images, masks)")
        images, masks = (list(pair[0]), list(pair[1])) if _is_several(pair[0]) else ([pair[0]], [pair[1]])
        if not images or len(images) != len(masks):
            raise InputError(
                f"class {name!r}: {len(images)} pictures and {len(masks)} masks; expected as many, 1 or more"
            )
        pictures: list[UInt8Array] = []
        marked: list[Tensor] = []
        for image, mask in zip(images, masks, strict=True):
            picture, turned = read_user_picture(image)
            what = f"mask {mask}" if isinstance(mask, str | Path) else f"mask {len(marked) + 1} of class {name!r}"
            read = read_user_mask(mask, picture, turned, name=what)
            small = resize_mask(read, self.image_size)
            if not (small == 1).any():
                raise InputError(
                    f"{what}: its {int((read == 1).sum())} pixels vanish at the "
                    f"network's {self.image_size[0]}x{self.image_size[1]}; mark a larger object, or crop the picture"
                )
            pictures.append(resize_image(picture, self.image_size))
            marked.append(torch.from_numpy(small))
        return Fitted(
            self._apart.encode_support(self._input(pictures), torch.stack(marked).to(self.device)), len(images)
        )

    def _input(self, pictures: Sequence[UInt8Array]) -> Tensor:
        """Pictures (H, W, 3) uint8 as the network's input (B, 3, H, W) float32."""
        stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        return normalise(stacked.to(self.device), self.recipe.mean, self.recipe.std)

    # -------------------------------------------------------------------------------------------------------- predict

    @overload
    def predict(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        batch_size: int = 1,
        maps: bool = False,
        tile: int | Sequence[int] | None = None,
        tile_overlap: float = 0.25,
    ) -> list[Prediction]: ...
    @overload
    def predict(
        self,
        images: Any,
        *,
        batch_size: int = 1,
        maps: bool = False,
        tile: int | Sequence[int] | None = None,
        tile_overlap: float = 0.25,
    ) -> Any: ...
    def predict(
        self,
        images: Any,
        *,
        batch_size: int = 1,
        maps: bool = False,
        tile: int | Sequence[int] | None = None,
        tile_overlap: float = 0.25,
    ) -> Any:
        """Segment pictures.

        Args:
            images: One picture or several, of any sizes, as in `fit`; (B, H, W, C) arrays and (B, C, H, W) tensors are
                several.
            batch_size: Pictures that go through the network together: on a GPU more are faster. Tiles go alone.
            maps: Return what the method shows of itself too: prior masks, correlation.
            tile: Side, or (h, w), in pixels of the picture: larger pictures are segmented in tiles of that size
                (`hdmnet/apps/tiles.py`). None: whole.
            tile_overlap: Share of a tile's side that the next tile covers too, from 0 to 0.5.

        Returns:
            A `Prediction` for one picture, a list of them for several.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: `fit` has not been called, a picture cannot be read, or the arguments do not fit together.
        """
        classes = self._classes  # once: a `fit` in another thread changes nothing for this call
        if not classes:
            raise InputError("the segmenter has no supports yet: call fit(images, masks) first")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: expected at least 1")
        several = list(images) if _is_several(images) else [images]
        if tile is not None:
            if maps:
                raise InputError(f"maps=True and tile={tile}: a picture in tiles has no maps; expected one of them")
            tiles = Tiles.read(tile, tile_overlap)
            found = [self._predict_tiles(one, classes, tiles) for one in several]
        else:
            batches = (several[start : start + batch_size] for start in range(0, len(several), batch_size))
            found = [one for batch in batches for one in self._predict(batch, classes, maps)]
        return found if _is_several(images) else found[0]

    def _predict(self, images: Sequence[Any], classes: Mapping[str, Fitted], maps: bool) -> list[Prediction]:
        """Segment one batch."""
        pictures = [read_user_picture(image)[0] for image in images]
        outputs = self._answer(pictures, classes)
        return [
            _prediction(outputs, item, torch.Size(picture.shape[:2]), maps=maps)
            for item, picture in enumerate(pictures)
        ]

    def _predict_tiles(self, image: Any, classes: Mapping[str, Fitted], tiles: Tiles) -> Prediction:
        """Segment one picture in tiles; a small one whole."""
        picture = read_user_picture(image)[0]
        if len(tiles.cover(picture.shape)) == 1:
            return self._predict([picture], classes, False)[0]
        with tempfile.TemporaryDirectory() as folder:
            answer, work = functools.partial(self.answer, classes=classes), Unfinished(Path(folder) / "tiles", {})
            mask, found = segment_tiles(answer, picture, tuple(classes), tiles, work)
            return Prediction(mask, {name: probability[:] for name, probability in found.items()})

    def answer(
        self,
        picture: UInt8Array,
        ranges: Mapping[str, SharedRanges] | None = None,
        classes: Mapping[str, Fitted] | None = None,
    ) -> dict[str, Segmentation]:
        """What the method itself says of a picture (H0, W0, 3) uint8, at the network's size.

        Args:
            picture: The picture.
            ranges: By class, those of what the picture is a part of.
            classes: In place of those fitted.

        Returns:
            By class; a batch of one.
        """
        return self._answer([picture], self._classes if classes is None else classes, ranges)

    @torch.no_grad()
    def _answer(
        self,
        pictures: Sequence[UInt8Array],
        classes: Mapping[str, Fitted],
        ranges: Mapping[str, SharedRanges] | None = None,
    ) -> dict[str, Segmentation]:
        """What the method says of a batch of pictures, by class."""
        small = [resize_image(picture, self.image_size) for picture in pictures]
        query = self._apart.encode_query(self._input(small))
        outputs = {}
        for name, one in classes.items():
            with nullcontext() if ranges is None else ranges[name].part():
                supports = type(one.features).stack([one.features] * len(pictures))
                outputs[name] = self._apart.match(query, supports, shots=one.shots)
        return outputs

    # ----------------------------------------------------------------------------------------------------------- save

    def save(self, path: str | Path) -> None:
        """Write the network with its supports: tensors and plain containers only; `from_checkpoint` reads it.

        Args:
            path: The file; replaced whole or left as it was.

        Raises:
            ValueError: `fit` has not been called, or the supports are of several views.
        """
        if not self._classes:
            raise InputError("the segmenter has no supports yet: call fit(images, masks) before save")
        if isinstance(self.model, ViewAverage):
            raise InputError("supports of several views cannot be saved; expected test_scales=[1.0] test_flip=false")
        fitted = {name: (one.features, one.shots) for name, one in self._classes.items()}
        write_segmenter(path, self.model, self.recipe, fitted)


def prediction_of(output: Mapping[str, Segmentation], size: tuple[int, ...]) -> Prediction:
    """What `Segmenter.answer` says of a picture, at its size (H0, W0)."""
    return _prediction(output, 0, torch.Size(size[:2]), maps=False)


def _prediction(outputs: Mapping[str, Segmentation], item: int, size: torch.Size, *, maps: bool) -> Prediction:
    """What the outputs of all classes say of one item, at its picture's size."""
    classes, probabilities, kept = [], {}, {}
    for name, output in outputs.items():
        scores, foreground = at_size(output, item, size)  # as the metric decides
        probability = foreground_probability(scores, is_probability=output.is_probability)
        probabilities[name] = probability.cpu().numpy()
        classes.append((foreground, log_odds(scores, is_probability=output.is_probability)))
        if maps:
            kept[name] = {
                kind: [values[item].float().cpu().numpy() for values in several]
                for kind, several in output.maps.items()
            }
    return Prediction(decide_together(classes, likeness_of(outputs.values(), item)).cpu().numpy(), probabilities, kept)


def _is_several(images: Any) -> bool:
    """Whether pictures are given as several: a list, a tuple, or one more dimension than a picture has."""
    return isinstance(images, list | tuple) or (isinstance(images, np.ndarray | Tensor) and images.ndim == 4)


def _device(name: str | torch.device) -> torch.device:
    """The device of that name; see `Segmenter`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device={name}: expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device={name}: {torch.cuda.device_count()} GPUs found; expected cpu, or one of them")
    return device
