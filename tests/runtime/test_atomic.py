from __future__ import annotations

import os

import pytest

from hdmnet.runtime.atomic import remove_leftovers, replacing


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


def test_what_survives_a_loss_of_power_reaches_the_disk_before_its_name(tmp_path, monkeypatch):
    order = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor):
        order.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}')).rpartition('.')[2]}")
        real_sync(descriptor)

    def replace(one, other):
        order.append("rename")
        real_replace(one, other)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    folder = tmp_path / "folder"
    for durable in (False, True):
        with replacing(folder / "file.txt", durable=durable) as temporary:
            temporary.write_text("new")
        order.append("done")
    assert order == ["rename", "done", "sync tmp", "rename", "sync folder", "done"]


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    (tmp_path / ".last.ckpt.0123abcd.tmp").write_text("half")
    (tmp_path / "last.ckpt").write_text("whole")
    remove_leftovers(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    remove_leftovers(tmp_path / "missing")


def test_a_folder_that_vanishes_is_an_error_that_names_it(tmp_path):
    folder = tmp_path / "folder"

    def write():
        with replacing(folder / "file.txt") as temporary:
            temporary.write_text("new")
            temporary.unlink()
            folder.rmdir()

    with pytest.raises(FileNotFoundError, match=r"file\.txt"):
        write()
