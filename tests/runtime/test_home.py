from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.home import expand_home


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_home_at_the_beginning(home):
    assert expand_home("~") == home
    assert expand_home("~/a/~") == expand_home(Path("~/a/~")) == home / "a" / "~"
    assert expand_home("a/~/b") == Path("a/~/b")
    root = pwd.getpwuid(0)
    assert expand_home(f"~{root.pw_name}/a") == Path(root.pw_dir) / "a"


@pytest.mark.parametrize("name", ["~$notes.docx", "~nobody_of_that_name/a", "~5 % better"])
def test_other_names_that_begin_so_stay(home, name):
    assert expand_home(name) == Path(name)


def test_without_a_home_folder_it_is_refused(no_home):
    for path in ("~", "~/a.ckpt"):
        with pytest.raises(ValueError, match=rf"^{path}: this user has no home folder .*; set HOME, or write"):
            expand_home(path)
    assert expand_home("/a/b") == Path("/a/b")


def test_nothing_is_written_to_a_folder_of_that_name(home, monkeypatch):
    (home / "work").mkdir()
    monkeypatch.chdir(home / "work")
    with replacing("~/out/a.txt") as temporary:
        temporary.write_text("a")
    assert (home / "out" / "a.txt").read_text() == "a"
    assert os.listdir(".") == []
