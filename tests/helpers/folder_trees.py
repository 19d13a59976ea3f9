"""The same pictures and masks as folders of each layout that `dataset=folder` takes."""

from __future__ import annotations

from pathlib import Path

from hdmnet.data.datasets.shapes.dataset import ShapesDataset
from scripts.data.write_shapes_folders import WRITERS, Entry, read_entries

__all__ = ["WRITERS", "shapes_content", "write"]

Content = tuple[dict[str, Entry], tuple[str, ...]]


def shapes_content(*, num_pictures: int, one_class: bool, side: int = 65) -> Content:
    """Pictures of the embedded shapes with four classes; `one_class`: only one object's, ids "CLASS/n".

    Returns:
        The pictures by id, ascending, and the names of the classes in ascending order, which is their values'.
    """
    source = ShapesDataset(num_classes=4, picture_size=side, num_train=num_pictures, num_val=1)
    entries = read_entries(source, "train", one_class=one_class)
    content = {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.name)}
    return content, tuple(sorted(source.class_names))


def write(layout: str, root: Path, content: Content) -> None:
    """Write them into a folder."""
    WRITERS[layout](root, content[0].values(), content[1])
