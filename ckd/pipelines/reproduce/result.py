"""What an experiment found, as one JSON file: its runs, its tables and the data behind its figures.

`work/experiments/<name>-<domains>.json` is all that `ckd report` needs besides the runs' own folders. What is made
otherwise than by default, with more seeds or other settings, has a file of its own beside it: see `made.mark`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from ckd.data.atomic import write_json
from ckd.data.described import read_json
from ckd.errors import DataError
from ckd.pipelines.reproduce.made import Made, short_hash

#: Raised when files of older versions cannot be read any more.
FORMAT = 1

Kind = Literal["teacher", "student", "baseline"]

#: How the cells of a column are written: metrics with four digits, shares and changes in percent, and so on.
CellKind = Literal["text", "count", "metric", "percent", "change", "p", "ratio", "bytes", "ms", "number"]


@dataclass(frozen=True)
class RunRecord:
    """One trained model, evaluated on the test part.

    Attributes:
        domain: name of the domain.
        method: as printed, such as `CKD-MDSR`.
        kind: teacher, student, or a baseline with a training of its own.
        model: the registered name, such as `sasrec`.
        seed: of the run.
        run: its name below `work/teachers/<domain>` or `work/students/<domain>`.
        folder: that folder, relative to the work folder.
        teachers: runs that were distilled into it.
        overrides: what its method changes in the configuration, by `section.key`.
        metrics: of the test part: recall and NDCG at 5, 10, 20, 50 and MRR.
        valid: of the validation part, at the best epoch.
        seconds: spent on training it; None where nobody measured it.
        settings: what it was trained with, by section, where that differs from the defaults; of older results empty.
    """

    domain: str
    method: str
    kind: Kind
    model: str
    seed: int
    run: str
    folder: str
    teachers: tuple[str, ...]
    overrides: dict[str, Any]
    metrics: dict[str, float]
    valid: dict[str, float]
    seconds: float | None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """A method against another one on one domain and metric, paired over users.

    Attributes:
        domain, metric: where.
        method, against: what is compared with what.
        value, other: the metric of both, mean over seeds.
        improvement: relative; None where there is nothing to improve on.
        low, high: 95% interval of the absolute difference.
        p: of the paired t-test over users, each user's value being the mean over seeds.
        p_corrected: by Holm's method, over `family` comparisons.
        family: number of comparisons that were corrected for.
    """

    domain: str
    metric: str
    method: str
    against: str
    value: float
    other: float
    improvement: float | None
    low: float
    high: float
    p: float
    p_corrected: float
    family: int


@dataclass(frozen=True)
class Spread:
    """A value over several seeds.

    Attributes:
        mean: over seeds.
        std: standard deviation over seeds, with one degree of freedom taken; None of a single seed.
        values: one for each seed.
    """

    mean: float
    std: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), spread, tuple(float(v) for v in values))


Cell = str | int | float | Spread | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its heading.
        kind: how its cells are written.
        paper: its figures are the paper's own, not ours.
    """

    name: str
    kind: CellKind = "text"
    paper: bool = False


