"""Metrics of few-shot segmentation: pooled per-class IoU, mIoU, FB-IoU, of one class or several; the base learner's.

Legend: B batch, C classes of the split, N classes of a segmentation head (background included), H/W pixels.

The protocol of the field (PFENet, BAM, HDMNet): intersection and union are pooled per class over all
episodes and divided **once**; mIoU is the mean over the classes, FB-IoU the mean of the pooled foreground IoU and the
pooled background IoU. This is not `torchmetrics.segmentation.MeanIoU`, which averages per image.

Deviation from the official release, on purpose: it credits a whole batch to the class of the batch's first item, so
its figures hold for batches of one only. Here each item is credited to its own class: any batch size gives the same.

All states are int64 sums, so the result depends neither on the order of the episodes nor on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

IGNORE = 255


def _hard_prediction(prediction: Tensor, num_labels: int) -> Tensor:
    """Logits (B, num_labels, H, W) float, or labels (B, H, W) bool or integer, as labels (B, H, W) int64."""
    if prediction.ndim == 4 and prediction.is_floating_point() and prediction.shape[1] == num_labels:
        return prediction.argmax(dim=1)
    if prediction.ndim == 3 and not prediction.is_floating_point() and not prediction.is_complex():
        return prediction.long()
    raise ValueError(
        f"prediction is {prediction.dtype} of shape {tuple(prediction.shape)}; expected float logits "
        f"(B, {num_labels}, H, W) or integer labels (B, H, W)"
    )


def _check_same_shape(labels: Tensor, target: Tensor) -> None:
    """Refuse a target that is not (B, H, W) integer, as the predicted labels are."""
    if target.is_floating_point() or target.is_complex():
        raise ValueError(f"target is {target.dtype}; expected integer labels: pass the mask without normalising it")
    if labels.shape != target.shape:
        raise ValueError(
            f"prediction covers (B, H, W) = {tuple(labels.shape)} but target is {tuple(target.shape)}; "
            "resize the logits to the target first, and call update once per item when sizes differ"
        )


def _check_labels(values: Tensor, num_labels: int, what: str) -> None:
    """Refuse a label, of a tensor of any shape without ignored pixels, that lies outside 0 .. num_labels - 1."""
    wrong = (values < 0) | (values >= num_labels)
    if bool(wrong.any()):
        found = torch.unique(values[wrong])[:5].tolist()
        raise ValueError(f"{what} holds {found}; expected 0..{num_labels - 1}")


def _ratio(intersection: Tensor, union: Tensor) -> Tensor:
    """IoU of pixel counts int64 (C,) or () each, in float64; 0 / 0 gives NaN."""
    return intersection.double() / union.double()


def count_pixels(prediction: Tensor, target: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Count the pixels of each episode by truth and prediction.

    Args:
        prediction: (B, 2, H, W) float logits of [background, foreground], or (B, H, W) bool or integer 0/1.
        target: (B, H, W) integer 0/1/`ignore_index`.
        ignore_index: Target value of pixels that count nowhere.

    Returns:
        (B, 2, 2) int64: [item, truth, prediction].

    Raises:
        ValueError: If shapes disagree or a value lies outside its range.
    """
    tally, check = tally_pixels(prediction, target, ignore_index)
    check(tally)
    return tally[:, :4].reshape(-1, 2, 2)


def tally_pixels(
    prediction: Tensor, target: Tensor, ignore_index: int = IGNORE
) -> tuple[Tensor, Callable[[Tensor], None]]:
    """As `count_pixels`, but waits for no GPU.

    Returns:
        (B, 5) int64: the four counts, then the ignored pixels; and what refuses a target of other values, to be called
        with the tally, wherever that lies by then.
    """
    if prediction.ndim == 4 and prediction.shape[1] == 2 and prediction.is_floating_point():
        labels = prediction[:, 1] > prediction[:, 0]  # what argmax gives, on a CPU a hundred times as fast
    elif prediction.ndim == 3 and prediction.dtype == torch.bool:
        labels = prediction
    else:
        labels = _hard_prediction(prediction, 2)
    _check_same_shape(labels, target)
    target = target.to(labels.device)
    if labels.dtype != torch.bool:
        _check_labels(labels[target != ignore_index], 2, "prediction")
        labels = labels == 1
    if labels.is_cpu and target.dtype == torch.uint8 and ignore_index == IGNORE:
        tally = torch.stack([_tally_bytes(*item) for item in zip(labels, target, strict=True)])
    else:
        codes = target.to(torch.int64).mul(2).add_(labels).flatten(1)  # truth and prediction in one number
        ignored = (target == ignore_index).flatten(1).sum(1, keepdim=True)
        counted = (codes[:, None] == torch.arange(4, device=codes.device)[:, None]).sum(2)
        tally = torch.cat([counted, ignored], dim=1)

    def check(tally: Tensor) -> None:
        if bool((tally.sum(1) != target[0].numel()).any()):
            _check_labels(target[target != ignore_index].long(), 2, f"target (besides ignore_index {ignore_index})")

    return tally, check


