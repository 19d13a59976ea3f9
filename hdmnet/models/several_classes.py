"""Several classes in one picture: a joint decision from the method's answers for each class.

A method answers for one class at a time: background or foreground. The joint decision is the largest of a softmax over
the background and the N classes, in which the background's logit is 0 and a class' is its foreground's minus its
background's, or, of a method that gives probabilities, the log of their ratio. So the scores of unequal classes need
no common scale but that of "foreground against background", and one class alone is decided as it always is.

A method that decides by a rule of its own keeps it: no class is taken where its rule says background, and among those
where it says foreground the log-odds decide. Of HSNet these grow with the share of supports that vote for a class,
whatever the most in its picture is: one support's stray vote does not outweigh all of another class'.

A method that stretches its answer to each picture finds every class in it. Where it tells how like the supports the
likest position is (`Segmentation.likeness`), which no stretching has touched, classes that are less like theirs than
another class is, by more than `LEAST_BEHIND`, count as not shown. One class alone is always shown, and of several one.

Equal classes (HSNet's votes often are): the first one. Their order must therefore tell nothing of the truth.

Dimension letters: N classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hdmnet.models.method import Segmentation

LEAST_BEHIND = 0.03  # of likeness
_SMALL = 1e-6  # as in `foreground_probability`


def log_odds(scores: Tensor, *, is_probability: bool) -> Tensor:
    """Background and foreground (..., 2, H, W) → (..., H, W) float, above 0 where foreground is ahead."""
    background, foreground = scores.float().unbind(-3)
    if is_probability:
        background, foreground = background.clamp(min=_SMALL).log(), foreground.clamp(min=_SMALL).log()
    return foreground - background


def likeness_of(outputs: Iterable[Segmentation], item: int) -> list[Tensor | None]:
    """What the answers to a batch for each of N classes tell of one item: () each, or None."""
    return [None if output.likeness is None else output.likeness[item] for output in outputs]


def are_shown(likeness: Sequence[Tensor | None]) -> list[bool]:
    """Which of N classes a picture shows, from `likeness_of`; all where that of one is not told."""
    told = [float(one) for one in likeness if one is not None]
    if len(told) < len(likeness):
        return [True] * len(likeness)
    return [one >= max(told) - LEAST_BEHIND for one in told]


def decide_together(classes: Iterable[tuple[Tensor, Tensor]], likeness: Sequence[Tensor | None] = ()) -> Tensor:
    """Label every pixel with one of N classes or the background.

    Args:
        classes: Of each class, in the order of the labels, (H, W) bool, where the method says that it is foreground,
            and (H, W) float, its `log_odds`.
        likeness: From `likeness_of`.

    Returns:
        (H, W) uint8: 0 background, 1..N the classes.

    Raises:
        ValueError: There is no class.
    """
    labels = best = None
    shown = are_shown(likeness)
    for label, (foreground, odds) in enumerate(classes, start=1):
        if shown and not shown[label - 1]:
            foreground = torch.zeros_like(foreground)
        if labels is None or best is None:
            labels, best = foreground.to(torch.uint8), odds.where(foreground, odds.new_tensor(-torch.inf))
        else:
            wins = foreground & (odds > best)
            labels, best = labels.masked_fill(wins, label), torch.where(wins, odds, best)
    if labels is None:
        raise ValueError("no class to decide between; expected at least one")
    return labels
