"""Draws an example of each layout that `dataset=folder` takes: the files as they lie there, and what is read from them.

    python scripts/data/draw_layouts.py --out docs/layouts

Writes LAYOUT.png into the folder, and a contact sheet as check_dataset.py draws it; docs/layouts.md shows them. The
pictures are embedded shapes, written by the same code as `write_shapes.py --format folder-LAYOUT` and read back by the
data set itself.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

sys.path[:0] = [folder for folder in (str(Path(__file__).parent),) if folder not in sys.path]

from write_shapes_folders import WRITERS, Entry, read_entries  # noqa: E402

from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.data.datasets.folder.dataset import FolderDataset  # noqa: E402
from hdmnet.data.datasets.shapes.dataset import ShapesDataset  # noqa: E402
from hdmnet.data.io.masks import read_mask, voc_palette  # noqa: E402
from hdmnet.runtime.atomic import replacing  # noqa: E402
from hdmnet.visual.colours import PREDICTION, TRUTH  # noqa: E402
from hdmnet.visual.contact_sheet import draw_contact_sheets  # noqa: E402
from hdmnet.visual.episode_grid import FAINT, INK, PAPER, Picture, font, with_mask  # noqa: E402

NAME = "draw_layouts"
SIDE = 129  # of a picture, in pixels; drawn at this size
_GAP, _TEXT = 16, 34

_COLOURS = np.array([(0, 0, 0), (250, 50, 83), (61, 61, 245), (255, 204, 51), (52, 209, 183)], np.uint8)  # of CVAT

Panel = tuple[str, str, Picture]  # a file's name, what is in it, and a picture of it


def _open(path: Path) -> Picture:
    return np.asarray(Image.open(path).convert("RGB"))


def _index(root: Path, entry: Entry, names: Sequence[str]) -> list[Panel]:
    values = [f"{value} {name}" for value, name in enumerate(names, start=1) if (entry.mask == value).any()]
    shown = np.reshape(voc_palette(), (256, 3)).astype(np.uint8)[read_mask(root / f"masks/{entry.name}.png")]
    return [(f"masks/{entry.name}.png", f"values: 0, {', '.join(values)}", shown)]


def _colours(root: Path, entry: Entry, names: Sequence[str]) -> list[Panel]:
    """The index masks once more, in colours, with a list of them in the place of classes.txt."""
    file = root / f"masks/{entry.name}.png"
    shown = _COLOURS[read_mask(file)]
    Image.fromarray(shown).save(file)
    (root / "classes.txt").unlink()
    lines = [
        f"{name}:{','.join(map(str, colour))}::" for name, colour in zip(names, _COLOURS[1:].tolist(), strict=True)
    ]
    (root / "labelmap.txt").write_text("\n".join(lines), encoding="utf-8")
    used = [line for value, line in enumerate(lines, start=1) if (shown == _COLOURS[value]).all(axis=2).any()]
    return [(f"masks/{entry.name}.png", " ".join(used), shown)]


def _binary(root: Path, entry: Entry, names: Sequence[str]) -> list[Panel]:
    files = sorted((root / "masks").rglob("*.png"))
    return [
        (file.relative_to(root).as_posix(), "0 and one other value", 255 * np.minimum(_open(file), 1)) for file in files
    ]


def _coco(root: Path, entry: Entry, names: Sequence[str]) -> list[Panel]:
    content = json.loads((root / "annotations.json").read_text(encoding="utf-8"))
    panel = _open(root / "images" / f"{entry.name}.jpg").copy()
    for annotation, colour in zip(content["annotations"], (TRUTH, PREDICTION), strict=False):
        region = (entry.mask == annotation["category_id"] // 10).astype(np.uint8)
        cv2.drawContours(panel, cv2.findContours(region, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0], -1, colour, 2)
    return [("annotations.json", "images, annotations, categories", panel)]


def _fss(root: Path, entry: Entry, names: Sequence[str]) -> list[Panel]:
    return [(f"{entry.name}.png", "0 and 255", _open(root / f"{entry.name}.png"))]


LAYOUTS: dict[str, Callable[[Path, Entry, Sequence[str]], list[Panel]]] = {
    "index": _index,
    "colours": _colours,
    "binary": _binary,
    "coco": _coco,
    "fss": _fss,
}


def _shapes(*, one_class: bool) -> tuple[list[Entry], list[str]]:
    """Some pictures, and the names of their classes."""
    shapes = ShapesDataset(num_classes=4, picture_size=SIDE, num_train=24, num_val=1)
    return list(read_entries(shapes, "train", one_class=one_class)), sorted(shapes.class_names)


def draw_sheet(root: Path, file: Path) -> None:
    """Write pictures into an empty folder, and draw their contact sheet."""
    entries, names = _shapes(one_class=False)
    WRITERS["index"](root, entries, names)
    dataset = FolderDataset(root)
    draw_contact_sheets(dataset, {one.name: dataset.class_areas(one.name) for one in entries}, file)


def draw_layout(layout: str, root: Path) -> Picture:
    """Write a picture in a layout, and draw its files and what is read from them.

    Args:
        layout: A key of `LAYOUTS`.
        root: An empty folder to write it to.

    Returns:
        The drawing, (H, W, 3) uint8.
    """
    entries, names = _shapes(one_class=layout == "fss")
    several = [one for one in entries if layout == "fss" or len(np.unique(one.mask)) > 2]
    entry = min(several, key=lambda one: len(np.unique(one.mask)))
    name = f"{entry.name.split('/')[0]}/1" if layout == "fss" else "1"
    marked = np.unique(entry.mask[entry.mask > 0])[:2]  # few classes, few panels
    entry = Entry(name, entry.split, entry.jpeg, np.where(np.isin(entry.mask, marked), entry.mask, np.uint8(0)))
    WRITERS[layout if layout in WRITERS else "index"](root, [entry], names)
    files = LAYOUTS[layout](root, entry, names)
    dataset = FolderDataset(root)
    picture = dataset.read_image(name)
    folder = "" if layout == "fss" else "images/"
    panels: list[Panel] = [(f"{folder}{name}.jpg", "", picture), *files]
    for value, class_name in enumerate(dataset.class_names, start=1):
        mask = dataset.read_class_mask(name, value)
        if (mask == 1).any():
            panels.append((class_name, "as it is read", with_mask(picture, mask, TRUTH, (SIDE, SIDE), line=1)))
    return _row(panels)


def _row(panels: Sequence[Panel]) -> Picture:
    """Panels side by side, each under its two lines of text."""
    widths = [
        max(SIDE, *(round(face.getlength(text)) for face, text in ((font(12), name), (font(11), note))))
        for name, note, _ in panels
    ]
    size = (sum(widths) + _GAP * (len(panels) + 1), SIDE + _TEXT + 2 * _GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    left = _GAP
    for (name, note, panel), width in zip(panels, widths, strict=True):
        draw.text((left, _GAP), name, fill=INK, font=font(12))
        draw.text((left, _GAP + 16), note, fill=FAINT, font=font(11))
        sheet.paste(Image.fromarray(np.asarray(panel, np.uint8)), (left, _GAP + _TEXT))
        left += width + _GAP
    return np.asarray(sheet)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: Command line without the program's name; None = the process's own.

    Returns:
        Exit code: 0 if all were drawn, else 1.
    """
    parser = OneLineParser(prog=NAME, description="Draw an example of each layout of dataset=folder.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures; made if needed")

    def body() -> bool:
        out: Path = parser.parse_args(argv).out
        for layout in LAYOUTS:
            with tempfile.TemporaryDirectory() as root:
                drawing = draw_layout(layout, Path(root))
            with replacing(out / f"{layout}.png") as temporary:
                Image.fromarray(drawing).save(temporary, format="png", optimize=True)
        with tempfile.TemporaryDirectory() as root:
            draw_sheet(Path(root), out / "contact_sheet.png")
        return True

    return run_main(body, NAME)


if __name__ == "__main__":
    raise SystemExit(main())
