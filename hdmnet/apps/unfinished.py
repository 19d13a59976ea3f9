"""Work that goes on where it was stopped: what `predict` has computed of a large picture or a video, on disk.

It lies in the folder `.unfinished` of the output until all of a command is done, together with all that decides the
result: a command that says otherwise begins anew.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hdmnet
from hdmnet.config.values import to_plain
from hdmnet.models.prior import SharedRanges
from hdmnet.runtime.atomic import remove_leftovers, replacing

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

FOLDER = ".unfinished"
_FACTS, _RANGES = "facts.json", "ranges.json"
# Of a command, all that decides what is found in a picture.
_KEYS = (
    *("ckpt", "support", "example", "model", "backbone", "image_size", "test_scales", "test_flip", "official"),
    *("tile", "tile_overlap", "video"),
)


def facts_of(cfg: DictConfig, files: Iterable[Path]) -> dict[str, Any]:
    """All that decides what a command finds: its settings, and size and time of the files that it reads."""
    plain = to_plain(cfg)
    settings = {key: plain[key] for key in _KEYS}
    return {"version": hdmnet.__version__, **settings, "files": [file_facts(path) for path in files]}


def file_facts(path: Path) -> list[Any]:
    """A file's name, bytes and time; of a folder those of all in it."""
    if path.is_dir():
        return [str(path.absolute()), [file_facts(one) for one in sorted(path.iterdir()) if one.is_file()]]
    if not path.is_file():
        return [str(path)]
    about = path.stat()
    return [str(path.absolute()), about.st_size, about.st_mtime_ns]


class Unfinished:
    """A folder with what is known so far of one query; empty unless a command of the same facts has left it.

    Args:
        folder: Made if needed.
        facts: All that decides what is found: `facts_of` the command, `file_facts` of the query.

    Attributes:
        goes_on: Whether there is something.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder = folder
        file, text = folder / _FACTS, json.dumps(facts, sort_keys=True)
        self.goes_on = file.is_file() and file.read_text(encoding="utf-8") == text
        if self.goes_on:
            remove_leftovers(folder)
            log.info("%s: going on where an earlier command was stopped", folder.name)
            return
        shutil.rmtree(folder, ignore_errors=True)
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_ranges(self, parts: int, ranges: Mapping[str, SharedRanges]) -> None:
        """Keep what was seen, by class, of so many parts."""
        content = {"parts": parts, "seen": {name: one.to_lists() for name, one in ranges.items()}}
        with replacing(self.folder / _RANGES) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    def read_ranges(self, classes: Iterable[str]) -> tuple[int, dict[str, SharedRanges]]:
        """Of how many parts `write_ranges` kept what was seen, and that, by class; 0 and nothing without it."""
        ranges = {name: SharedRanges() for name in classes}
        file = self.folder / _RANGES
        if not file.is_file():
            return 0, ranges
        content = json.loads(file.read_text(encoding="utf-8"))
        for name, seen in content["seen"].items():
            ranges[name].see_lists(seen)
        return int(content["parts"]), ranges


def remove_finished(output: Path) -> None:
    """All of a command is done: nothing is to go on with."""
    shutil.rmtree(output / FOLDER, ignore_errors=True)
