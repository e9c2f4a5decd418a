"""Printed results of `ckd reproduce`: tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence

from ckd.console import out, print_json, print_table
from ckd.pipelines.reproduce import DryRun
from ckd.pipelines.reproduce.result import Experiment

#: Marks the paper's own figures.
PAPER = "†"

#: Where the estimate of a step comes from.
SOURCES = {
    "measured": "like runs here",
    "scaled": "like runs, scaled",
    "assumed": "assumed rate",
    "unknown": "not prepared",
}


def experiment(result: Experiment, json: bool) -> None:
    """Every table of an experiment, with what has to be known about it."""
    if json:
        print_json(result.as_dict())
        return
    for table in result.tables:
        headers = [f"{column.name} {PAPER}" if column.paper else column.name for column in table.columns]
        rows = [
            [table.text(number, column) for column in range(len(table.columns))] for number in range(len(table.rows))
        ]
        for number in table.paper_rows:
            rows[number][0] += f" {PAPER}"
        for part, columns in enumerate(_parts(headers, rows, out.width)):
            title = table.title if part == 0 else f"{table.title} (continued)"
            print_table(title, [headers[c] for c in columns], [[row[c] for c in columns] for row in rows])
        marked = table.paper_rows or any(column.paper for column in table.columns)
        for note in (*([f"{PAPER} the paper's own figures, not ours."] if marked else ()), *table.notes):
            out.print(note, markup=False)
        out.print()
    for note in result.notes:
        out.print(note, markup=False)
    if result.made_with is not None:
        out.print(result.made_with, markup=False)
    out.print(f"Kept in the work folder as experiments/{result.stem}.json.", markup=False)


def _parts(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Columns that fit side by side, the first one in every part: a number that is cut off would be another number."""
    widths = [max(map(len, column)) + 2 for column in zip(headers, *rows, strict=True)]
    parts: list[list[int]] = [[0]]
    for column in range(1, len(headers)):
        used = sum(widths[c] for c in parts[-1])
        if used + widths[column] > width and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(column)
    return parts


def dry_run(result: DryRun, json: bool) -> None:
    """The steps, which are done, and how long the others will take."""
    if json:
        print_json(result.as_dict())
        return
    rows = [
        [step.state, *(("", "") if step.state == "done" else (duration(step.seconds), SOURCES[step.source])), step.what]
        for step in result.steps
    ]
    print_table("Steps", ["State", "Time", "Estimate", "Step"], rows)
    left = [step for step in result.steps if step.state != "done"]
    at_least = "" if result.seconds is not None else "at least "
    whole = duration(sum(step.seconds or 0.0 for step in left))
    out.print(f"{len(left)} of {len(result.steps)} steps to do, {at_least}{whole}")
    if any(step.source == "assumed" for step in left):
        sizes = "on the example, at the sizes it is cut to" if result.example else "at the paper's sizes"
        out.print(f"Assumed rates are those of two cores {sizes}, with a typical number of epochs.")
    if any(step.source == "unknown" for step in left):
        out.print("A domain's size is known once `ckd reproduce table2` has prepared it; then the times are, too.")
    for note in result.notes:
        out.print(note, markup=False)


def duration(seconds: float | None) -> str:
    """`12 h`, `3 h 20 min`, `4 min`, `12 s`."""
    if seconds is None:
        return "–"
    if seconds >= 36_000:
        return f"{seconds / 3600:.0f} h"
    if seconds >= 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
