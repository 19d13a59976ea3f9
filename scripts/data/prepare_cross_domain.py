"""Makes the data sets of the cross-domain benchmark (PATNet) ready: `dataset=deepglobe`, `isic`, `chest_xray`.

    python scripts/data/prepare_cross_domain.py deepglobe SOURCE --root DATA/deepglobe
    python scripts/data/prepare_cross_domain.py isic SOURCE --classes class_id.csv --root DATA/isic
    python scripts/data/prepare_cross_domain.py chest_xray SOURCE --root DATA/chest_xray

SOURCE is the unpacked archive, searched to any depth:

    deepglobe   NAME_sat.jpg, NAME_mask.png of the land cover challenge's training set, the only one with masks (803).
                Each is cut into 6x6 tiles; those stay in which there are several colours, "unknown" among them, each of
                more than 4.8 % of the tile: 5,666. The colour "unknown" is background.
    isic        NAME.jpg and NAME_segmentation.png of ISIC 2018's task 1, training (2,594); the classes (nevus,
                melanoma, seborrheic keratosis) by a CSV with the columns ID and Class, as PATNet's repository has it.
    chest_xray  NAME.png and NAME_mask.png: the 566 of the Shenzhen set. Those of Montgomery, whose masks have the
                pictures' names, are not in the benchmark.

Counts: Lei et al., "Cross-Domain Few-Shot Semantic Segmentation", ECCV 2022, and its repository; the archive itself for
ISIC. Pictures become JPEGs of quality 95; longer sides than --longest (1,024) are shrunk to it, as the originals have
thousands of pixels and a network sees 400. What is there already stays: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT), str(Path(__file__).parent)) if path not in sys.path]

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from prepare_common import count_workers, run_chunks, warn  # noqa: E402

from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.data.io.arrays import UInt8Array  # noqa: E402
from hdmnet.data.io.masks import read_mask, write_mask  # noqa: E402
from hdmnet.data.io.pictures import read_image  # noqa: E402
from hdmnet.runtime.atomic import replacing  # noqa: E402
from hdmnet.runtime.errors import DatasetError, MissingFileError, one_line  # noqa: E402

NAME = "prepare_cross_domain"
#: Of DeepGlobe, in PATNet's order; index masks count from 1.
COLOURS = {
    "agriculture": (255, 255, 0),
    "urban": (0, 255, 255),
    "rangeland": (255, 0, 255),
    "forest": (0, 255, 0),
    "water": (0, 0, 255),
    "barren": (255, 255, 255),
}
CUTS, LEAST_SHARE = 6, 0.048
EXPECTED = {"deepglobe": 5666, "isic": 2594, "chest_xray": 566}  # pictures
_HALF = 128  # of a mask's brightness
Pair = tuple[Path, Path, str]  # picture, mask, class (of DeepGlobe none)


def cut(picture: UInt8Array, mask: UInt8Array) -> Iterable[tuple[str, UInt8Array, UInt8Array]]:
    """Cut a picture (H, W, 3) and its classes (H, W) into tiles; gives place, picture and classes of those that stay.

    A tile stays where it has several values and each has more than the least share.
    """
    height, width = mask.shape
    for row in range(CUTS):
        for column in range(CUTS):
            rows = slice(row * height // CUTS, (row + 1) * height // CUTS)
            columns = slice(column * width // CUTS, (column + 1) * width // CUTS)
            tile = mask[rows, columns]
            counts = np.bincount(tile.ravel())
            counts = counts[counts > 0]
            if len(counts) > 1 and counts.min() > LEAST_SHARE * tile.size:
                yield f"{row}{column}", picture[rows, columns], tile


def classes_of_colours(colours: UInt8Array) -> UInt8Array:
    """DeepGlobe's colours (H, W, 3), each channel dark or bright, → class values (H, W), 0 what is unknown.

    Raises:
        ValueError: There is another colour.
    """
    codes = (colours >= _HALF) @ np.array([4, 2, 1], dtype=np.uint8)  # (H, W)
    table = np.full(8, 255, dtype=np.uint8)
    table[0] = 0
    for value, colour in enumerate(COLOURS.values(), start=1):
        table[sum(bit for bit, channel in zip((4, 2, 1), colour, strict=True) if channel)] = value
    values: UInt8Array = table[codes]
    if (values == 255).any():
        raise DatasetError("a colour is none of DeepGlobe's: expected the masks of the land cover challenge")
    return values


def prepare_tiles(pairs: Sequence[Pair], root: Path) -> list[str]:
    """Write the tiles of some pictures of DeepGlobe; gives a line for each that failed."""
    return _each(pairs, partial(_write_tiles, root))


def _write_tiles(root: Path, source: Path, mask: Path, _: str) -> None:
    name = source.stem.removesuffix("_sat")
    done = root / "masks" / f".{name}.done"  # of a picture that keeps no tile nothing else tells
    if done.exists():
        return
    picture, values = read_image(source), classes_of_colours(read_image(mask))
    if picture.shape[:2] != values.shape:
        raise DatasetError(f"it is {picture.shape[:2]} (HxW), its mask {values.shape}: expected the same size")
    for place, tile, classes in cut(picture, values):
        _save_picture(root / "images" / f"{name}_{place}.jpg", Image.fromarray(tile))
        write_mask(root / "masks" / f"{name}_{place}.png", classes)
    done.touch()


def prepare_pairs(pairs: Sequence[Pair], root: Path, longest: int) -> list[str]:
    """Write some pictures and masks of one class each; gives a line for each that failed."""
    return _each(pairs, partial(_write_pair, root, longest))


def _write_pair(root: Path, longest: int, source: Path, mask: Path, class_name: str) -> None:
    target = root / "masks" / class_name / f"{source.stem}.png"
    if target.exists():
        return
    picture, marked = Image.fromarray(read_image(source)), Image.fromarray(_bright(mask))
    if picture.size != marked.size:
        raise DatasetError(f"it is {picture.size} (WxH), its mask {marked.size}: expected the same size")
    scale = longest / max(picture.size)
    if scale < 1:
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        picture, marked = picture.resize(size, Image.Resampling.LANCZOS), marked.resize(size, Image.Resampling.NEAREST)
    _save_picture(root / "images" / f"{source.stem}.jpg", picture)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        marked.save(temporary, format="PNG")


def _bright(path: Path) -> UInt8Array:
    """A mask (H, W): 255 where it has half of the brightness or more, 0 elsewhere."""
    with Image.open(path) as mask:
        return np.where(np.asarray(mask.convert("L")) >= _HALF, 255, 0).astype(np.uint8)


def _save_picture(path: Path, picture: Image.Image) -> None:
    with replacing(path) as temporary:
        picture.save(temporary, format="JPEG", quality=95)


def _each(pairs: Sequence[Pair], write: Callable[[Path, Path, str], None]) -> list[str]:
    problems = []
    for source, mask, class_name in pairs:
        try:
            write(source, mask, class_name)
        except (ValueError, OSError) as error:
            problems.append(f"{source}: {one_line(error)}")
    return problems


def find_pairs(source: Path, pictures: str, masks: str, classes: Callable[[str], str]) -> list[Pair]:
    """Pictures with their masks, anywhere below a folder, by name.

    Args:
        source: The folder.
        pictures: How the pictures' names end, "_sat.jpg"; what stands before is the name.
        masks: How the masks' do.
        classes: Class of a name.

    Raises:
        FileNotFoundError: There is none, or a mask has no picture.
    """
    if not source.is_dir():
        raise MissingFileError(f"{source} is no folder: expected the unpacked archive")
    found = {path.name.removesuffix(masks): path for path in sorted(source.rglob(f"[!.]*{masks}"))}
    there = {path.name.removesuffix(pictures): path for path in source.rglob(f"[!.]*{pictures}")}
    if not found:
        raise MissingFileError(f"{source} holds no file *{masks}: expected the unpacked archive, masks among it")
    lost = [name for name in found if name not in there]
    if lost:
        raise MissingFileError(
            f"{len(lost)} masks below {source} have no picture, e.g. {lost[0]}{pictures}: unpack both"
        )
    return [(there[name], mask, classes(name)) for name, mask in found.items()]


def read_classes(path: Path) -> dict[str, str]:
    """Class by image, of a CSV with the columns ID and Class."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"ID", "Class"} <= rows[0].keys():
        raise DatasetError(f"{path}: expected a CSV with the columns ID and Class")
    return {row["ID"]: row["Class"].strip().replace(" ", "_") for row in rows}


