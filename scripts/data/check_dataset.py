"""Reads a data set through and tells what is wrong with it, file by file, and how many pictures of each class count.

    python scripts/data/check_dataset.py dataset.root=PATH [dataset.layout=binary] [shot=5]
    python scripts/data/check_dataset.py dataset=pascal paths.data_dir=DATA

Takes the words of `python -m hdmnet.train`; the data set is `folder` unless they say otherwise. Every picture and every
mask is decoded. The exit code is 1 if anything is wrong; what is only worth knowing is noted and does no harm.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from hdmnet.config.checks import validate
from hdmnet.config.instantiate import instantiate
from hdmnet.config.paths import conf_dir
from hdmnet.config.schemas import register_schemas
from hdmnet.data.catalog import class_areas
from hdmnet.data.class_split import fold_of
from hdmnet.data.datasets.base import SegmentationDataset, Split
from hdmnet.data.datasets.folder.dataset import FolderDataset
from hdmnet.data.io.upright import orientation
from hdmnet.data.prepare import run_main
from hdmnet.runtime.provenance import available_cpus

NAME = "check_dataset"
SPLITS: tuple[Split, ...] = ("train", "val")
_SHOWN = 5  # names in a note


@dataclass
class Findings:
    """What was found: `wrong` and `notes` line by line, and areas (C+1,) in pixels of each image that is right."""

    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    areas: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)


def read_through(source: SegmentationDataset, ids: Sequence[str], findings: Findings) -> None:
    """Decode every picture and every mask.

    Args:
        source: The data set.
        ids: The images, each once.
        findings: Gets the areas, and a line for each image with something wrong.
    """
    with ThreadPoolExecutor(available_cpus()) as pool:  # decoding leaves Python's lock alone
        results = pool.map(partial(_read, source), ids)
        for image_id, result in zip(ids, tqdm(results, total=len(ids), desc=source.name, unit="image"), strict=True):
            if isinstance(result, str):
                findings.wrong.append(result)
            else:
                findings.areas[image_id] = result


def _read(source: SegmentationDataset, image_id: str) -> npt.NDArray[np.int64] | str:
    try:
        areas = class_areas(source, image_id)
        source.read_image(image_id)
    except (ValueError, OSError) as error:
        return " ".join(str(error).split())
    except KeyError:
        return f"image {image_id!r} of a list is not there"
    return areas


def look_around(source: FolderDataset, findings: Findings) -> None:
    """Note what lies in a user's folder beside what was read, and what cannot be told.

    Args:
        source: The data set.
        findings: Gets it; its areas are there already.
    """
    tree = source.tree
    findings.wrong += tree.problems
    if tree.unlabelled:
        findings.notes.append(f"{_some([str(path) for path in tree.unlabelled])}: no mask, left out")
    if findings.areas and not any(areas.any() for areas in findings.areas.values()):
        remedy = "255 is ignored, so put masks of 0 and 255 as masks/CLASS/NAME.png" if tree.layout == "index" else ""
        findings.wrong.append(f"no mask of {source.root} holds any class{': ' if remedy else ''}{remedy}")
    bare = [image_id for image_id, areas in findings.areas.items() if not areas.any()]
    if bare and tree.layout in ("binary", "fss"):  # elsewhere pictures without an object are usual
        findings.notes.append(f"{_some(bare)}: nothing is marked in the mask")
    turned = []
    for image_id in findings.areas:
        value, (height, width) = orientation(tree.pictures[image_id]), source.image_size(image_id)
        if value != 1 and (value < 5 or height == width):
            turned.append(image_id)
    if turned:
        findings.notes.append(f"{_some(turned)}: turned by EXIF, the masks are taken as drawn on the upright pictures")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


def print_classes(
    cfg: DictConfig, source: SegmentationDataset, ids: dict[Split, list[str]], findings: Findings
) -> None:
    """Print how many images of each class count: of novel classes in evaluation, of base classes in training.

    Args:
        cfg: Its fold says which classes are novel, its shot how many images a class must have.
        source: The data set.
        ids: Images of each split.
        findings: Their areas.
    """
    novel = fold_of(source, cfg.fold).novel
    none = np.zeros(len(source.class_names) + 1, dtype=np.int64)
    areas = {split: np.array([findings.areas.get(one, none) for one in ids[split]]) for split in SPLITS}
    if cfg.dataset.filter_novel:
        areas["train"] = areas["train"][~areas["train"][:, list(novel)].any(axis=1)]
    width = max(len("class"), *map(len, source.class_names))
    print(f"\n{'class':<{width}}  in fold {cfg.fold}   images that count (at least {source.min_area} px of it)")
    for value, name in enumerate(source.class_names, start=1):
        kind, counted = ("novel", areas["val"]) if value in novel else ("base", areas["train"])
        count = int((counted[:, value] >= max(source.min_area, 1)).sum())
        mark = "" if count > cfg.shot else f"   too few: shot={cfg.shot} needs {cfg.shot + 1}"
        print(f"{name:<{width}}  {kind:<9}   {count:>6,}{mark}")


def check(cfg: DictConfig) -> bool:
    """Read the data set of a config through and print what was found.

    Args:
        cfg: The train door's config.

    Returns:
        Whether nothing is wrong.

    Raises:
        ValueError: The data set cannot be read at all, as is FileNotFoundError; one line.
    """
    source: SegmentationDataset = instantiate(cfg.dataset.source)
    ids = {split: source.ids(split) for split in SPLITS}
    every = list(dict.fromkeys([*ids["train"], *ids["val"]]))
    findings = Findings()
    read_through(source, every, findings)
    if isinstance(source, FolderDataset):
        look_around(source, findings)
    if not findings.wrong:  # else the missing files are among what was found
        source.check()
    layout = f", layout {source.tree.layout}" if isinstance(source, FolderDataset) else ""
    bare = sum(not areas.any() for areas in findings.areas.values())
    print(
        f"{source.name}{layout}: {len(every):,} images ({len(ids['train']):,} train, {len(ids['val']):,} val), "
        f"{len(source.class_names)} classes, {bare:,} images without any"
    )
    for line in findings.notes:
        print(f"note: {line}")
    for line in findings.wrong:
        print(f"wrong: {line}")
    print_classes(cfg, source, ids, findings)
    print(f"\n{len(findings.wrong):,} wrong" if findings.wrong else "\nnothing wrong")
    return not findings.wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: Command line without the program's name; None = the process's own.

    Returns:
        Exit code: 0 if nothing is wrong, else 1.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return 0 if words else 1
    if not any(word.startswith("dataset=") for word in words):
        words.insert(0, "dataset=folder")

    def body() -> bool:
        register_schemas()
        try:
            with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
                cfg = compose("train", overrides=words)
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(" ".join(str(error).split())) from None
        validate(cfg)
        return check(cfg)

    return run_main(body, NAME)


if __name__ == "__main__":
    raise SystemExit(main())