def _tally_bytes(labels: Tensor, target: Tensor) -> Tensor:
    """The tally (5,) of one item, labels (H, W) bool and target (H, W) uint8, in one pass."""
    codes = target.to(torch.int16).mul_(2).add_(labels)
    pixels = torch.bincount(codes.flatten(), minlength=2 * (IGNORE + 1))
    return torch.cat([pixels[:4], pixels[2 * IGNORE :].sum(0, keepdim=True)])


def count_labels(prediction: Tensor, target: Tensor, num_labels: int, ignore_index: int = IGNORE) -> Tensor:
    """Count pixels by truth and prediction.

    Args:
        prediction: (…, H, W) integer labels 0 .. `num_labels` - 1.
        target: The same shape; integer labels 0 .. `num_labels` - 1 or `ignore_index`.
        num_labels: Number of labels N.
        ignore_index: Target value of pixels that count nowhere.

    Returns:
        (N, N) int64: [truth, prediction].

    Raises:
        ValueError: If shapes disagree or a label lies outside its range.
    """
    _check_same_shape(prediction, target)
    target = target.to(prediction.device).long()
    valid = target != ignore_index
    truth, predicted = target[valid], prediction[valid].long()  # (P,) each
    _check_labels(truth, num_labels, f"target (besides ignore_index {ignore_index})")
    _check_labels(predicted, num_labels, "prediction")
    return torch.bincount(truth * num_labels + predicted, minlength=num_labels**2).view(num_labels, num_labels)


