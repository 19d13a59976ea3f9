"""The paper's own numbers, kept in `paper_tables.json` beside this file with their source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class PaperRow:
    """One row."""

    labels: tuple[str, ...]  # its names, one a label column
    values: tuple[float | None, ...]  # in the paper's unit, None where the paper has none
    ablation: str | None = None  # of conf/ablation; None for other methods and the full one in Tables 1 to 3
    method: str | None = None  # of conf/model, where an ablation's table has a row of another method

    @property
    def key(self) -> str:
        """What a study calls its row."""
        return self.ablation or self.method or ""


@dataclass(frozen=True)
class PaperTable:
    """One table, its rows in the paper's order."""

    number: int  # 1 to 9
    title: str
    dataset: str  # which it is measured on; empty where the rows say so
    labels: tuple[str, ...]  # headings of the label columns
    columns: tuple[tuple[str, str], ...]  # (group, name) of the columns of numbers; the group may be empty
    rows: tuple[PaperRow, ...]
    note: str = ""  # explanation of signs

    @property
    def ablations(self) -> tuple[str, ...]:
        """Names of the rows that are ablations, each once."""
        return tuple(dict.fromkeys(row.ablation for row in self.rows if row.ablation is not None))


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(resources.files(__package__).joinpath("paper_tables.json").read_bytes())
    return content


def source() -> str:
    """Where the numbers are from."""
    return str(_content()["source"])


@cache
def paper_tables() -> dict[int, PaperTable]:
    """The tables by number."""
    tables = {}
    for entry in _content()["tables"]:
        rows = [
            PaperRow(tuple(row["labels"]), tuple(row["values"]), row.get("ablation"), row.get("method"))
            for row in entry["rows"]
        ]
        columns = tuple(tuple(column.split("|")) for column in entry["columns"])
        made = {"labels": tuple(entry["labels"]), "columns": columns, "rows": tuple(rows)}
        tables[entry["number"]] = PaperTable(**entry | made)
    return tables
