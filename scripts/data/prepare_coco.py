"""Turns COCO 2014 into the tree that `dataset=coco` reads: draws the instance annotations into one mask a picture.

    python scripts/data/prepare_coco.py --root DATA/coco [--zips train2014.zip val2014.zip annotations_trainval2014.zip]
    python scripts/data/prepare_coco.py --root DATA/coco --year 2017      for dataset=coco dataset.year=2017

Reads `train2014/ val2014/ annotations/instances_{train,val}2014.json` under the root (or unpacks them from zips) and
writes `masks/{train2014,val2014}/*.png`: 0 background, class = position 1..80 in ascending category id, 255 ignore.
Annotations are painted in the JSON's order, later over earlier ones; a crowd region takes its turn with the value of
`--crowd`. It goes on where it was stopped: finished masks are left alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [folder for folder in (str(Path(__file__).parent),) if folder not in sys.path]

from prepare_common import (  # noqa: E402
    PaintItem,
    count_workers,
    paint_chunk,
    remove_stale,
    run_chunks,
    unfinished,
    unpack,
    warn,
)

from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.data.datasets.coco import YEARS  # noqa: E402
from hdmnet.data.datasets.files import check_unique  # noqa: E402
from hdmnet.data.io.annotations import (  # noqa: E402
    CROWD_VALUES,
    category_values,
    is_crowd,
    marks_nothing,
    refuse_doubled,
)

NAME = "prepare_coco"
NUM_CATEGORIES = 80
ZIP_PATTERN = r"(?:^|/)(train{year}|val{year}|annotations)/([\w-]+\.jpg|instances_(?:train|val){year}\.json)$"
HOME = "from the COCO site, cocodataset.org"


@dataclass
class Instances:
    """What is needed of an instances file: its pictures as work items, and the class value of every category id."""

    items: list[PaintItem]
    values: dict[int, int]


def load_instances(path: Path, pictures: Path, masks: Path) -> Instances:
    """Read an instances file and group its annotations by picture, in the file's order.

    Args:
        path: The JSON.
        pictures: Folder of the pictures.
        masks: Folder of the masks.

    Returns:
        An item for every picture of the file, whether it has annotations or not.

    Raises:
        ValueError: If it is no instances file.
    """
    try:
        content = json.loads(path.read_bytes())
        values = category_values(content["categories"])
        refuse_doubled(content["images"], "images", "file_name")
        check_unique([Path(str(image["file_name"])).stem for image in content["images"]], "its list of images")
        annotations: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            # Only what painting needs: bounding boxes and areas would be sent to the workers for nothing.
            kept = {key: annotation[key] for key in ("id", "category_id", "segmentation")}
            annotations[annotation["image_id"]].append(kept | {"iscrowd": annotation.get("iscrowd", 0)})
        items = [_item(image, annotations[image["id"]], pictures, masks) for image in content["images"]]
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is no COCO instances file (not found in it: {error}): download it again") from None
    except ValueError as error:  # also what json raises
        raise ValueError(f"{path} cannot be used: {error}; download it again") from None
    return Instances(items, values)


def _item(image: dict[str, Any], annotations: list[dict[str, Any]], pictures: Path, masks: Path) -> PaintItem:
    name = str(image["file_name"])
    if Path(name).name != name:
        raise ValueError(f"file_name {name!r} holds a folder, expected a bare name")
    size = (int(image["height"]), int(image["width"]))
    return PaintItem(pictures / name, masks / f"{Path(name).stem}.png", size, annotations)


def check_record(masks: Path, crowd: str, num_classes: int) -> None:
    """Refuse to go on with another crowd rule or other classes than the masks there have; else note them down.

    Args:
        masks: Folder of a split's masks; the record lies beside it.
        crowd: The crowd rule of this run.
        num_classes: Number of categories of this run.

    Raises:
        ValueError: If the record tells otherwise.
    """
    record = masks.parent / f"{masks.name}.json"
    current = {"crowd": crowd, "num_classes": num_classes}
    if record.is_file():
        try:
            earlier = json.loads(record.read_text(encoding="utf-8"))
        except ValueError:
            earlier = "unreadable"
        if earlier != current:
            raise ValueError(
                f"{masks} was made with {earlier}, and {current} is asked for: remove {masks} and {record} first"
            )
        return
    if any(masks.glob("*.png")):
        warn(NAME, f"{masks} holds masks of another program; they are taken as they are, only missing ones are made")
    record.write_text(json.dumps(current) + "\n", encoding="utf-8")


def prepare_split(root: Path, folder: str, *, crowd: str, workers: int, allow_partial: bool) -> bool:
    """Paint the masks of one split and count them.

    Args:
        root: The tree.
        folder: "train2014", "val2014" or those of 2017.
        crowd: What a crowd region paints.
        workers: Number of processes.
        allow_partial: Whether missing files are only a warning.

    Returns:
        Whether every picture of the JSON has its mask, or what lacks is allowed to.

    Raises:
        FileNotFoundError: If the pictures' folder or the JSON is missing and may not be.
        ValueError: If the JSON cannot be used.
    """
    pictures, masks, year = root / folder, root / "masks" / folder, folder[-4:]
    annotations = root / "annotations" / f"instances_{folder}.json"
    for path, archive in (
        (pictures, f"the COCO {year} {folder[:-4]} images zip ({folder}.zip)"),
        (annotations, f"the COCO {year} train/val annotations zip (annotations_trainval{year}.zip)"),
    ):
        if not path.exists():
            text = f"{path} is missing: it is in {archive} {HOME}; unpack it there or pass it to --zips"
            for other in (one for one in YEARS if str(one) != year and (root / f"{folder[:-4]}{one}").is_dir()):
                text = f"{path} is missing, but {folder[:-4]}{other} is there: for that add --year {other}"
            if not allow_partial:
                raise FileNotFoundError(text)
            warn(NAME, f"{text} ({folder} is left out)")
            return True
    instances = load_instances(annotations, pictures, masks)
    if len(instances.values) != NUM_CATEGORIES:
        warn(
            NAME,
            f"{annotations} has {len(instances.values)} categories, COCO {NUM_CATEGORIES}: classes are 1.."
            f"{len(instances.values)} in ascending category id and do not bear COCO's names",
        )
    masks.mkdir(parents=True, exist_ok=True)
    check_record(masks, crowd, len(instances.values))
    remove_stale(masks)
    on_disk = {path.name for path in pictures.iterdir() if not path.name.startswith(".")}
    present = [item for item in instances.items if item.picture.name in on_disk]
    rest = unfinished(present, lambda item: item.mask)
    work = partial(paint_chunk, values=instances.values, crowd=crowd)
    problems = run_chunks(work, rest, workers=workers, title=folder)
    beside = len(on_disk - {item.picture.name for item in instances.items})
    return report(folder, instances.items, present, problems, crowd=crowd, beside=beside, allow_partial=allow_partial)


def report(
    folder: str,
    items: Sequence[PaintItem],
    present: Sequence[PaintItem],
    problems: Sequence[str],
    *,
    crowd: str,
    beside: int,
    allow_partial: bool,
) -> bool:
    """Print the counts of a split, and what is wrong with it.

    Args:
        folder: As of `prepare_split`.
        items: The pictures of the JSON.
        present: Those on the disk.
        problems: A line for each mask that could not be painted.
        crowd: What a crowd region painted.
        beside: Number of files in the pictures' folder that the JSON does not name.
        allow_partial: Whether missing pictures are only a warning.

    Returns:
        Whether the split is complete, or lacks only what it may.
    """
    lacking = unfinished(present, lambda item: item.mask)
    num_missing = len(items) - len(present)
    num_empty = sum(1 for item in present if not item.annotations)
    print(
        f"{folder}: {len(items):,} pictures in the JSON, {len(present):,} on the disk, "
        f"{len(present) - len(lacking):,} masks, {num_empty:,} without annotations"
    )
    every = [annotation for item in present for annotation in item.annotations]
    num_crowds = sum(map(is_crowd, every))
    bare = sum(marks_nothing(annotation["segmentation"]) for annotation in every)
    for number, text in (
        (num_crowds, f"annotations are marked as crowds (iscrowd 1) and drawn by --crowd {crowd}"),
        (bare, "annotations have no segmentation and are not drawn"),
        (beside, f"files in {folder} are not named by the JSON and left out"),
    ):
        if number:
            print(f"{folder}: {number:,} {text}")
    if num_missing:
        there = {item.picture for item in present}
        first = next(item.picture for item in items if item.picture not in there)
        warn(
            NAME,
            f"{num_missing:,} of {len(items):,} pictures are missing, the first is {first}: unpack the COCO "
            f"{folder[-4:]} {folder[:-4]} images zip {HOME} again" + (" (allowed)" if allow_partial else ""),
        )
    if problems:
        more = f" (and {len(problems) - 1:,} more pictures with an error)" if len(problems) > 1 else ""
        warn(NAME, problems[0] + more)
    return not lacking and not problems and (allow_partial or not num_missing)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: Command line without the program's name; None = the process's own.

    Returns:
        Exit code: 0 if everything is complete, else 1.
    """
    parser = OneLineParser(prog=NAME, description="Paint the masks of COCO from its instance annotations.")
    parser.add_argument("--root", type=Path, required=True, help="the COCO tree, e.g. $HDMNET_DATA/coco")
    parser.add_argument("--zips", type=Path, nargs="+", default=[], help="zips of the COCO site to unpack there first")
    parser.add_argument(
        "--crowd", choices=CROWD_VALUES, default="ignore", help="crowd regions: 255 (default), 0, or class"
    )
    parser.add_argument(
        "--year", type=int, choices=YEARS, default=YEARS[0], help=f"of the folders' names (default: {YEARS[0]})"
    )
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")
    parser.add_argument(
        "--allow-partial", action="store_true", help="missing pictures or a missing split are only a warning"
    )

    def body() -> bool:
        arguments = parser.parse_args(argv)
        workers = count_workers(arguments.workers)
        for archive in arguments.zips:
            unpack(archive, arguments.root, ZIP_PATTERN.format(year=arguments.year))
        if not arguments.root.is_dir():
            raise FileNotFoundError(f"--root {arguments.root} is no folder: give that of train2014/ and val2014/")
        complete = True
        for folder in (f"train{arguments.year}", f"val{arguments.year}"):
            complete &= prepare_split(
                arguments.root, folder, crowd=arguments.crowd, workers=workers, allow_partial=arguments.allow_partial
            )
        return complete

    return run_main(body, NAME)


if __name__ == "__main__":
    raise SystemExit(main())
