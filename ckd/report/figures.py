"""Figures: a panel's picture with its title, legend and the data behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckd.pipelines.reproduce.result import Panel, Point, Series, Spread
from ckd.report.charts import Mark, draw, legend
from ckd.report.markup import behind, element, esc


def figure(panel: Panel, name: str, marks: Sequence[Mark] = (), note: str = "") -> str:
    """The figure with the data behind it as markup; `name` is that of its CSV file."""
    return element("figure", _picture(panel, marks, note) + behind(*panel_data(panel), name, panel.title))


def bare_figure(panel: Panel, marks: Sequence[Mark] = ()) -> str:
    """The figure as markup, of data that stand elsewhere on the page."""
    return element("figure", _picture(panel, marks))


def _picture(panel: Panel, marks: Sequence[Mark], note: str = "") -> str:
    spread = any(point.y.std for series in panel.series for point in series.points)
    notes = [note, f"Area: {panel.size_label}." if panel.size_label else "", "Whiskers: standard deviation." * spread]
    said = " ".join(part for part in notes if part)
    # A bar's axis lies far below; the title says at once what is measured.
    told = panel.style != "bars" or panel.y_label in panel.title
    title = panel.title if told else f"{panel.title}: {panel.y_label}"
    caption = element("figcaption", esc(title) + (f"<br><small>{esc(said)}</small>" if said else ""))
    return caption + legend(panel) + draw(panel, marks)


def gallery(figures: Sequence[str]) -> str:
    """Figures side by side where there is room."""
    return element("div", "".join(figures), class_="figures") if figures else ""


def panel_data(panel: Panel) -> tuple[list[str], list[list[Any]]]:
    """What a panel is drawn from: a row for each mark; columns that are empty throughout are left out."""
    x, y = panel.x_label or "x", panel.y_label or "y"
    seeds = max((len(p.y.values) for s in panel.series for p in s.points), default=1)
    runs = [f"run {number}" for number in range(1, seeds + 1)] if seeds > 1 else []
    headers = ["series", x, y, "std", *runs, panel.size_label or "size", "label", "source"]
    rows: list[list[Any]] = []
    for series in panel.series:
        source = "the paper" if series.paper else "measured"
        for point in series.points:
            values = [*point.y.values, *[None] * seeds][:seeds] if runs else []
            rows.append([series.name, point.x, point.y.mean, point.y.std, *values, point.size, point.label, source])
    if panel.reference is not None:
        name, value = panel.reference
        rows.append([name, None, value.mean, value.std, *[None] * len(runs), None, None, "reference"])
    kept = [at for at in range(len(headers)) if at < 3 or any(row[at] is not None for row in rows)]
    return [headers[at] for at in kept], [[row[at] for at in kept] for row in rows]


def line(name: str, points: Sequence[tuple[float, float]], labels: dict[float, str] | None = None) -> Series:
    """A series of single values."""
    labels = labels or {}
    return Series(name, tuple(Point(x, Spread.of([y]), label=labels.get(x)) for x, y in points))