@dataclass(frozen=True)
class Table:
    """A table as it is shown; `text` writes a cell.

    Attributes:
        title: what it shows, and of how many users, items and seeds.
        columns: the first one names the rows.
        rows: as many cells as there are columns; None where there is nothing.
        domain: whose it is; none: of several.
        notes: what a reader has to know, one sentence or two each.
        paper_rows: numbers of the rows whose figures are the paper's own, not ours.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    domain: str | None = None
    notes: tuple[str, ...] = ()
    paper_rows: tuple[int, ...] = ()

    def text(self, row: int, column: int) -> str:
        """The cell as people read it."""
        return show_cell(self.rows[row][column], self.columns[column].kind)


@dataclass(frozen=True)
class Point:
    """One mark of a figure.

    Attributes:
        x: a number, or the name of a bar.
        y: its height.
        size: area of the mark, where that tells something; its meaning is the panel's `size_label`.
        label: written beside it; none: nothing.
    """

    x: float | str
    y: Spread
    size: float | None = None
    label: str | None = None


@dataclass(frozen=True)
class Series:
    """Marks that belong together, such as one method's; the paper's own figures are series of their own."""

    name: str
    points: tuple[Point, ...]
    paper: bool = False


@dataclass(frozen=True)
class Panel:
    """One picture of a figure, with the data behind it.

    Attributes:
        title: what it shows.
        domain: whose it is.
        style: lines over numbers, bars over names, or bubbles.
        x_label, y_label, size_label: what is drawn, units included.
        series: what is drawn.
        log_x: the x axis is logarithmic.
        reference: a horizontal line, such as the base model's, with its name.
    """

    title: str
    domain: str
    style: Literal["lines", "bars", "bubbles"]
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    size_label: str | None = None
    reference: tuple[str, Spread] | None = None


@dataclass(frozen=True)
class Experiment:
    """Everything that one command of `ckd reproduce` found.

    Attributes:
        name: of the command, such as `table3`, with what it was restricted to, such as `figure5-lambda`.
        title: what it shows, in a line.
        element: what it reproduces of the paper, such as `Tables 3 and 4`; none: what the paper leaves open.
        domains, seeds: what was run.
        example: the domain is the built-in example, with the example's sizes.
        command: a command line that makes it again.
        config: the resolved configuration, before a method's overrides.
        runs: every run, in the order of domains, methods and seeds.
        differences: paired tests.
        tables, panels: what is shown, in this order.
        notes: what a reader has to know about all of it, such as methods that were left out and why.
        versions: of Python and packages.
        seconds: spent on all its runs, whether trained for it or for another experiment before; None: unknown.
        made: what its runs were made with; None of an older result, which does not say.
        mark: ends its file's name, where it was made otherwise than by default.
    """

    name: str
    title: str
    element: str | None
    domains: tuple[str, ...]
    seeds: tuple[int, ...]
    example: bool
    command: str
    config: dict[str, Any]
    runs: tuple[RunRecord, ...] = ()
    differences: tuple[Difference, ...] = ()
    tables: tuple[Table, ...] = ()
    panels: tuple[Panel, ...] = ()
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None
    made: Made | None = None
    mark: str = ""

    @property
    def stem(self) -> str:
        """Name of its file, less the suffix: `<name>-<domains>`, and its mark where it has one."""
        return "-".join([self.name, "+".join(self.domains), *([self.mark] if self.mark else [])])

    @property
    def made_with(self) -> str | None:
        """What it was made with, in a line; None where that is not known, or nothing was trained."""
        return self.made.text(self.seeds) if self.made is not None and self.runs else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as they are stored."""
        return {"format": FORMAT, **asdict(self)}

    def save(self, work: Path) -> Path:
        """Write `work/experiments/<stem>.json`, atomically; returns its path."""
        path = work / "experiments" / f"{self.stem}.json"
        write_json(path, self.as_dict())
        return path

    def keep_former(self, work: Path) -> Path | None:
        """Give a result of this one's name that has runs which this one lacks a name of its own; returns its path.

        Such are results of versions that named all alike, and those of teachers that are not the usual ones any more.
        """
        try:
            former = Experiment.load(work / "experiments" / f"{self.stem}.json")
        except DataError:  # there is none, or nothing that can be read
            return None
        mine, theirs = ({(run.method, run.folder) for run in each.runs} for each in (self, former))
        if theirs <= mine:
            return None
        several = [f"{len(former.seeds)}seeds"] if len(former.seeds) > 1 else []
        known = [former.mark] if former.mark else several
        return replace(former, mark="-".join([*known, short_hash(sorted(theirs))])).save(work)

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` wrote.

        Raises:
            DataError: no such file, no JSON, or of another format.
        """
        remedy = "Run the command of `ckd reproduce` again that wrote it."
        values = read_json(path, remedy)
        if values.pop("format", None) != FORMAT:
            raise DataError(f"{path}: not of format {FORMAT}. {remedy}")
        try:
            return cls(**_restored(values))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not an experiment's result ({error}). {remedy}") from None


def load_experiments(work: Path) -> list[Experiment]:
    """All that lie in the work folder, sorted by name."""
    return [Experiment.load(path) for path in sorted((work / "experiments").glob("[!.]*.json"))]


def show_cell(cell: Cell, kind: CellKind) -> str:
    """A cell as people read it; the spread over seeds follows the mean. An en dash stands for nothing."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Spread):
        spread = "" if cell.std is None else f" ±{_number(cell.std, kind)}"
        return _number(cell.mean, kind) + spread
    return _number(cell, kind)


def _number(value: float, kind: CellKind) -> str:
    if kind == "p":
        return "<0.0001" if value < 1e-4 else f"{value:.4f}"
    if kind == "bytes":
        return f"{value / 1e6:,.1f} MB"
    return format(value, _FORMATS[kind]) + ("x" if kind == "ratio" else "")


_FORMATS = {
    "text": "",
    "count": ",.0f",
    "metric": ".4f",
    "percent": ".2%",
    "change": "+.2%",
    "ratio": ",.1f",
    "ms": ",.2f",
    "number": ",.4g",
}


def _restored(values: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists and objects as what they were."""
    return {
        **values,
        "domains": tuple(values["domains"]),
        "seeds": tuple(values["seeds"]),
        "notes": tuple(values["notes"]),
        "made": None if values.get("made") is None else _made(values["made"]),
        "runs": tuple(RunRecord(**{**run, "teachers": tuple(run["teachers"])}) for run in values["runs"]),
        "differences": tuple(Difference(**each) for each in values["differences"]),
        "tables": tuple(_table(each) for each in values["tables"]),
        "panels": tuple(_panel(each) for each in values["panels"]),
    }


def _made(values: dict[str, Any]) -> Made:
    lists = {name: tuple(values[name]) for name in ("teachers", "teacher_seeds", "sources")}
    return Made(**{**values, **lists})


def _table(values: dict[str, Any]) -> Table:
    rows = tuple(tuple(_cell(cell) for cell in row) for row in values["rows"])
    columns = tuple(Column(**column) for column in values["columns"])
    lists = {name: tuple(values[name]) for name in ("notes", "paper_rows")}
    return Table(**{**values, **lists, "columns": columns, "rows": rows})


def _cell(cell: Any) -> Cell:
    return _spread(cell) if isinstance(cell, dict) else cell


def _spread(values: dict[str, Any]) -> Spread:
    return Spread(values["mean"], values["std"], tuple(values["values"]))


def _panel(values: dict[str, Any]) -> Panel:
    series = tuple(
        Series(s["name"], tuple(Point(**{**p, "y": _spread(p["y"])}) for p in s["points"]), s["paper"])
        for s in values["series"]
    )
    reference = values["reference"]
    line = None if reference is None else (reference[0], _spread(reference[1]))
    return Panel(**{**values, "series": series, "reference": line})
