"""Tables 1 to 9: the paper's numbers, and ours beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from hdmnet.config.values import HDMNET
from hdmnet.reporting.aggregate import FB_IOU, Value, by_fold, choose, describe_runs, percent, pool_numbers, pool_runs
from hdmnet.reporting.collect import Run
from hdmnet.reporting.costs import Costs
from hdmnet.reporting.paper import PaperTable, paper_tables
from hdmnet.reporting.studies import OTHER_DATASET, Study, ablation_studies, full_studies, marked

_FULL = (1, 2, 3)  # tables of the full method; the others are ablations
_BY_FOLD = (8, 9)  # ablations with a column for each of four folds
_SHOTS = ("1", "5")  # that the paper's tables have
_MASK, _NO_MASK = "table8_with_mask", "table8_without_mask"
_PAPER, _PAPER_COCO, _ON, _MIOU = "paper", "paper, COCO-20ⁱ", "our runs", "mIoU (%)"
CostsOf = Callable[[Run], Costs | None]
Columns = dict[str, dict[str, Value]]  # by name, numbers by row


@dataclass
class Table:
    """One table, ready to be written.

    Attributes:
        number: 1 to 9; a name where it is none of the paper's.
        title: What it shows.
        columns: (group, name) of each column.
        rows: Cells; text or numbers in the table's unit.
        ours: Of each row whether it is ours alone.
        notes: Lines below the table.
        entries: Every number, for the CSV file: labels of the row, column, "paper" or "ours: <study>", number.
        runs: Ours that it was made from.
        warnings: What a reader should know of the runs.
        compares: Whether it sets methods or protocols beside each other, on the page's first place.
    """

    number: int | str
    title: str
    columns: list[tuple[str, str]]
    rows: list[list[str | Value]] = field(default_factory=list)
    ours: list[bool] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    entries: list[tuple[str, str, str, Value]] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    compares: bool = False

    @property
    def name(self) -> str:
        """What its files are called."""
        return self.number if isinstance(self.number, str) else f"table{self.number}"

    @property
    def heading(self) -> str:
        """Number, if it has one, and title."""
        return self.title if isinstance(self.number, str) else f"Table {self.number}. {self.title}"

    @property
    def short(self) -> str:
        """What it is called in messages."""
        return self.title if isinstance(self.number, str) else f"Table {self.number}"

    def add(self, row: Sequence[str | Value], *, ours: bool) -> None:
        """Append a row."""
        assert len(row) == len(self.columns), (row, self.columns)
        self.rows.append(list(row))
        self.ours.append(ours)

    def record(self, row: str, columns: Sequence[tuple[str, str]], source: str, values: Sequence[Value]) -> None:
        """Append numbers to the CSV's."""
        self.entries += [(row, head, source, value) for head, value in zip(heads(columns), values, strict=True)]


def heads(columns: Iterable[tuple[str, str]]) -> list[str]:
    """Group and name of each column as one text."""
    return [f"{group} {name}" if group else name for group, name in columns]


def make_tables(runs: Sequence[Run], costs: CostsOf) -> list[Table]:
    """Make Tables 1 to 9; one without a run of ours holds the paper's numbers and says so.

    Args:
        runs: All there are.
        costs: Gives the parameter counts of a run's model; None where it cannot be built.
    """
    papers = paper_tables()
    names = tuple(name for paper in papers.values() for name in paper.ablations)
    tables = []
    for number, paper in papers.items():
        if number in _FULL:
            studies, warnings = full_studies((run for run in runs if _belongs(run, number)), names)
            table = _full_method(paper, studies, costs)
        else:
            shown = [run for run in runs if number not in _BY_FOLD or run.has_four_folds]
            studies, warnings = ablation_studies(shown, paper.ablations)
            studies += _with_controls(shown, studies) if number == 8 else []
            if number == 7:
                _add_methods(paper, studies, shown)
            make = {7: _decoders, 8: _support_mask, 9: _temperatures}.get(number, _components)
            table = make(paper, studies, costs)
        table.runs = [run for study in studies for run in study.runs]
        table.warnings = warnings
        table.notes += _notes(paper, studies)
        tables.append(table)
    return tables


def _belongs(run: Run, number: int) -> bool:
    """Table 1 is COCO's, Table 2 that of PASCAL and SHAPES, Table 3 of all; a user's data has tables of its own."""
    if run.is_own_data:
        return False
    return number == 3 or (run.result["dataset"] == "coco") == (number == 1)


