"""The supports' positions that the query attends to: of the object and of the rest, drawn where there are many.

Dimension letters: B episodes, K shots, S supports (B·K), H W input pixels, C channels, h w feature size, M positions of
all supports of an episode (K·h·w), of which T are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SEED = 0  # of evaluation


@dataclass
class SupportTokens:
    """Positions of an episode's supports.

    Attributes:
        values: (B, M, C) float.
        is_object: (B, M) bool.
        invalid: (B, M) bool: padding, and pixels that are neither object nor background.
    """

    values: Tensor
    is_object: Tensor
    invalid: Tensor


def at_features(flags: Tensor, size: tuple[int, int]) -> Tensor:
    """Flags (S, H, W) bool at the features' size, (S, h, w) bool: nearest."""
    return F.interpolate(flags[:, None].float(), size, mode="nearest")[:, 0] > 0


def find_object(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Where masks (S, H, W), 0/1/255, have their object at the features' size: (S, h, w) bool, never none nor all.

    Without an object the middle is one, and with nothing else the four corners are none.
    """
    found = at_features(masks == 1, size)
    height, width = size
    middle, corners = torch.zeros_like(found[:1]), torch.zeros_like(found[:1])
    middle[:, max(height // 2 - 1, 0) : height // 2 + 1, max(width // 2 - 1, 0) : width // 2 + 1] = True
    corners[:, :: max(height - 1, 1), :: max(width - 1, 1)] = True
    found = torch.where(found.any((1, 2), keepdim=True), found, middle)
    return found & ~(found.all(2, keepdim=True).all(1, keepdim=True) & corners)


def draw(tokens: SupportTokens, count: int, *, own_flags: bool, fixed: bool) -> SupportTokens:
    """Take `count` positions of the object and as many others; of a kind that has fewer all, and more of the rest.

    Args:
        tokens: Of B episodes, of equal M.
        count: Of each kind.
        own_flags: Drawn positions keep their own flags. The release reads those of the position whose number was drawn:
            of the r-th background position those of position r of the map.
        fixed: Draw the same for the same episode, whatever was drawn before.

    Returns:
        T = min(2 · count, M) positions of each episode.
    """
    taken = []
    for values, is_object, invalid in zip(tokens.values, tokens.is_object, tokens.invalid, strict=True):
        kinds = [is_object.nonzero()[:, 0], (~is_object).nonzero()[:, 0]]
        wanted = [count, count]
        few = next((kind for kind in (0, 1) if len(kinds[kind]) < count), None)  # of it, all
        if few is not None:
            wanted[1 - few] += count - len(kinds[few])
        places, read = [], []
        with _fixed_draws() if fixed else nullcontext():
            for kind, (positions, number) in enumerate(zip(kinds, wanted, strict=True)):
                drawn = positions
                if kind != few:
                    drawn = torch.randperm(len(positions))[:number].to(positions.device)
                    positions = positions[drawn]
                places.append(positions)
                read.append(positions if own_flags else drawn)
        place, flag = torch.cat(places), torch.cat(read)
        taken.append((values[place], is_object[flag], invalid[flag]))
    return SupportTokens(*(torch.stack(several) for several in zip(*taken, strict=True)))


@contextmanager
def _fixed_draws() -> Iterator[None]:
    """Within it torch draws the same numbers each time, on the CPU; afterwards it goes on as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        yield
