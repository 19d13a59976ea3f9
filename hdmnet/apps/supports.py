"""Reads the key `support` of `predict`: pictures with masks or boxes by class, or labels that exist already."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hdmnet.apps.labelled import SUFFIXES, read_labels
from hdmnet.apps.segmenter import DEFAULT_CLASS
from hdmnet.data.datasets.base import LeftOut
from hdmnet.data.io.user_pictures import LabelledMask
from hdmnet.data.transforms import resize_mask
from hdmnet.runtime.errors import InputError
from hdmnet.runtime.home import expand_home

log = logging.getLogger(__name__)

Box = tuple[float, float, float, float]
Support = tuple[Path, Path | Box | LabelledMask]
Supports = dict[str, list[Support]]


def parse_supports(value: Any) -> Supports | None:
    """Read the key `support`.

    Args:
        value: IMG:MASK, IMG:x0,y0,x1,y1, a folder or a file of labels (`hdmnet/apps/labelled.py`), a list of them, or
            such a list by class, {NAME: […], …} or [[NAME, …], …]; null. Labels bring their classes' names with them;
            of a class that is named only what bears its name counts.

    Returns:
        Pictures with masks or boxes by class; None for null.

    Raises:
        FileNotFoundError: Labels, or what they need, are missing.
        ValueError: An entry is none of these, or labels cannot be read.
    """
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if plain is None:
        return None
    supports: Supports = {}
    if isinstance(plain, list) and plain and all(isinstance(one, list) and one for one in plain):
        named = [(one[0], one[1:]) for one in plain]
    elif isinstance(plain, dict):
        named = list(plain.items())
    else:
        for word in _words(plain):
            found = _read_labels(word)
            for name, pairs in ({DEFAULT_CLASS: [_parse_support(word)]} if found is None else found).items():
                supports.setdefault(name, []).extend(pairs)
        named = []
    names = [str(name) for name, _ in named]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"support names class {twice[0]!r} twice; expected all of its pictures in one list")
    for name, words in named:
        supports[str(name)] = [pair for word in _words(words) for pair in _parse_of_class(str(name), word)]
    empty = [name for name, pairs in supports.items() if not pairs]
    if empty or not supports:
        raise InputError(f"support has no picture{f' of {empty[0]}' if empty else ''}; expected support=[IMG:MASK,…]")
    return supports


def _read_labels(word: str) -> Supports | None:
    """All that a folder or file of labels marks, by class, in the order in which they come; None of another word."""
    path = expand_home(word)
    if not path.is_dir() and not (path.suffix.lower() in SUFFIXES and path.is_file()):
        return None
    supports: Supports = {}
    for labels in read_labels(path):
        for name, mask in labels.masks.items():
            supports.setdefault(name, []).append((labels.picture, LabelledMask(mask, labels.file)))
    return supports


def _parse_of_class(name: str, word: str) -> list[Support]:
    """What a word gives for a class that is named."""
    found = _read_labels(word)
    if found is None:
        return [_parse_support(word)]
    if name not in found:
        raise InputError(f"support names class {name!r}, and {word} has labels of {', '.join(sorted(found))}")
    return found[name]


def leave_out_vanishing(supports: Supports, size: tuple[int, int]) -> Supports:
    """Supports without labels of which nothing is left at the network's (H, W); a log line names them.

    Of a picture and mask that a user named one by one `Segmenter.fit` refuses such a mask.

    Raises:
        ValueError: Nothing of a class is left.
    """
    kept: Supports = {}
    lost: list[str] = []
    for name, pairs in supports.items():
        for picture, mask in pairs:
            if isinstance(mask, LabelledMask) and not (resize_mask(mask.values, size) == 1).any():
                lost.append(f"{picture} ({name})")
            else:
                kept.setdefault(name, []).append((picture, mask))
        if name not in kept:
            raise InputError(
                f"support: all objects of class {name!r} vanish at the network's {size[0]}x{size[1]}: set a larger "
                "image_size, or name the classes that you want, support={CLASS:[LABELS]}"
            )
    if lost:
        log.warning(
            "support: %s", LeftOut(f"vanishes at the network's {size[0]}x{size[1]}, left out", tuple(lost)).tell()
        )
    return kept


def _words(value: Any) -> list[str]:
    """A list's words; numbers belong to the word before them, as Hydra takes a box's commas for the list's."""
    words: list[str] = []
    for item in value if isinstance(value, list) else [value]:
        if words and isinstance(item, int | float) and not isinstance(item, bool):
            words[-1] += f",{item}"
        else:
            words.append(str(item))
    return words


def _parse_support(word: str) -> Support:
    colons = [place for place, letter in enumerate(word) if letter == ":"]
    splits = [(expand_home(word[:at]), word[at + 1 :].strip()) for at in colons if word[:at] and word[at + 1 :]]
    if not splits:
        raise InputError(f"support has {word!r}: expected IMG:MASK or IMG:x0,y0,x1,y1, or labels that are there")
    # Names may hold colons: the last one counts that leaves a picture that is there.
    image, mask = next((split for split in splits[::-1] if split[0].is_file()), splits[-1])
    numbers = _numbers(mask)
    if numbers is None or Path(mask).exists():
        return image, expand_home(mask)
    if len(numbers) != 4:
        raise InputError(f"support has {word!r}: expected four numbers for a box, IMG:x0,y0,x1,y1")
    x0, y0, x1, y1 = numbers
    return image, (x0, y0, x1, y1)


def _numbers(text: str) -> list[float] | None:
    """Numbers split by commas; None where there is anything else."""
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        return None