def _notes(paper: PaperTable, studies: Sequence[Study]) -> list[str]:
    notes = [paper.note] if paper.note else []
    if not studies:
        return [*notes, "No runs."]
    if any(marked(study, paper.dataset) != study.label for study in studies):
        notes.append(f"{OTHER_DATASET}: another data set than the paper's; the numbers cannot be compared.")
    return notes + [study.note(paper.dataset) for study in studies]


# ---------------------------------------------------------------------------------------------------------- numbers


def _per_fold(runs: Sequence[Run], pool: Callable[[Sequence[Run]], Value] = pool_runs) -> list[Value]:
    """The mIoU (%) of each of the four folds and, where all are there, of their mean."""
    folds = by_fold(runs)
    values = [percent(pool(folds.get(fold, []))) for fold in range(4)]
    complete = all(value.mean is not None for value in values)
    return [*values, percent(pool(runs)) if complete else Value()]


def tell_basis(runs: Sequence[Run], values: Iterable[Value], told: str = "") -> str:
    """On which runs (or `told` ones) a row of ours stands, and what its spreads are over."""
    over = ", ".join(dict.fromkeys(value.over for value in values if value.over))
    return "; ".join(filter(None, [told or describe_runs(runs), f"± {over}" if over else ""]))


def _basis_by_shot(study: Study, values: Iterable[Value]) -> str:
    told = {shot: describe_runs(study.rows[shot]) for shot in _SHOTS if shot in study.rows}
    if len(set(told.values())) > 1:
        told = {shot: f"{shot}-shot: {text}" for shot, text in told.items()}
    return tell_basis((), values, "; ".join(dict.fromkeys(told.values())))


# ------------------------------------------------------------------------------------------------ the full method


def _with_papers_rows(paper: PaperTable) -> Table:
    """A table in the paper's columns that begins with the paper's rows."""
    table = Table(paper.number, paper.title, [*(("", label) for label in paper.labels), *paper.columns, ("", _ON)])
    for row in paper.rows:
        values = [Value(number) for number in row.values]
        table.add([*row.labels, *values, ""], ours=False)
        table.record(", ".join(row.labels), paper.columns, _PAPER, values)
    return table


def _full_method(paper: PaperTable, studies: Sequence[Study], costs: CostsOf) -> Table:
    """Tables 1 and 2, methods by fold, 1-shot and 5-shot; Table 3, their FB-IoU and learnable parameters."""
    table = _with_papers_rows(paper)
    for study in studies:
        by_shot = [study.rows.get(shot, []) for shot in _SHOTS]
        if paper.number == 3:
            counted = costs(study.first)
            values = [percent(pool_runs(runs, FB_IOU)) for runs in by_shot]
            values.append(Value(None if counted is None else counted.learnable))
        else:
            values = [value for runs in by_shot for value in _per_fold(runs)]
        label = marked(study, paper.dataset)
        whose = "HDMNet, this code" if study.method == HDMNET else "this code"  # the label names another method
        labels = [str(study.first.result["backbone"]), f"{whose}: {label}"]
        table.add([*labels, *values, _basis_by_shot(study, values)], ours=True)
        table.record(", ".join(labels), paper.columns, f"ours: {label}", values)
    return table


# ------------------------------------------------------------------------------------------------------- ablations


def _beside(paper: PaperTable, studies: Sequence[Study], extra: Callable[[Study], Columns]) -> Table:
    """Tables 4 to 7: a column of ours for each study, and its `extra` ones, beside the paper's."""
    columns = [("", label) for label in paper.labels] + [(_PAPER_COCO, name) for _, name in paper.columns]
    more = [extra(study) for study in studies]
    for study, own in zip(studies, more, strict=True):
        columns += [(marked(study, paper.dataset), name) for name in (_MIOU, *own, "runs")]
    table = Table(paper.number, paper.title, columns)
    for row in paper.rows:
        theirs = [
            Value(number, signed=name == "Δ") for number, (_, name) in zip(row.values, paper.columns, strict=True)
        ]
        line: list[str | Value] = [*row.labels, *theirs]
        label = ", ".join(label or "–" for label in row.labels)
        table.record(label, paper.columns, _PAPER, theirs)
        for study, own in zip(studies, more, strict=True):
            runs = study.rows.get(row.key, [])
            values = [percent(pool_runs(runs)), *(by_row.get(row.key, Value()) for by_row in own.values())]
            line += [*values, tell_basis(runs, values)]
            table.record(label, [("", name) for name in (_MIOU, *own)], f"ours: {marked(study, paper.dataset)}", values)
        table.add(line, ours=False)
    return table


