"""The drawn layouts of docs/layouts.md are made, and shown, for every layout that there is."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from hdmnet.data.datasets.folder.tree import LayoutName
from hdmnet.visual.colours import TRUTH
from scripts.data import draw_layouts

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.long
def test_every_layout_is_drawn_with_what_is_read_and_shown_in_the_docs(tmp_path):
    assert draw_layouts.main(["--out", str(tmp_path / "out")]) == 0
    page = (DOCS / "layouts.md").read_text(encoding="utf-8")
    names = {*get_args(LayoutName), "colours", "contact_sheet"}
    assert {path.stem for path in (tmp_path / "out").iterdir()} == names
    for name in names:
        assert f"(layouts/{name}.png)" in page
        files = (folder / f"{name}.png" for folder in (tmp_path / "out", DOCS / "layouts"))
        drawn, kept = (np.asarray(Image.open(file)) for file in files)
        assert kept.shape == drawn.shape
        # The outline of what was read; a font may differ by a pixel's shade.
        assert (drawn == TRUTH).all(axis=2).sum() == (kept == TRUTH).all(axis=2).sum() > 100


def test_the_docs_name_every_key_of_such_a_data_set():
    page = (DOCS / "layouts.md").read_text(encoding="utf-8")
    keys = {line.split(":")[0] for line in (DOCS.parent / "conf/dataset/folder.yaml").read_text().splitlines()}
    keys = {key for key in keys if key.isidentifier()} - {"_target_"}
    assert {key for key in keys if f"`{key}" not in page and f"dataset.{key}" not in page} == set()