class FewShotIoU(Metric):
    """mIoU and FB-IoU over episodes, pooled per class.

    Args:
        num_classes: Number of classes C of the split (5 on PASCAL-5i, 20 on COCO-20i).
        class_names: Their names, in the order of `class_index`, for whoever prints them (default "0", "1", …).
        ignore_index: Target value of pixels that count nowhere.
        absent_is_zero: Whether a class without a pixel to count has an IoU of 0, as in the releases of PFENet and its
            followers, in place of none.

    Raises:
        ValueError: If `num_classes` < 1, `class_names` has another length, or `ignore_index` is 0 or 1.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    confusion: Tensor  # (C, 2, 2) int64 pixels: [class, truth, prediction]
    counts: Tensor  # (C,) int64 episodes

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        ignore_index: int = IGNORE,
        *,
        absent_is_zero: bool = False,
    ) -> None:
        """Start with no episode; see the class for the arguments."""
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; expected at least 1")
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(
                f"class_names has {len(class_names)} names for num_classes={num_classes}; give one a class"
            )
        if ignore_index in (0, 1):
            raise ValueError(
                f"ignore_index is {ignore_index}, which is a mask value; expected another, usually {IGNORE}"
            )
        self.num_classes = num_classes
        self.class_names = tuple(class_names) if class_names is not None else tuple(map(str, range(num_classes)))
        self.ignore_index = ignore_index
        self.absent_is_zero = absent_is_zero
        self.add_state("confusion", torch.zeros(num_classes, 2, 2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, class_index: Tensor) -> None:
        """Add a batch of episodes; every item is credited to its own class.

        Args:
            prediction: (B, 2, H, W) float logits of [background, foreground], or (B, H, W) bool or integer 0/1,
                in the target's frame (at test time: the query's original pixels; then one call per item).
            target: (B, H, W) integer 0/1/`ignore_index`.
            class_index: (B,) int64, position of each episode's class in the split, 0 .. C - 1.

        Raises:
            ValueError: If shapes disagree or a value lies outside its range.
        """
        if class_index.shape != prediction.shape[:1] or class_index.is_floating_point():
            raise ValueError(
                f"class_index is {class_index.dtype} of shape {tuple(class_index.shape)}; "
                f"expected integers ({prediction.shape[0]},), one per item of the batch"
            )
        _check_labels(class_index.long(), self.num_classes, "class_index")
        self.add(count_pixels(prediction, target, self.ignore_index), class_index)

    def add(self, pixels: Tensor, class_index: Tensor) -> None:
        """Add episodes that are counted already, for who adds the same counts several times; does not check them.

        Args:
            pixels: (B, 2, 2) int64, from `count_pixels`.
            class_index: (B,) int64, as in `update`.
        """
        self._update_count += 1  # as torchmetrics does around `update`, so that `compute` knows that there is something
        self._computed = None
        class_index = class_index.to(self.counts.device, non_blocking=True).long()
        self.confusion.index_add_(0, class_index, pixels.to(self.confusion.device, non_blocking=True))
        self.counts.index_add_(0, class_index, torch.ones_like(class_index))

    def compute(self) -> dict[str, Tensor]:
        """Divide the pooled counts.

        Returns:
            `miou`: () float64, mean over the classes whose IoU is defined; NaN if none is.
            `fb_iou`: () float64, mean of the foreground and the background IoU pooled over all classes and episodes.
            `iou_per_class`: (C,) float64; NaN, or 0, for a class without an episode (or without a pixel to count).
            `intersection`, `union`: (C,) int64 foreground pixels.
            `counts`: (C,) int64 episodes.
            (torchmetrics squeezes vectors of one element: with C = 1 they come as 0-dim tensors.)
        """
        intersection = self.confusion.diagonal(dim1=1, dim2=2)  # (C, 2): background, foreground
        union = self.confusion.sum(dim=1) + self.confusion.sum(dim=2) - intersection  # (C, 2)
        iou = _ratio(intersection[:, 1], union[:, 1])
        if self.absent_is_zero:
            iou = iou.nan_to_num(nan=0.0)
        return {
            "miou": iou.nanmean(),
            "fb_iou": _ratio(intersection.sum(dim=0), union.sum(dim=0)).mean(),
            "iou_per_class": iou,
            "intersection": intersection[:, 1].clone(),
            "union": union[:, 1].clone(),
            "counts": self.counts.clone(),
        }


class SeveralClassesIoU(Metric):
    """Pooled IoU over episodes of several classes each; of episodes of one class the figures are `FewShotIoU`'s.

    A class' union holds what is called it in any episode that asks for it, also where the query lacks it.

    Args:
        num_classes: Number of classes C of the split; generalised: base and novel ones.
        class_names: Their names, for whoever prints them (default "0", "1", …).
        num_base: How many of them, the first, are base classes; 0: none, nothing is told of them.
        absent_is_zero: As of `FewShotIoU`.

    Raises:
        ValueError: If `num_classes` < 1 or the other numbers do not fit it.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    confusion: Tensor  # (1 + C, 1 + C) int64 pixels: [truth, prediction], background first
    counts: Tensor  # (C,) int64 episodes in whose truth a class is
    num_episodes: Tensor  # () int64
    num_exact: Tensor  # () int64 episodes in which the classes present are predicted exactly

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        *,
        num_base: int = 0,
        absent_is_zero: bool = False,
    ) -> None:
        """Start with no episode; see the class for the arguments."""
        super().__init__()
        names = tuple(map(str, range(num_classes)) if class_names is None else class_names)
        if num_classes < 1 or len(names) != num_classes or not 0 <= num_base < num_classes:
            raise ValueError(
                f"num_classes={num_classes} with {len(names)} class_names and num_base={num_base}; expected at least "
                "one class, a name each, and fewer base classes"
            )
        self.num_classes, self.class_names = num_classes, names
        self.num_base, self.absent_is_zero = num_base, absent_is_zero
        cells = torch.zeros(1 + num_classes, 1 + num_classes, dtype=torch.int64)
        self.add_state("confusion", cells, dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_episodes", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_exact", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, classes: Sequence[int]) -> None:
        """Add an episode.

        Args:
            prediction: (H, W) integer: 0 background, 1..N the episode's classes.
            target: (H, W) integer: the same, or 255.
            classes: Place of each of the N classes in the split, 0 .. C - 1.

        Raises:
            ValueError: If shapes disagree, a value lies outside its range, or a class stands twice.
        """
        if len(set(classes)) < len(classes):
            raise ValueError(f"classes={list(classes)}: one stands twice; expected each once")
        _check_labels(torch.tensor(classes), self.num_classes, "classes")
        self.add(count_labels(prediction, target, 1 + len(classes)), classes)

    def add(self, pixels: Tensor, classes: Sequence[int]) -> None:
        """Add an episode that is counted already; does not check it.

        Args:
            pixels: (1 + N, 1 + N) int64, from `count_labels`.
            classes: As in `update`.
        """
        self._update_count += 1  # as in `FewShotIoU.add`
        self._computed = None
        device = self.confusion.device
        pixels, own = pixels.to(device), torch.tensor(classes, device=device)
        places = torch.cat([own.new_zeros(1), own + 1])
        self.confusion[places[:, None], places] += pixels
        shown, found = pixels.sum(1)[1:] > 0, pixels.sum(0)[1:] > 0  # (N,): in the truth, in the prediction
        self.counts[own] += shown.long()
        self.num_exact += (shown == found).all()
        self.num_episodes += 1

    def compute(self) -> dict[str, Tensor]:
        """Divide the pooled counts.

        Returns:
            `miou`, `iou_per_class`, `intersection`, `union`, `counts`: as `FewShotIoU`; `counts` are the episodes in
            whose truth a class is.
            `fb_iou`: () float64, mean IoU of the background and of whatever class, which of them disregarded.
            `iou_background`, `miou_with_background`: () float64, the background's IoU, and the mean over it and the
            classes.
            `exact_match`: () float64, share of the episodes in which the classes that the prediction shows anywhere are
            those that the truth shows (the exact ratio of Kang & Cho, CVPR 2022).
            `num_episodes`: () int64.
            With base classes `miou_base`, `miou_novel` and `harmonic_mean` of the two, () float64.
        """
        intersection = self.confusion.diagonal()  # (1 + C,)
        union = self.confusion.sum(0) + self.confusion.sum(1) - intersection
        iou = _ratio(intersection, union)
        own = iou[1:].nan_to_num(nan=0.0) if self.absent_is_zero else iou[1:]
        objects, total = self.confusion[1:, 1:].sum(), self.confusion.sum()
        foreground, background = _ratio(objects, total - intersection[0]), _ratio(intersection[0], total - objects)
        values = {
            "miou": own.nanmean(),
            "fb_iou": torch.stack([background, foreground]).mean(),
            "iou_per_class": own,
            "intersection": intersection[1:].clone(),
            "union": union[1:].clone(),
            "counts": self.counts.clone(),
            "iou_background": iou[0],
            "miou_with_background": torch.cat([iou[:1], own]).nanmean(),
            "exact_match": _ratio(self.num_exact, self.num_episodes),
            "num_episodes": self.num_episodes.clone(),
        }
        if self.num_base:
            base, novel = own[: self.num_base].nanmean(), own[self.num_base :].nanmean()
            together = base + novel
            mean = torch.where(together == 0, together, 2 * base * novel / together)
            values |= {"miou_base": base, "miou_novel": novel, "harmonic_mean": mean}
        return values