def run(argv: Sequence[str] | None) -> bool:
    """Prepare what the command line says; gives whether everything is there."""
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=list(EXPECTED))
    parser.add_argument("source", type=Path, help="folder of the unpacked archive")
    parser.add_argument("--root", type=Path, required=True, help="folder to write: data_dir/DATASET")
    parser.add_argument("--classes", type=Path, help="isic: CSV with the columns ID and Class")
    parser.add_argument("--longest", type=int, default=1024, help="longest side, isic and chest_xray (default: 1024)")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    arguments = parser.parse_args(argv)
    if arguments.longest < 1:
        parser.error(f"--longest {arguments.longest}: expected at least 1")
    if (arguments.classes is None) == (arguments.dataset == "isic"):
        parser.error("--classes is for isic, which needs it")
    root: Path = arguments.root
    work = partial(prepare_pairs, root=root, longest=arguments.longest)
    if arguments.dataset == "deepglobe":
        pairs = find_pairs(arguments.source, "_sat.jpg", "_mask.png", lambda name: "")
        (root / "masks").mkdir(parents=True, exist_ok=True)
        with replacing(root / "classes.txt") as temporary:
            temporary.write_text("\n".join(COLOURS) + "\n", encoding="utf-8")
        work = partial(prepare_tiles, root=root)
    elif arguments.dataset == "isic":
        pairs = find_pairs(
            arguments.source, ".jpg", "_segmentation.png", partial(_class_of, read_classes(arguments.classes))
        )
    else:
        pairs = find_pairs(arguments.source, ".png", "_mask.png", lambda name: "lung")
    problems = run_chunks(work, pairs, workers=count_workers(arguments.workers), title=arguments.dataset)
    for problem in problems:
        warn(NAME, problem)
    return _tell(arguments.dataset, root) and not problems


def _class_of(classes: dict[str, str], name: str) -> str:
    if name not in classes:
        raise DatasetError(f"--classes has no line of {name}: expected one for every picture with a mask")
    return classes[name]


def _tell(dataset: str, root: Path) -> bool:
    """Print how many pictures there are, by class; gives whether there is any."""
    if dataset == "deepglobe":
        masks = sorted((root / "masks").glob("[!.]*.png"))
        held = [set(np.unique(read_mask(mask)).tolist()) for mask in masks]
        counts = {name: sum(value in one for one in held) for value, name in enumerate(COLOURS, start=1)}
        number = len(masks)
    else:
        folders = [folder for folder in sorted((root / "masks").iterdir()) if folder.is_dir()]
        counts = {folder.name: len(list(folder.glob("[!.]*.png"))) for folder in folders}
        number = sum(counts.values())
    print(f"{number:,} pictures in {root}: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    if number != EXPECTED[dataset]:
        warn(NAME, f"the benchmark has {EXPECTED[dataset]:,} pictures: figures are of another selection")
    return number > 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    return run_main(lambda: run(argv), NAME)


if __name__ == "__main__":
    sys.exit(main())
