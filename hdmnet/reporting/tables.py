"""Tables 1 to 9: the paper's numbers, and ours beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from hdmnet.config.values import HDMNET
from hdmnet.reporting.aggregate import FB_IOU, Value, by_fold, describe_runs, pool_numbers, pool_runs
from hdmnet.reporting.collect import Run
from hdmnet.reporting.costs import Costs
from hdmnet.reporting.paper import PaperTable, paper_tables
from hdmnet.reporting.studies import OTHER_DATASET, Study, ablation_studies, full_studies, marked

_FULL = (1, 2, 3)  # tables of the full method; the others are ablations
_SHOTS = ("1", "5")  # that the paper's tables have
_PERCENT = 100.0
_MASK, _NO_MASK = "table8_with_mask", "table8_without_mask"
CostsOf = Callable[[Run], Costs | None]


@dataclass(frozen=True)
class Cell:
    """A number as it is shown.

    Attributes:
        value: In the table's unit; None is a missing cell.
        spread: ± in the same unit.
        signed: Whether a plus is written.
    """

    value: float | None = None
    spread: float | None = None
    signed: bool = False


Columns = list[tuple[str, dict[str, Cell]]]  # name, cells by row


@dataclass(frozen=True)
class Entry:
    """A number as it goes into the CSV file.

    Attributes:
        row: Labels of the row, joined.
        column: Name of the column, with its group.
        source: "paper", or "ours: <study>".
        cell: The number.
        over: What the spread is over.
        folds: Which folds our number is the mean of.
        num_runs: How many runs it stands on.
    """

    row: str
    column: str
    source: str
    cell: Cell
    over: str = ""
    folds: tuple[int, ...] = ()
    num_runs: int = 0


@dataclass
class Table:
    """One table, ready to be written.

    Attributes:
        number: 1 to 9.
        title: What it shows.
        columns: (group, name) of each column.
        rows: Cells; text or numbers.
        ours: Of each row whether it is ours alone.
        notes: Lines below the table.
        entries: Every number, for the CSV file.
        runs: Ours that it stands on.
        warnings: What a reader should know of the runs.
    """

    number: int
    title: str
    columns: list[tuple[str, str]]
    rows: list[list[str | Cell]] = field(default_factory=list)
    ours: list[bool] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, row: Sequence[str | Cell], *, ours: bool) -> None:
        """Append a row."""
        assert len(row) == len(self.columns), (row, self.columns)
        self.rows.append(list(row))
        self.ours.append(ours)

    def record(
        self, row: str, columns: Sequence[tuple[str, str]], source: str, cells: Sequence[Cell], values: Sequence[Value]
    ) -> None:
        """Append numbers to the CSV's; `values` (ours) say on what they stand and may be fewer."""
        for index, (column, cell) in enumerate(zip(columns, cells, strict=True)):
            value = values[index] if index < len(values) else Value()
            name = " ".join(part for part in column if part)
            self.entries.append(Entry(row, name, source, cell, value.over, value.folds, value.num_runs))


def make_tables(runs: Sequence[Run], costs: CostsOf) -> list[Table]:
    """Make all nine tables.

    Args:
        runs: All there are.
        costs: Gives the parameter counts of a run's model; None where it cannot be built.

    Returns:
        Tables 1 to 9. One without a run of ours holds the paper's numbers and says so.
    """
    papers = paper_tables()
    names = tuple(name for paper in papers.values() for name in paper.ablations)
    tables = []
    for number, paper in papers.items():
        if number in _FULL:
            studies, warnings = full_studies((run for run in runs if _belongs(run, number)), names)
            table = _full_method(paper, studies, costs)
        else:
            studies, warnings = ablation_studies(runs, paper.ablations)
            if number == 8:
                studies, warnings = _with_controls(runs, studies, warnings)
            make = {7: _decoders, 8: _support_mask, 9: _temperatures}.get(number, _components)
            table = make(paper, studies, costs)
        table.runs = [run for study in studies for run in study.runs]
        table.warnings = warnings
        table.notes += _notes(paper, studies)
        tables.append(table)
    return tables


def _belongs(run: Run, number: int) -> bool:
    """Table 1 is COCO's, Table 2 that of PASCAL and of every other data set; Table 3 takes all."""
    return number == 3 or (run.result["dataset"] == "coco") == (number == 1)


def _notes(paper: PaperTable, studies: Iterable[Study]) -> list[str]:
    studies = list(studies)
    notes = [paper.note] if paper.note else []
    if not studies:
        return [*notes, "No runs."]
    if any(marked(study, paper.dataset) != study.label for study in studies):
        notes.append(f"{OTHER_DATASET}: another data set than the paper's; the numbers cannot be compared.")
    return notes + [study.note(paper.dataset) for study in studies]


