"""Links to folders are followed, each folder once, and circles end."""

from __future__ import annotations

import os

import pytest

from hdmnet.runtime.walk import walk_folders


def files_of(root, **options):
    left_out = []
    found = [
        str((folder / name).relative_to(root))
        for folder, _, files in walk_folders(root, left_out, **options)
        for name in files
    ]
    return found, left_out


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_a_linked_folder_is_walked_as_a_real_one(tmp_path):
    touch(tmp_path / "disk/deep/1.png")
    touch(tmp_path / "root/a/0.png")
    (tmp_path / "root/b").symlink_to(tmp_path / "disk")
    assert files_of(tmp_path / "root") == (["a/0.png", "b/deep/1.png"], [])
    (tmp_path / "linked").symlink_to(tmp_path / "root")
    assert files_of(tmp_path / "linked") == (["a/0.png", "b/deep/1.png"], [])


@pytest.mark.parametrize("target", [".", "..", "a", "../root"])
def test_circles_end_and_are_told(tmp_path, target):
    root = tmp_path / "root"
    touch(root / "a/0.png")
    (root / "a/again").symlink_to(root / target)
    found, left_out = files_of(root)
    assert found == ["a/0.png"]
    assert len(left_out) == 1
    assert left_out[0].startswith(f"{root}/a/again leads to ")


def test_what_is_there_twice_keeps_its_own_path(tmp_path):
    touch(tmp_path / "root/z/0.png")
    touch(tmp_path / "disk/1.png")
    for name, target in (("a", "root/z"), ("b", "disk"), ("c", "disk")):
        (tmp_path / "root" / name).symlink_to(tmp_path / target)
    root = tmp_path / "root"
    assert files_of(root) == (
        ["z/0.png", "b/1.png"],
        [f"{root}/a leads to {root}/z, which is read already", f"{root}/c leads to {root}/b, which is read already"],
    )


def test_a_link_that_leads_nowhere_is_a_file(tmp_path):
    (tmp_path / "site").symlink_to(tmp_path / "not mounted")
    assert files_of(tmp_path) == (["site"], [])


def test_a_folder_that_cannot_be_read_is_an_error_or_told(tmp_path, monkeypatch):
    touch(tmp_path / "a/0.png")
    touch(tmp_path / "b/1.png")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        files_of(tmp_path)
    unreadable = []
    assert files_of(tmp_path, unreadable=unreadable) == (["b/1.png"], [])
    assert len(unreadable) == 1
    assert "Permission denied" in unreadable[0]


def test_folders_that_are_taken_out_are_not_walked(tmp_path):
    for name in ("root/.hidden/1.png", "root/a/2.png", "disk/3.png"):
        touch(tmp_path / name)
    (tmp_path / "root/.link").symlink_to(tmp_path / "disk")
    seen = []
    for folder, folders, _ in walk_folders(tmp_path / "root", []):
        folders[:] = [name for name in folders if name[0] != "."]
        seen.append(folder.name)
    assert seen == ["root", "a"]
