"""What a person sees: progress bars, tables, and one line for an error."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

#: Columns of what is not read on a terminal: tables there are as wide as they need to be, none is folded.
WIDE = 240

out = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE)
err = Console(stderr=True, highlight=False)


class Noted(Progress):
    """Bars, and beneath each its note, folded where the terminal is narrow."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            yield self.make_tasks_table([task])
            if task.fields["note"]:
                yield Text(f"  {task.fields['note']}", style="dim")


class Bars:
    """Draws one bar per piece of work on the terminal; prints nothing where there is no terminal."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[str, Any] = {}
        self.began: dict[str, tuple[float, int]] = {}
        self.done: dict[str, int] = {}

    def __call__(self, done: int, total: int | None, unit: str, note: str = "") -> None:
        now = time.monotonic()
        if unit not in self.tasks:
            self.tasks[unit] = self.progress.add_task(unit, total=total, rate="", note="")
        if done <= self.done.get(unit, done):
            # The first of the units, or the first again: another epoch.
            self.progress.reset(self.tasks[unit], total=total)
            self.began[unit] = now, done
        began, first = self.began[unit]
        rate = f"{(done - first) / (now - began):,.0f}/s" if done > first and now > began else ""
        self.done[unit] = done
        self.progress.update(self.tasks[unit], completed=done, total=total, rate=rate, note=note)


@contextmanager
def bars(shown: bool = True) -> Iterator[Bars]:
    """Progress bars on standard error, gone when the work is done; of several processes, one shows them."""
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
    ]
    with Noted(*columns, console=err, transient=True, disable=not (shown and err.is_terminal)) as progress:
        yield Bars(progress)


def print_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table for people: text to the left, numbers to the right."""
    # A title of the table itself would be folded to the table's width.
    out.print(title, style="bold", markup=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, show_header=any(headers))
    for position, header in enumerate(headers):
        column = [row[position] for row in rows]
        numeric = position > 0 and all(not isinstance(v, str) or _looks_numeric(v) for v in column)
        # Where the terminal is narrow headers are folded, and other texts, but no number is cut.
        whole = max((len(show(value)) for value in column), default=0) if numeric or position == 0 else None
        table.add_column(header, justify="right" if numeric else "left", min_width=whole, overflow="fold")
    for row in rows:
        table.add_row(*(show(value) for value in row))
    out.print(table)


def show(value: Any) -> str:
    """A value as a person reads it: metrics with four digits, what they would not show as a power, counts separated."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if 0 < abs(value) < 5e-5:
            return f"{value:.1e}"
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    return str(value)


def _looks_numeric(text: str) -> bool:
    return bool(text) and (text[0].isdigit() or text[0] in "+-–.<")


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """One JSON document on standard output, for programs."""
    print(json.dumps(_plain(value), indent=2, default=str, allow_nan=False))


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: null says that there is no such number."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