# ------------------------------------------------------------------------------------------------------------ cells


def _percent(value: Value) -> Cell:
    if value.mean is None:
        return Cell()
    return Cell(_PERCENT * value.mean, None if value.spread is None else _PERCENT * value.spread)


def _per_fold(runs: Sequence[Run], num_folds: int = 4) -> list[Value]:
    """The mIoU of each fold and, where all are there, of their mean."""
    folds = by_fold(runs)
    values = [pool_runs(folds.get(fold, [])) for fold in range(num_folds)]
    complete = all(value.mean is not None for value in values)
    return [*values, pool_runs(runs) if complete else Value()]


def _over(values: Iterable[Value]) -> str:
    """What the spreads of a row are over."""
    found = dict.fromkeys(value.over for value in values if value.over)
    return f"± {', '.join(found)}" if found else ""


def _basis(runs: Sequence[Run], values: Iterable[Value]) -> str:
    return "; ".join(part for part in (describe_runs(runs), _over(values)) if part)


def _basis_by_shot(study: Study, values: Iterable[Value]) -> str:
    told = {shot: describe_runs(study.rows[shot]) for shot in _SHOTS if shot in study.rows}
    if len(set(told.values())) > 1:
        told = {shot: f"{shot}-shot: {text}" for shot, text in told.items()}
    return "; ".join([*dict.fromkeys(told.values()), *filter(None, [_over(values)])])


# ------------------------------------------------------------------------------------------------ the full method


def _with_papers_rows(paper: PaperTable) -> Table:
    """A table in the paper's columns that begins with the paper's rows."""
    columns = [*(("", label) for label in paper.labels), *paper.columns, ("", "ours stands on")]
    table = Table(paper.number, paper.title, columns)
    for row in paper.rows:
        cells = [Cell(value) for value in row.values]
        table.add([*row.labels, *cells, ""], ours=False)
        table.record(", ".join(row.labels), paper.columns, "paper", cells, ())
    return table


def _full_method(paper: PaperTable, studies: Sequence[Study], costs: CostsOf) -> Table:
    """Tables 1 and 2, methods by fold, 1-shot and 5-shot; Table 3, their FB-IoU and learnable parameters."""
    table = _with_papers_rows(paper)
    for study in studies:
        by_shot = [study.rows.get(shot, []) for shot in _SHOTS]
        if paper.number == 3:
            values, counted = [pool_runs(runs, FB_IOU) for runs in by_shot], costs(study.first)
            cells = [*map(_percent, values), Cell(None if counted is None else counted.learnable)]
        else:
            values = [value for runs in by_shot for value in _per_fold(runs)]
            cells = [_percent(value) for value in values]
        label = marked(study, paper.dataset)
        whose = "HDMNet, this code" if study.method == HDMNET else "this code"  # the label names another method
        labels = [str(study.first.result["backbone"]), f"{whose}: {label}"]
        table.add([*labels, *cells, _basis_by_shot(study, values)], ours=True)
        table.record(", ".join(labels), paper.columns, f"ours: {label}", cells, values)
    return table


# ------------------------------------------------------------------------------------------------------- ablations


def _beside(paper: PaperTable, studies: Sequence[Study], extra: Callable[[Study], Columns]) -> Table:
    """Tables 4 to 7: a column of ours for each study, beside the paper's.

    Args:
        paper: The paper's table.
        studies: Ours.
        extra: Gives a study's further columns: (name, cell by row).
    """
    columns = [("", label) for label in paper.labels]
    columns += [("paper, COCO-20ⁱ", name) for _, name in paper.columns]
    more = [extra(study) for study in studies]
    for study, own in zip(studies, more, strict=True):
        group = marked(study, paper.dataset)
        columns += [(group, "mIoU (%)"), *((group, name) for name, _ in own), (group, "stands on")]
    table = Table(paper.number, paper.title, columns)
    for row in paper.rows:
        signed = [name == "Δ" for _, name in paper.columns]
        theirs = [Cell(value, signed=sign) for value, sign in zip(row.values, signed, strict=True)]
        line: list[str | Cell] = [*row.labels, *theirs]
        name = ", ".join(label or "–" for label in row.labels)
        table.record(name, paper.columns, "paper", theirs, ())
        for study, own in zip(studies, more, strict=True):
            runs = study.rows.get(row.ablation or "", [])
            value = pool_runs(runs)
            cells = [_percent(value), *(by_row.get(row.ablation or "", Cell()) for _, by_row in own)]
            line += [*cells, _basis(runs, [value])]
            names = [("", "mIoU (%)"), *(("", column) for column, _ in own)]
            table.record(name, names, f"ours: {marked(study, paper.dataset)}", cells, [value])
        table.add(line, ours=False)
    return table


