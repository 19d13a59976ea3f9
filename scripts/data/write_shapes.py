"""Writes the embedded shapes out as a real VOC or COCO tree, or as a folder like a user's own.

    python scripts/data/write_shapes.py --format voc --output DATA/pascal
    python scripts/data/write_shapes.py --format coco --output DATA/coco
    python scripts/data/write_shapes.py --format folder-index --output DIR    # also -binary, -coco, -fss

`voc`: 20 classes; `JPEGImages/*.jpg`, palette PNGs in `SegmentationClass/` and `SegmentationClassAug/`, lists in
`ImageSets/Segmentation/`. Train on it with `dataset=pascal dataset.train_list=voc`, which takes the tree's own lists.

`coco`: 80 classes (20 patterns × 4 silhouettes), file names and gaps in the category ids as in COCO 2014; polygons of
the visible parts (several where something cuts an object in two; holes are filled), crowd regions as uncompressed RLE.
Objects that can hardly be seen are annotated too. Paint it with `scripts/data/prepare_coco.py` next.

`folder-…`: 20 classes, or as many as `--num-classes` says, in each of the layouts of `dataset=folder dataset.root=DIR`,
with `train.txt` and `val.txt` for `dataset.train_list` and `dataset.val_list`. With `--one-class`, as in FSS-1000,
objects of one class are marked in each picture, named CLASS/NAME: then all four layouts hold the same.

By default every class has enough pictures with at least 2,048 px of it for 5 shots in each fold and split. The tree
appears under its name only when it is complete.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(folder) for folder in (ROOT, ROOT / "scripts" / "data") if str(folder) not in sys.path]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from tqdm import tqdm  # noqa: E402
from write_shapes_folders import encode_counts, encode_jpeg, write_folder  # noqa: E402

from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.data.datasets.base import Split  # noqa: E402
from hdmnet.data.datasets.shapes.dataset import Sample, ShapesDataset  # noqa: E402
from hdmnet.data.io.masks import write_mask  # noqa: E402

NAME = "write_shapes"
# (train, val): enough of every class, see the tests.
NUM_PICTURES = {"voc": (240, 120), "coco": (480, 280)} | {
    f"folder-{layout}": (240, 120) for layout in ("index", "binary", "coco", "fss")
}
COCO_GAPS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})  # ids up to 90 that no category of COCO has
CATEGORY_IDS = [number for number in range(1, 91) if number not in COCO_GAPS]
CROWD_EVERY = 8  # one picture in so many holds a crowd region
MIN_PART = 12  # px; smaller slivers are left out

_YEARS: dict[Split, int] = {"train": 2011, "val": 2012}  # as in VOC's names
_FIRST_IDS: dict[Split, int] = {"train": 9, "val": 42}  # ids of COCO's pictures differ between the splits and have gaps

Polygon = list[float]


def drop_slivers(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Remove the connected parts of less than `MIN_PART` px from a mask (H, W) bool."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] >= MIN_PART
    large[0] = False  # the background
    return np.asarray(large[parts])


def trace(mask: NDArray[np.bool_]) -> list[Polygon]:
    """Outline the connected parts of a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        A polygon x0, y0, x1, y1, … in pixels for each part; holes are filled.
    """
    # Traced at twice the size: contours run through pixel centres, and would cut half a pixel off all around.
    double = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(double, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, 0.5, True).reshape(-1, 2)
        polygons.append([float(value) for value in ((points + 0.5) / 2).ravel()])
    return polygons


def bounding_box(mask: NDArray[np.bool_]) -> list[float]:
    """Return x, y, width, height in pixels of a mask (H, W) bool that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [float(v) for v in (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)]


