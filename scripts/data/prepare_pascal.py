"""Turns PASCAL VOC 2012 and SBD into the tree that `dataset=pascal` reads: palette PNGs in `SegmentationClassAug/`.

    python scripts/data/prepare_pascal.py --root DATA/pascal --voc-tar VOCtrainval_11-May-2012.tar --sbd benchmark.tgz

Without `--voc-tar` the VOC tree must be there already; `--sbd` takes SBD's archive or the folder it was unpacked to.
VOC's own masks win where both have one. It goes on where it was stopped: finished masks, also of other programs, are
left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path[:0] = [folder for folder in (str(Path(__file__).parent),) if folder not in sys.path]

from prepare_common import (  # noqa: E402
    ConvertItem,
    archive_members,
    convert_chunk,
    count_workers,
    one_line_for,
    remove_stale,
    run_chunks,
    unfinished,
    unpack,
    warn,
)

from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.data.datasets.files import read_ids  # noqa: E402
from hdmnet.data.datasets.palettes import common_colours  # noqa: E402
from hdmnet.data.datasets.pascal import LISTS  # noqa: E402

NAME = "prepare_pascal"
NUM_MASKS = 12_031
VOC_PATTERN = r"(?:^|/)(JPEGImages|SegmentationClass|ImageSets/Segmentation)/(\w[\w.-]*)$"
SBD_PATTERN = r"(?:^|/)cls/(\w[\w-]*)\.mat$"
VOC_SOURCE = (
    "the PASCAL VOC 2012 train/val tar (VOCtrainval_11-May-2012.tar) from the PASCAL VOC site; pass it to --voc-tar"
)
SBD_SOURCE = "the Semantic Boundaries Dataset (benchmark.tgz) from the Berkeley computer vision site; pass it to --sbd"


def check_voc(root: Path) -> None:
    """Check that the VOC tree is there.

    Args:
        root: The tree.

    Raises:
        FileNotFoundError: If its pictures or masks are not; one line.
    """
    for folder in ("JPEGImages", "SegmentationClass"):
        if (root / folder).is_dir():
            continue
        inner = root / "VOCdevkit" / "VOC2012"
        if inner.is_dir():
            raise FileNotFoundError(f"{root / folder} is missing, but {inner} is a VOC tree: pass --root {inner}")
        raise FileNotFoundError(f"{root / folder} is missing: it is in {VOC_SOURCE}")


def sbd_sources(sbd: Path) -> dict[str, tuple[Path | bytes, str]]:
    """Find the class segmentations of SBD.

    Args:
        sbd: The archive, or the folder that it was unpacked to (any level down to `cls/`).

    Returns:
        For each id: the .mat's path (folder) or bytes (archive; about 60 MB in all), and its name for errors.

    Raises:
        FileNotFoundError: If there is no such file or folder, or no .mat in it.
    """
    sources: dict[str, tuple[Path | bytes, str]] = {}
    if sbd.is_dir():
        for folder in (sbd, sbd / "cls", sbd / "dataset" / "cls", sbd / "benchmark_RELEASE" / "dataset" / "cls"):
            sources |= {path.stem: (path, str(path)) for path in folder.glob("*.mat")}
    else:
        with one_line_for(sbd):
            for match, _, stream in archive_members(sbd, SBD_PATTERN):
                sources[match[1]] = (stream.read(), f"{sbd}:{match[0].lstrip('/')}")
    if not sources:
        raise FileNotFoundError(f"{sbd} holds no cls/*.mat: it should be {SBD_SOURCE}")
    return sources


def list_items(root: Path, sbd: Path | None) -> list[ConvertItem]:
    """List the masks to write; where both have one, VOC's own.

    Args:
        root: The VOC tree.
        sbd: SBD's archive or folder, if any.

    Returns:
        An item an id, ids ascending.
    """
    sources: dict[str, tuple[Path | bytes, str]] = {} if sbd is None else sbd_sources(sbd)
    sources |= {path.stem: (path, str(path)) for path in (root / "SegmentationClass").glob("*.png")}
    target = root / "SegmentationClassAug"
    return [
        ConvertItem(root / "JPEGImages" / f"{image_id}.jpg", target / f"{image_id}.png", *sources[image_id])
        for image_id in sorted(sources)
    ]


def report(root: Path, *, num_missing_pictures: int, problems: Sequence[str], allow_partial: bool) -> bool:
    """Print the counts and what lacks.

    Args:
        root: The VOC tree.
        num_missing_pictures: Number of masks that were not written since their picture is missing.
        problems: A line for each mask that could not be written.
        allow_partial: Whether a reduced tree is only a warning.

    Returns:
        Whether the tree is complete, or lacks only what it may.
    """
    masks = {path.stem for path in (root / "SegmentationClassAug").glob("*.png")}
    train = {*read_ids(LISTS / "voc2012_train.txt"), *read_ids(LISTS / "sbd_train_noval.txt")}
    val = set(read_ids(LISTS / "voc2012_val.txt"))
    print(
        f"masks: {len(masks):,} found, {NUM_MASKS:,} expected; "
        f"of the {len(train):,} training ids {len(train & masks):,}, of the {len(val):,} validation ids "
        f"{len(val & masks):,}"
    )
    allowed = " (allowed)" if allow_partial else "; for a reduced tree pass --allow-partial"
    if num_missing_pictures:
        warn(
            NAME,
            f"{num_missing_pictures:,} masks have no picture in {root / 'JPEGImages'}: unpack {VOC_SOURCE}{allowed}",
        )
    elif len(masks) < NUM_MASKS:
        lacking = VOC_SOURCE if not val <= masks else SBD_SOURCE
        warn(NAME, f"{NUM_MASKS - len(masks):,} of {NUM_MASKS:,} masks are missing: they come from {lacking}{allowed}")
    if problems:
        more = f" (and {len(problems) - 1:,} more with an error)" if len(problems) > 1 else ""
        warn(NAME, problems[0] + more)
    return not problems and (allow_partial or (len(masks) >= NUM_MASKS and not num_missing_pictures))


def prepare(root: Path, voc_tar: Path | None, sbd: Path | None, *, workers: int, allow_partial: bool) -> bool:
    """Unpack, convert and count.

    Args:
        root: The VOC tree, there already or to be unpacked to.
        voc_tar: VOC's archive, if it is to be unpacked.
        sbd: SBD's archive or folder, if any.
        workers: Number of processes.
        allow_partial: Whether a reduced tree is only a warning.

    Returns:
        Whether the tree is complete, or lacks only what it may.

    Raises:
        FileNotFoundError: If an archive or the VOC tree is missing.
        ValueError: If an archive is damaged.
    """
    if voc_tar is not None:
        unpack(voc_tar, root, VOC_PATTERN)
    check_voc(root)
    target = root / "SegmentationClassAug"
    target.mkdir(exist_ok=True)
    remove_stale(target)
    items = list_items(root, sbd)
    pictures = {path.name for path in (root / "JPEGImages").iterdir()}
    present = [item for item in items if item.picture.name in pictures]
    rest = unfinished(present, lambda item: item.mask)
    own = [item.source for item in items if isinstance(item.source, Path) and item.source.suffix == ".png"]
    problems = run_chunks(partial(convert_chunk, colours=common_colours(own)), rest, workers=workers, title=target.name)
    return report(root, num_missing_pictures=len(items) - len(present), problems=problems, allow_partial=allow_partial)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: Command line without the program's name; None = the process's own.

    Returns:
        Exit code: 0 if the tree is complete, else 1.
    """
    parser = OneLineParser(prog=NAME, description="Make the VOC 2012 + SBD masks of PASCAL-5i.")
    parser.add_argument("--root", type=Path, required=True, help="the VOC tree, e.g. $HDMNET_DATA/pascal")
    parser.add_argument("--voc-tar", type=Path, help="VOCtrainval_11-May-2012.tar, to be unpacked to the root first")
    parser.add_argument("--sbd", type=Path, help="SBD: benchmark.tgz, or the folder it was unpacked to")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")
    parser.add_argument(
        "--allow-partial", action="store_true", help="fewer masks than the full 12,031 are only a warning"
    )

    def body() -> bool:
        arguments = parser.parse_args(argv)
        return prepare(
            arguments.root,
            arguments.voc_tar,
            arguments.sbd,
            workers=count_workers(arguments.workers),
            allow_partial=arguments.allow_partial,
        )

    return run_main(body, NAME)


if __name__ == "__main__":
    raise SystemExit(main())
