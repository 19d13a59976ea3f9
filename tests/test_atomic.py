from __future__ import annotations

import os

import pytest

from hdmnet.atomic import replacing


def test_file_appears_whole_and_with_the_usual_permissions(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    mask = os.umask(0o022)
    try:
        with replacing(path) as temporary:
            temporary.write_text("new")
            assert not path.exists()
    finally:
        os.umask(mask)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644  # a shared cache must be readable to other users
    assert list(path.parent.iterdir()) == [path]


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
