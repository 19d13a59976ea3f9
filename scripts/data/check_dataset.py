"""Reads a data set through and tells what is wrong with it, file by file, and how many pictures of each class count.

    python scripts/data/check_dataset.py dataset.root=PATH [dataset.layout=binary] [shot=5]
    python scripts/data/check_dataset.py dataset=pascal paths.data_dir=DATA

Takes the words of `python -m hdmnet.train`; the data set is `folder` unless they say otherwise. Every picture and every
mask is decoded, and contact sheets are drawn: three pictures of each class with its mask and its name. The exit code is
1 if anything is wrong, classes of the fold that have too few images among it; what is only worth knowing is noted and
does no harm.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from hdmnet.cli.compose import compose_words
from hdmnet.cli.parser import run_main
from hdmnet.config.checks import validate
from hdmnet.config.values import image_size
from hdmnet.data.catalog import Catalog, class_areas, training_view
from hdmnet.data.datasets.base import SegmentationDataset, Split
from hdmnet.data.datasets.folder.dataset import FolderDataset
from hdmnet.data.episodes.manifest import EpisodeManifest, find_positions, images_needed
from hdmnet.data.io.upright import orientation
from hdmnet.data.vanished import Vanished, vanished_classes
from hdmnet.run.build import build_dataset
from hdmnet.runtime.provenance import available_cpus
from hdmnet.visual.contact_sheet import draw_contact_sheets

NAME = "check_dataset"
_SHOWN = 5  # names in a note


@dataclass
class Findings:
    """What was found: `wrong` and `notes` line by line, and areas in pixels, by class, of each image that is right.

    `vanished` holds image id and class value where nothing of a class is left at the network's size.
    """

    wrong: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    areas: dict[str, dict[int, int]] = field(default_factory=dict)
    vanished: set[tuple[str, int]] = field(default_factory=set)


def read_through(dataset: SegmentationDataset, ids: Sequence[str], size: tuple[int, int], findings: Findings) -> None:
    """Decode every picture and every mask.

    Args:
        dataset: The data set.
        ids: The images, each once.
        size: (H, W) of the network's input.
        findings: Gets the areas, what vanishes, and a line for each image with something wrong.
    """
    with ThreadPoolExecutor(available_cpus()) as pool:  # decoding leaves Python's lock alone
        results = pool.map(partial(_read, dataset, size), ids)
        for image_id, result in zip(ids, tqdm(results, total=len(ids), desc=dataset.name, unit="image"), strict=True):
            if isinstance(result, str):
                findings.wrong.append(result)
            else:
                findings.areas[image_id], vanished = result
                findings.vanished |= {(image_id, value) for value in vanished}


def _read(dataset: SegmentationDataset, size: tuple[int, int], image_id: str) -> tuple[dict[int, int], list[int]] | str:
    try:
        areas = class_areas(dataset, image_id)
        dataset.read_image(image_id)
        counting = {value: area for value, area in areas.items() if area >= dataset.min_area}
        vanished = vanished_classes(dataset, image_id, counting, size)
    except (ValueError, OSError) as error:
        return " ".join(str(error).split())
    except KeyError:
        return f"image {image_id!r} of a list is not there"
    return areas, vanished


def look_around(dataset: FolderDataset, findings: Findings) -> None:
    """Note what lies in a user's folder beside what was read, and what cannot be told.

    Args:
        dataset: The data set.
        findings: Gets it; its areas are there already.
    """
    tree = dataset.tree
    if findings.areas and not any(findings.areas.values()):
        remedy = "255 is ignored, so put masks of 0 and 255 as masks/CLASS/NAME.png" if tree.layout == "index" else ""
        findings.wrong.append(f"no mask of {dataset.root} holds any class{': ' if remedy else ''}{remedy}")
    bare = [image_id for image_id, areas in findings.areas.items() if not areas]
    if bare and tree.layout in ("binary", "fss"):  # elsewhere pictures without an object are usual
        findings.notes.append(f"{_some(bare)}: nothing is marked in the mask")
    turned = []
    for image_id in findings.areas:
        value, (height, width) = orientation(tree.pictures[image_id]), dataset.image_size(image_id)
        if value != 1 and (value < 5 or height == width):
            turned.append(image_id)
    if turned:
        findings.notes.append(f"{_some(turned)}: turned by EXIF, the masks are taken as drawn on the upright pictures")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


def make_catalog(dataset: SegmentationDataset, ids: Sequence[str], findings: Findings) -> Catalog:
    """The catalog of those of some images that are right."""
    kept = [image_id for image_id in ids if image_id in findings.areas]
    rows = [
        (position, value, findings.areas[image_id][value])
        for position, image_id in enumerate(kept)
        for value in sorted(findings.areas[image_id])
    ]
    positions, values, pixels = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Catalog(
        ids=np.array(kept, dtype=np.str_),
        image_index=positions,
        class_value=values,
        area=pixels,
        class_names=tuple(dataset.class_names),
    )


def count_classes(
    cfg: DictConfig, dataset: SegmentationDataset, ids: dict[Split, list[str]], findings: Findings
) -> list[str]:
    """Count the images of each class as training, validation and test of the fold would; what lacks is wrong.

    Args:
        cfg: Its fold says which classes are novel, its shot how many images a class must have.
        dataset: The data set.
        ids: Images of each split.
        findings: Their areas; gets a line for what cannot be trained on or tested, unless wrong files are to be mended
            first.

    Returns:
        A table of the classes, line by line.
    """
    split, settings = dataset.class_split(cfg.fold), cfg.dataset
    catalogs = {name: make_catalog(dataset, ids[name], findings) for name in ids}
    lacking: list[str] = []
    counts: dict[tuple[int, str], tuple[int, int]] = {}
    vanished = Vanished(image_size(settings.image_size), frozenset(findings.vanished))
    for name, classes, kind in (
        ("train", split.train, "base"),
        ("val", split.val, "novel"),
        *((("test", split.test, "novel"),) if "test" in ids else ()),
    ):
        if not classes:
            continue
        everything = catalogs[name].view(classes, min_area=dataset.min_area)
        filtered = kind == "base" and settings.filter_novel and settings.novel_pixels is None
        unwanted = split.novel if filtered else ()
        view = catalogs[name].view(classes, min_area=dataset.min_area, exclude=unwanted)
        try:
            if kind == "base":
                training_view(catalogs[name], dataset, split, filter_novel=filtered)
            about = {"dataset": dataset.name, "fold": split.fold, "split": name, "seed": 0, "num_episodes": None}
            about |= {"allow_repeats": settings.allow_repeats, "vanished": vanished}
            manifest = EpisodeManifest(view, shot=cfg.shot, **about)
            findings.notes += filter(None, [manifest.tell_vanished()])
            lacking += [manifest.tell_too_few(everything)] if manifest.too_few else []
        except ValueError as error:
            lacking.append(str(error))
        gone = find_positions(view, vanished.pairs)
        for value, number in zip(view.classes, np.diff(view.class_ptr).tolist(), strict=True):
            counts[value, kind] = number, len(gone.get(value, ()))
    findings.wrong = findings.wrong or lacking
    needed = images_needed(cfg.shot, allow_repeats=settings.allow_repeats)
    width = max(len("class"), *map(len, dataset.class_names))
    lines = [f"{'class':<{width}}  in fold {cfg.fold}   images that count (at least {dataset.min_area} px of it)"]
    for (value, kind), (number, num_gone) in sorted(counts.items()):
        mark = f"   {num_gone:,} vanish" if num_gone else ""
        mark += "" if number - num_gone >= needed else f"   too few: shot={cfg.shot} needs {needed}"
        lines.append(f"{dataset.class_names[value - 1]:<{width}}  {kind:<9}   {number:>6,}{mark}")
    return lines


def draw(cfg: DictConfig, dataset: SegmentationDataset, findings: Findings) -> str:
    """Draw the contact sheets; says where they are."""
    file = Path(cfg.paths.output_dir) / NAME / str(dataset.name) / "contact_sheet.png"
    try:
        files = draw_contact_sheets(dataset, findings.areas, file)
    except (ValueError, OSError) as error:
        return f"no contact sheet: {' '.join(str(error).split())}"
    named = str(files[0]) if len(files) == 1 else f"{files[0]} to {files[-1].name}"
    return f"contact sheet, to see whether names and masks fit: {named}"


def check(cfg: DictConfig) -> bool:
    """Read the data set of a config through and print what was found.

    Args:
        cfg: The config of `train`.

    Returns:
        Whether nothing is wrong.

    Raises:
        ValueError: The data set cannot be read at all, as is FileNotFoundError; one line.
    """
    dataset = build_dataset(cfg, check=False)
    ids = {split: dataset.ids(split) for split in dataset.splits}
    every = list(dict.fromkeys(itertools.chain(*ids.values())))
    findings = Findings()
    read_through(dataset, every, image_size(cfg.dataset.image_size), findings)
    for one in dataset.left_out():
        if one.wrong:
            findings.wrong += one.names
        else:
            findings.notes.append(one.tell())
    if isinstance(dataset, FolderDataset):
        look_around(dataset, findings)
    if not findings.wrong:  # else the missing files are among what was found
        dataset.check()
    layout = f", layout {dataset.tree.layout}" if isinstance(dataset, FolderDataset) else ""
    sizes = ", ".join(f"{len(ids[split]):,} {split}" for split in ids)
    bare = sum(not areas for areas in findings.areas.values())
    print(
        f"{dataset.name}{layout}: {len(every):,} images ({sizes}), "
        f"{len(dataset.class_names)} classes, {bare:,} images without any"
    )
    table = count_classes(cfg, dataset, ids, findings)
    for line in findings.notes:
        print(f"note: {line}")
    for line in findings.wrong:
        print(f"wrong: {line}")
    print("", *table, "", draw(cfg, dataset, findings), sep="\n")
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
        cfg = compose_words("train", words)
        validate(cfg)
        return check(cfg)

    return run_main(body, NAME)


if __name__ == "__main__":
    raise SystemExit(main())
