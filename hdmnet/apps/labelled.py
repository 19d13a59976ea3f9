"""Supports from labels that exist already: a folder or a file of any of the usual formats.

LabelMe         NAME.json, each with its picture's path
COCO            a JSON with images, annotations and categories: polygons, run lengths, or boxes alone
YOLO            labels/**/NAME.txt beside images/, data.yaml or classes.txt
Label Studio    its JSON export
masks           what `dataset=folder` reads: CVAT's and VOC's with labelmap.txt, index, binary, FSS-1000's
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from hdmnet.data.datasets.folder.dataset import FolderDataset
from hdmnet.data.datasets.folder.tree import IMAGE_FOLDERS, MASK_FOLDERS
from hdmnet.data.io.label_files import PictureLabels, find_yolo, read_label_studio, read_labelme, read_yolo
from hdmnet.runtime.errors import DatasetError, MissingFileError

log = logging.getLogger(__name__)

SUFFIXES = frozenset({".json", ".txt", ".yaml", ".yml"})
_FORMATS = "a folder of LabelMe's, COCO's, YOLO's or Label Studio's labels or of masks, or a JSON or text of them"


def read_labels(path: Path) -> list[PictureLabels]:
    """Read all labels in a folder, or in one file of labels.

    Returns:
        Of each labelled picture, by their files' names, its classes' masks.

    Raises:
        FileNotFoundError: Something is missing.
        ValueError: It is of no known format or of several, something in it is malformed, or nothing is labelled.
    """
    found = _read_folder(path) if path.is_dir() else _read_file(path)
    if not any(one.masks for one in found):
        raise DatasetError(f"{path} has no labelled object; expected {_FORMATS}")
    return found


def _read_file(path: Path) -> list[PictureLabels]:
    if not path.is_file():
        raise MissingFileError(f"labels {path} not found; expected {_FORMATS}")
    if path.suffix.lower() in (".yaml", ".yml"):
        return read_yolo(find_yolo(path.parent))
    if path.suffix.lower() == ".txt":
        return read_yolo([path])
    content = _load(path)
    kind = _kind(content)
    if kind is None:
        raise DatasetError(f"{path} is a JSON of none of the known formats; expected {_FORMATS}")
    return _read_jsons(kind, {path: content})


def _read_folder(root: Path) -> list[PictureLabels]:
    """Read a folder by the one format that is in it."""
    jsons: dict[str, dict[Path, Any]] = {}
    for path in sorted(root.rglob("[!.]*.json")):
        content = _load(path)
        if (kind := _kind(content)) is not None:
            jsons.setdefault(kind, {})[path] = content
    kinds = [*jsons]
    texts = find_yolo(root)
    kinds += ["yolo"] if texts else []
    has_masks = any((root / name).is_dir() for name in MASK_FOLDERS if name not in ("labels", "annotations"))
    kinds += ["masks"] if has_masks and any((root / name).is_dir() for name in IMAGE_FOLDERS) else []
    if len(kinds) > 1:
        raise DatasetError(
            f"{root} holds labels of several formats ({', '.join(kinds)}): name the file or folder of one"
        )
    if texts:
        return read_yolo(texts)
    if not jsons and not has_masks and not any(root.glob("*/*.png")):
        raise DatasetError(f"{root} has no labels; expected {_FORMATS}")
    if not jsons:
        return _read_dataset(FolderDataset(root))
    ((kind, contents),) = jsons.items()
    if kind == "coco" and len(contents) > 1:  # for training and for validation
        return _read_dataset(FolderDataset(root, boxes=True))
    return _read_jsons(kind, contents)


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is no JSON ({error}): export it again") from None


def _kind(content: Any) -> str | None:
    """Of which format a JSON is; None of another one."""
    if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
        return "coco"
    if isinstance(content, dict) and {"shapes", "imagePath"} <= content.keys():
        return "labelme"
    tasks = content if isinstance(content, list) and content else [None]
    if all(isinstance(one, dict) and "data" in one and {"annotations", "completions"} & one.keys() for one in tasks):
        return "label_studio"
    return None


def _read_jsons(kind: str, contents: dict[Path, Any]) -> list[PictureLabels]:
    found: list[PictureLabels] = []
    for path, content in contents.items():
        if kind == "labelme":
            found.append(read_labelme(path, content))
        elif kind == "label_studio":
            found += read_label_studio(path, content)
        else:
            # Where the pictures of a JSON lie that predict has written.
            info = content.get("info")
            named = info.get("image_folder") if isinstance(info, dict) else None
            images = named if isinstance(named, str) and (path.parent / named).is_dir() else None
            root = path.parent.parent if path.parent.name == "annotations" and images is None else path.parent
            annotations = str(path.relative_to(root))
            found += _read_dataset(
                FolderDataset(root, layout="coco", images=images, annotations=annotations, boxes=True)
            )
    return found


def _read_dataset(dataset: FolderDataset) -> list[PictureLabels]:
    """All masks of a folder that `dataset=folder` reads."""
    dataset.check()
    for line in dataset.left_out():
        log.warning("%s: %s", dataset.root, line.tell())
    found = []
    for image_id, picture in dataset.tree.pictures.items():
        masks = {
            dataset.class_names[value - 1]: dataset.read_class_mask(image_id, value)
            for value in dataset.class_areas(image_id)
        }
        files = dataset.tree.masks.get(image_id)
        found.append(PictureLabels(picture, files[0][1] if files else dataset.tree.annotations[image_id], masks))
    return found