def find_crowd(sample: Sample) -> tuple[int, NDArray[np.bool_]] | None:
    """Join two objects that are nearest to each other to a crowd region with a margin, so that it covers both.

    Args:
        sample: A picture.

    Returns:
        The position in `sample.classes` of the object that gives the region its class, and the region (H, W) bool; None
        where fewer than two objects can be seen.
    """
    centres = {
        position: np.argwhere(sample.instances == position + 1).mean(axis=0)
        for position in range(len(sample.classes))
        if (sample.instances == position + 1).any()
    }
    pairs = [(a, b) for a in centres for b in centres if a < b]
    if not pairs:
        return None
    first, second = min(pairs, key=lambda pair: float(np.linalg.norm(centres[pair[0]] - centres[pair[1]])))
    both = np.isin(sample.instances, [first + 1, second + 1]).astype(np.uint8)
    return first, cv2.morphologyEx(both, cv2.MORPH_CLOSE, np.ones((15, 15), dtype=np.uint8)) > 0


def annotate(sample: Sample, index: int) -> list[dict[str, Any]]:
    """Annotations of a picture without their ids.

    Args:
        sample: The picture.
        index: Its number; every `CROWD_EVERY`-th has a crowd region, which stands first or last in turn.

    Returns:
        One entry an object with a polygon; the object that lends a crowd region its class has no entry of its own.
    """
    crowd = find_crowd(sample) if index % CROWD_EVERY == CROWD_EVERY - 1 else None
    entries: list[dict[str, Any]] = []
    for position, value in enumerate(sample.classes):
        mask = drop_slivers(sample.instances == position + 1)
        if mask.any() and not (crowd and crowd[0] == position):
            entries.append(_entry(trace(mask), mask, value, iscrowd=0))
    if crowd:
        counts = {"counts": encode_counts(crowd[1]), "size": list(crowd[1].shape)}
        entry = _entry(counts, crowd[1], sample.classes[crowd[0]], iscrowd=1)
        entries.insert(0 if index // CROWD_EVERY % 2 else len(entries), entry)
    return entries


def _entry(segmentation: object, mask: NDArray[np.bool_], value: int, *, iscrowd: int) -> dict[str, Any]:
    return {
        "segmentation": segmentation,
        "area": float(np.count_nonzero(mask)),
        "iscrowd": iscrowd,
        "bbox": bounding_box(mask),
        "category_id": CATEGORY_IDS[value - 1],
    }


def _samples(dataset: ShapesDataset, split: Split) -> Iterator[tuple[int, Sample]]:
    for index, image_id in enumerate(tqdm(dataset.ids(split), desc=split, unit="pictures")):
        yield index, dataset.sample(image_id)


def write_voc(dataset: ShapesDataset, root: Path) -> None:
    """Write pictures, masks and lists of a 20-class dataset as a VOC 2012 tree.

    Args:
        dataset: The pictures.
        root: An empty folder.
    """
    lists = root / "ImageSets" / "Segmentation"
    for folder in (root / "JPEGImages", root / "SegmentationClass", root / "SegmentationClassAug", lists):
        folder.mkdir(parents=True)
    names: dict[str, list[str]] = {split: [] for split in _YEARS}
    for split, year in _YEARS.items():
        for index, sample in _samples(dataset, split):
            name = f"{year}_{index + 1:06d}"
            names[split].append(name)
            (root / "JPEGImages" / f"{name}.jpg").write_bytes(encode_jpeg(sample.image))
            for masks in ("SegmentationClass", "SegmentationClassAug"):
                write_mask(root / masks / f"{name}.png", sample.mask)
    for title, ids in (*names.items(), ("trainval", names["train"] + names["val"])):
        (lists / f"{title}.txt").write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")


def write_coco(dataset: ShapesDataset, root: Path) -> None:
    """Write pictures and instance annotations of an 80-class dataset as a COCO 2014 tree.

    Args:
        dataset: The pictures.
        root: An empty folder.
    """
    (root / "annotations").mkdir(parents=True)
    categories = [
        {"supercategory": name.split()[0], "id": number, "name": name}
        for number, name in zip(CATEGORY_IDS, dataset.class_names, strict=True)
    ]
    annotation_id = 0
    for split, first_id in _FIRST_IDS.items():
        folder = f"{split}2014"
        (root / folder).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, sample in _samples(dataset, split):
            image_id = first_id + 100 * index
            name = f"COCO_{folder}_{image_id:012d}.jpg"
            (root / folder / name).write_bytes(encode_jpeg(sample.image))
            height, width = sample.mask.shape
            images.append({"license": 1, "file_name": name, "height": height, "width": width, "id": image_id})
            for entry in annotate(sample, index):
                annotation_id += 1
                annotations.append(entry | {"image_id": image_id, "id": annotation_id})
        content = {
            "info": {"description": "SHAPES in the format of COCO 2014", "version": dataset.fingerprint("train")},
            "licenses": [{"id": 1, "name": "Apache-2.0"}],
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        path = root / "annotations" / f"instances_{folder}.json"
        path.write_text(json.dumps(content), encoding="utf-8")


def write_tree(arguments: argparse.Namespace) -> None:
    """Write the tree beside its final place and move it there when it is complete.

    Args:
        arguments: The parsed command line.

    Raises:
        FileExistsError: The output is there already and not an empty folder.
        ValueError: An argument is out of range.
    """
    output: Path = arguments.output
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FileExistsError(f"--output {output} exists, expected a new or empty folder: remove it or choose another")
    if len(arguments.image_size) > 2:
        raise ValueError(f"--image-size has {len(arguments.image_size)} numbers, expected a side or height and width")
    size = arguments.image_size * (2 if len(arguments.image_size) == 1 else 1)
    chosen: str = arguments.format
    if not chosen.startswith("folder-") and (arguments.num_classes is not None or arguments.one_class):
        raise ValueError(
            f"--num-classes and --one-class are for --format folder-…, got --format {chosen}: leave them out"
        )
    num_train, num_val = NUM_PICTURES[chosen]
    dataset = ShapesDataset(
        generator_seed=arguments.seed,
        picture_size=(size[0], size[1]),
        num_train=num_train if arguments.num_train is None else arguments.num_train,
        num_val=num_val if arguments.num_val is None else arguments.num_val,
        num_classes=80 if chosen == "coco" else 20 if arguments.num_classes is None else arguments.num_classes,
        split_rule="interleaved" if chosen == "coco" else "contiguous",
        object_scale=arguments.object_scale,
        vary_size=True,
    )
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left over by a stopped run
    partial.mkdir(parents=True)
    try:
        if chosen.startswith("folder-"):
            total = len(dataset.ids("train")) + len(dataset.ids("val"))
            watch = functools.partial(tqdm, total=total, desc=chosen, unit="pictures")
            write_folder(chosen.removeprefix("folder-"), dataset, partial, one_class=arguments.one_class, watch=watch)
        else:
            (write_voc if chosen == "voc" else write_coco)(dataset, partial)
        partial.replace(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: Command line without the program's name; None = the process's own.

    Returns:
        Exit code: 0 if the tree is complete, else 1.
    """
    parser = OneLineParser(prog=NAME, description="Write the embedded shapes as a real tree of files.")
    kinds = "voc (20 classes), coco (80), or a layout of dataset=folder"
    parser.add_argument("--format", choices=NUM_PICTURES, required=True, help=kinds)
    parser.add_argument("--output", type=Path, required=True, help="root of the tree; new or empty")
    parser.add_argument("--num-train", type=int, help="training pictures (default: 240, coco 480)")
    parser.add_argument("--num-val", type=int, help="validation pictures (default: 120, coco 280)")
    parser.add_argument("--num-classes", type=int, help="of a folder: a multiple of 4 (default: 20)")
    parser.add_argument("--one-class", action="store_true", help="of a folder: one class a picture, as fss always has")
    parser.add_argument("--seed", type=int, default=0, help="seed of the pictures (default: 0)")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs="+",
        default=[240, 320],
        help="largest side, or height and width (default: 240 320)",
    )
    parser.add_argument("--object-scale", type=float, default=1.2, help="factor on the objects' size (default: 1.2)")

    def body() -> bool:
        write_tree(parser.parse_args(argv))
        return True

    return run_main(body, NAME)


if __name__ == "__main__":
    raise SystemExit(main())