def _components(paper: PaperTable, studies: Sequence[Study], costs: CostsOf) -> Table:
    """Tables 4, 5 and 6; Table 4 with what each row gains over the first."""

    def gains(study: Study) -> Columns:
        if ("", "Δ") not in paper.columns:
            return {}
        values = {row.ablation or "": pool_runs(study.rows.get(row.ablation or "", [])) for row in paper.rows}
        base = values[paper.rows[0].ablation or ""]
        found = {
            name: Value(100 * (value.mean - base.mean), signed=True)
            for name, value in values.items()
            if value.mean is not None and base.mean is not None and value.folds == base.folds
        }
        return {"Δ": found}

    return _beside(paper, studies, gains)


def _add_methods(paper: PaperTable, studies: Sequence[Study], runs: Iterable[Run]) -> None:
    """Give each study the runs of other methods that the table has, on its data set, backbone and number of shots."""
    facts = ("dataset", "backbone", "shot")
    for row in paper.rows:
        others = [run for run in runs if run.method == row.method and run.ablation is None and not run.is_control]
        for study in studies:
            alike = [run for run in others if all(run.result[key] == study.first.result[key] for key in facts)]
            if alike:
                study.rows[row.key] = choose(alike)[0]


def _decoders(paper: PaperTable, studies: Sequence[Study], costs: CostsOf) -> Table:
    """Table 7, with what our decoders cost."""

    def costs_of(study: Study) -> Columns:
        found = {row: one for row, runs in study.rows.items() if (one := costs(runs[0])) is not None}
        columns = {"params (M)": {row: Value(one.decoder) for row, one in found.items()}}
        if any(one.milliseconds is not None for one in found.values()):
            columns["time (ms)"] = {row: Value(one.milliseconds) for row, one in found.items()}
            columns["operations (G)"] = {row: Value(one.operations) for row, one in found.items()}
        return columns

    table = _beside(paper, studies, costs_of)
    table.notes.append(
        "Our parameters: feature pyramid, matching and decoder; of other methods all that learns. Times (of this CPU) "
        "and operations, with --costs: an episode beyond its backbone's pass over query and supports."
    )
    return table


def _with_controls(runs: Sequence[Run], studies: Sequence[Study]) -> list[Study]:
    """More studies for Table 8: of full runs that measured the control with all-ones support masks."""
    shown = {run for study in studies for run in study.runs}
    measured = [run for run in runs if _control(run) is not None and run.ablation is None and run not in shown]
    return [
        Study({_MASK: group}, study.axes, f"{study.label}, {shot}-shot")
        for study in full_studies(measured, ())[0]
        for shot, group in study.rows.items()
    ]


def _control(run: Run) -> float | None:
    value = (run.result.get("controls") or {}).get("support_mask_ones")
    return value if isinstance(value, int | float) else None


def _pool_controls(runs: Sequence[Run]) -> Value:
    folds = by_fold(runs).items()
    return pool_numbers({fold: [v for run in own if (v := _control(run)) is not None] for fold, own in folds})


def _support_mask(paper: PaperTable, studies: Sequence[Study], costs: CostsOf) -> Table:
    """Table 8: with and without the support mask, by fold; the data sets of ours below the paper's."""
    table = _with_papers_rows(paper)
    methods = {row.ablation: row.labels[1] for row in paper.rows}
    for study in studies:
        for name in (_MASK, _NO_MASK):
            runs = study.rows.get(name, [])
            values = _per_fold(runs)
            basis = tell_basis(runs, values)
            if name == _NO_MASK and not runs:
                runs = [run for run in study.rows.get(_MASK, []) if _control(run) is not None]
                values = _per_fold(runs, _pool_controls)
                basis = f"{describe_runs(runs)}; control of the same runs, first test seed" if runs else ""
            labels = [f"this code: {study.label}", methods[name]]
            table.add([*labels, *values, basis], ours=True)
            table.record(", ".join(labels), paper.columns, f"ours: {study.label}", values)
    return table


def _temperatures(paper: PaperTable, studies: Sequence[Study], costs: CostsOf) -> Table:
    """Table 9: temperatures by fold, ours below the paper's."""
    table = Table(paper.number, paper.title, [("", paper.labels[0]), ("", "source"), *paper.columns, ("", _ON)])
    for row in paper.rows:
        values = [Value(number) for number in row.values]
        table.add([row.labels[0], _PAPER_COCO, *values, ""], ours=False)
        table.record(row.labels[0], paper.columns, _PAPER, values)
        for study in studies:
            runs = study.rows.get(row.ablation or "", [])
            values, label = _per_fold(runs), marked(study, paper.dataset)
            table.add([row.labels[0], label, *values, tell_basis(runs, values)], ours=True)
            table.record(row.labels[0], paper.columns, f"ours: {label}", values)
    return table