def _components(paper: PaperTable, studies: Sequence[Study], costs: CostsOf) -> Table:
    """Tables 4, 5 and 6; Table 4 with what each row gains over the first."""

    def gains(study: Study) -> Columns:
        if ("", "Δ") not in paper.columns:
            return []
        values = {row.ablation or "": pool_runs(study.rows.get(row.ablation or "", [])) for row in paper.rows}
        base = values[paper.rows[0].ablation or ""]
        cells = {
            name: Cell(_PERCENT * (value.mean - base.mean), signed=True)
            for name, value in values.items()
            if value.mean is not None and base.mean is not None and value.folds == base.folds
        }
        return [("Δ", cells)]

    return _beside(paper, studies, gains)


def _decoders(paper: PaperTable, studies: Sequence[Study], costs: CostsOf) -> Table:
    """Table 7, with the parameters of our pyramid, matching and decoder."""

    def parameters(study: Study) -> Columns:
        cells = {}
        for row, runs in study.rows.items():
            counted = costs(runs[0])
            cells[row] = Cell(None if counted is None else counted.transformer)
        return [("params (M)", cells)]

    table = _beside(paper, studies, parameters)
    table.notes.append(
        "Our parameters: feature pyramid, matching and decoder. Times and operations are not in a run's result: "
        "scripts/benchmarks/count_costs.py and scripts/benchmarks/benchmark.py measure them."
    )
    return table


def _with_controls(runs: Sequence[Run], studies: list[Study], warnings: list[str]) -> tuple[list[Study], list[str]]:
    """Table 8's studies, also those whose runs measured the control with all-ones support masks."""
    shown = {run for study in studies for run in study.runs}
    measured = [run for run in runs if _control(run) is not None and run.ablation is None and run not in shown]
    for study in full_studies(measured, ())[0]:
        for shot, group in study.rows.items():
            more = Study({_MASK: group}, study.axes, f"{study.label}, {shot}-shot")
            studies = [*studies, more]
    return studies, warnings


def _control(run: Run) -> float | None:
    value = (run.result.get("controls") or {}).get("support_mask_ones")
    return value if isinstance(value, int | float) else None


def _support_mask(paper: PaperTable, studies: Sequence[Study], costs: CostsOf) -> Table:
    """Table 8: with and without the support mask, by fold; the data sets of ours below the paper's."""
    table = _with_papers_rows(paper)
    methods = {row.ablation: row.labels[1] for row in paper.rows}
    for study in studies:
        for name in (_MASK, _NO_MASK):
            runs = study.rows.get(name, [])
            values = _per_fold(runs)
            basis = _basis(runs, values)
            if name == _NO_MASK and not runs:
                values, runs = _control_per_fold(study.rows.get(_MASK, []))
                basis = f"{describe_runs(runs)}; control of the same runs, first test seed" if runs else ""
            cells = [_percent(value) for value in values]
            labels = [f"this code: {study.label}", methods[name]]
            table.add([*labels, *cells, basis], ours=True)
            table.record(", ".join(labels), paper.columns, f"ours: {study.label}", cells, values)
    return table


def _control_per_fold(runs: Sequence[Run]) -> tuple[list[Value], list[Run]]:
    measured = [run for run in runs if _control(run) is not None]
    numbers = {
        fold: [value for run in group if (value := _control(run)) is not None]
        for fold, group in by_fold(measured).items()
    }
    values = [pool_numbers({fold: numbers.get(fold, [])}) for fold in range(4)]
    complete = all(value.mean is not None for value in values)
    return [*values, pool_numbers(numbers) if complete else Value()], measured


def _temperatures(paper: PaperTable, studies: Sequence[Study], costs: CostsOf) -> Table:
    """Table 9: temperatures by fold, ours below the paper's."""
    columns = [("", paper.labels[0]), ("", "source"), *paper.columns, ("", "ours stands on")]
    table = Table(paper.number, paper.title, columns)
    for row in paper.rows:
        cells = [Cell(value) for value in row.values]
        table.add([row.labels[0], "paper, COCO-20ⁱ", *cells, ""], ours=False)
        table.record(row.labels[0], paper.columns, "paper", cells, ())
        for study in studies:
            runs = study.rows.get(row.ablation or "", [])
            values = _per_fold(runs)
            cells, label = [_percent(value) for value in values], marked(study, paper.dataset)
            table.add([row.labels[0], label, *cells, _basis(runs, values)], ours=True)
            table.record(row.labels[0], paper.columns, f"ours: {label}", cells, values)
    return table
