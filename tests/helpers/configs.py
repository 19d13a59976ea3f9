"""Composed configs as text, and what tests/frozen/configs.txt holds of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tests.helpers.commands import ROOT

RECORDED = ROOT / "tests" / "frozen" / "configs.txt"
COMMANDS = ("train", "evaluate", "predict", "demo")
# The files that are options of a group; the others are named by one of these.
OPTIONS = [
    path.relative_to(ROOT / "conf")
    for path in sorted((ROOT / "conf").glob("*/*.yaml"))
    if not path.stem.startswith("_")
    and not path.parent.name.endswith(("_defaults", "_on_dataset", "_on_method"))
    and path.parent.name != "local"
]


def lines_of(cfg: DictConfig) -> list[str]:
    """`dotted.key: value` a line, values as JSON, interpolations as they are."""
    return list(_flat(OmegaConf.to_container(cfg, resolve=False)))


def _flat(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}: {json.dumps(value, ensure_ascii=False)}"


def differences(whole: list[str], other: list[str]) -> list[str]:
    """What an option makes of the config without it."""
    return [
        *(f"- {line}" for line in whole if line not in other),
        *(f"+ {line}" for line in other if line not in whole),
    ]


def words_of(file: Path) -> list[str]:
    """What is composed of it: `group=option`, with a data set where the option needs another than the default."""
    word = word_of(file)
    return [word, "dataset=pascal"] if word == "recipe=published" else [word]


def word_of(file: Path) -> str:
    """`group=option`."""
    return f"{file.parent}={file.stem}"


def recorded() -> dict[str, list[str]]:
    """The recorded lines, by what was composed: `train`, `train model=pfenet` …"""
    sections: dict[str, list[str]] = {}
    for line in RECORDED.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            lines = sections[line.removeprefix("== ")] = []
        else:
            lines.append(line)
    return sections