class SegmentationIoU(Metric):
    """Pooled IoU of an ordinary segmentation head; the base learner's base-class mIoU.

    Args:
        num_classes: Number of labels N, background (label 0) included.
        ignore_index: Target value of pixels that count nowhere.

    Raises:
        ValueError: If `num_classes` < 2 or `ignore_index` is one of the labels.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    confusion: Tensor  # (N, N) int64 pixels: [truth, prediction]

    def __init__(self, num_classes: int, ignore_index: int = IGNORE) -> None:
        """Start with no image; see the class for the arguments."""
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; expected at least 2, background included")
        if 0 <= ignore_index < num_classes:
            raise ValueError(f"ignore_index {ignore_index} is one of the labels 0..{num_classes - 1}; choose another")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.add_state("confusion", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch of images.

        Args:
            prediction: (B, N, H, W) float logits, or (B, H, W) integer labels 0 .. N - 1.
            target: (B, H, W) integer labels 0 .. N - 1 or `ignore_index`, in the same frame.

        Raises:
            ValueError: If shapes disagree or a label lies outside its range.
        """
        labels = _hard_prediction(prediction, self.num_classes)
        self.confusion += count_labels(labels, target, self.num_classes, self.ignore_index).to(self.confusion.device)

    def compute(self) -> dict[str, Tensor]:
        """Divide the pooled counts.

        Returns:
            `miou`: () float64, mean over the labels present in truth or prediction, background left out.
            `iou_per_class`: (N,) float64; NaN for a label present in neither.
            `intersection`, `union`: (N,) int64 pixels.
        """
        intersection = self.confusion.diagonal()
        union = self.confusion.sum(dim=0) + self.confusion.sum(dim=1) - intersection
        iou = _ratio(intersection, union)
        return {
            "miou": iou[1:].nanmean(),
            "iou_per_class": iou,
            "intersection": intersection.clone(),
            "union": union,
        }
