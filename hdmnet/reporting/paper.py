"""The paper's own numbers, kept in `paper_tables.json` beside this file with their source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class PaperRow:
    """One row.

    Attributes:
        labels: Its names, one a label column.
        values: Its numbers in the paper's unit, None where the paper has none.
        ablation: Which of conf/ablation it is; None for other methods and the full one in Tables 1 to 3.
    """

    labels: tuple[str, ...]
    values: tuple[float | None, ...]
    ablation: str | None = None


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        number: 1 to 9.
        title: What it shows.
        dataset: Which data set it is measured on; empty where the rows say so.
        labels: Headings of the label columns.
        columns: (group, name) of the columns of numbers; the group may be empty.
        rows: In the paper's order.
        note: Explanation of signs; may be empty.
    """

    number: int
    title: str
    dataset: str
    labels: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    rows: tuple[PaperRow, ...]
    note: str = ""

    @property
    def ablations(self) -> tuple[str, ...]:
        """Names of the rows that are ablations, each once."""
        return tuple(dict.fromkeys(row.ablation for row in self.rows if row.ablation is not None))


@cache
def _content() -> dict[str, object]:
    text = resources.files(__package__).joinpath("paper_tables.json").read_text(encoding="utf-8")
    content: dict[str, object] = json.loads(text)
    return content


def source() -> str:
    """Where the numbers are from."""
    return str(_content()["source"])


@cache
def paper_tables() -> dict[int, PaperTable]:
    """The tables by number."""
    tables = {}
    for entry in _content()["tables"]:  # type: ignore[attr-defined]  # the file is ours; the tests read all of it
        rows = tuple(PaperRow(tuple(row["labels"]), tuple(row["values"]), row.get("ablation")) for row in entry["rows"])
        columns = tuple(tuple(column.split("|")) for column in entry["columns"])
        about = {key: entry[key] for key in ("number", "title", "dataset")}
        tables[entry["number"]] = PaperTable(
            **about, labels=tuple(entry["labels"]), columns=columns, rows=rows, note=entry.get("note", "")
        )
    return tables
