"""Folders of one's own, which several files read: a file's `roots` are by layout, and not to be written to."""

from __future__ import annotations

import shutil

import pytest

from tests.helpers.folder_trees import shapes_content


@pytest.fixture(scope="session")
def one_class():
    return shapes_content(num_pictures=24, one_class=True, side=48)


@pytest.fixture
def copy(roots, tmp_path):
    """`copy("binary")` is a folder that may be changed."""

    def copied(layout):
        shutil.copytree(roots[layout], tmp_path / layout)
        return tmp_path / layout

    return copied
