"""Panels as SVG: lines over numbers, bars over names, bubbles. Colours come from the page, so that they suit its theme.

No colour says anything alone: every series has a marker and a dash of its own as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from ckd.pipelines.reproduce.result import Panel, Point, Series, Spread
from ckd.report.markup import element, esc
from ckd.report.scales import Scale, linear, logarithmic, tick_texts, whole

WIDTH, HEIGHT = 420.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 60.0, 12.0, 12.0, 40.0

#: Colours that the page defines; with more series they come again with another dash and marker.
COLOURS = 7
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2 1 2 1 2", "12 4", "3 6")
MARKERS = ("circle", "square", "triangle", "diamond", "down", "plus", "cross")

#: Radius of the largest bubble.
BUBBLE = 20.0

#: A line of more points than this has a marker only every so often.
MARKED = 30


#: A point and where it lies.
Placed = tuple[float, float, Point]


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x`, such as where the curriculum ends, with a word beside it."""

    x: float
    text: str


def look(number: int) -> tuple[int, str, str]:
    """Colour, dash and marker of a series."""
    shift = number // COLOURS
    return number % COLOURS, DASHES[(number + shift) % len(DASHES)], MARKERS[(number + shift) % len(MARKERS)]


def draw(panel: Panel, marks: Sequence[Mark] = ()) -> str:
    """The panel's picture, with a name for those who cannot see it."""
    if panel.style == "bars":
        height, parts = _bars(panel)
    else:
        height, parts = HEIGHT, _plane(panel, marks)
    title = f"{panel.title}: {panel.y_label} by {panel.x_label}" if panel.x_label else f"{panel.title}: {panel.y_label}"
    return svg(parts, title, height)


def svg(parts: Iterable[str], title: str, height: float = HEIGHT, width: float = WIDTH) -> str:
    """A picture that scales with the page."""
    return element(
        "svg",
        f"<title>{esc(title)}</title>" + "".join(parts),
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=title,
    )


def legend(panel: Panel) -> str:
    """What stands for which series; nothing where there is only one."""
    entries = [_entry(number, series, panel.style) for number, series in enumerate(panel.series)]
    if len(entries) < 2 and not any(series.paper for series in panel.series):
        return ""
    return element("ul", "".join(entries), class_="legend")


def _entry(number: int, series: Series, style: str) -> str:
    colour, dash, marker = look(number)
    kind = f"s{colour} paper" if series.paper else f"s{colour}"
    if style == "bars":
        drawn = element("rect", class_="bar", x=1, y=0, width=24, height=13) + _marker(marker, 8, 6.5)
        kind += " on"
    else:
        line = element("line", class_="line", x1=0, x2=26, y1=6.5, y2=6.5, stroke_dasharray=dash or None)
        drawn = (line if style == "lines" else "") + _marker(marker, 13, 6.5)
    swatch = element(
        "svg", element("g", drawn, class_=kind), viewBox="0 0 26 13", width=26, height=13, aria_hidden="true"
    )
    name = f"{series.name} (the paper's)" if series.paper else series.name
    return f"<li>{swatch}{esc(name)}</li>"


# --- lines and bubbles -----------------------------------------------------------------------------------------------


def _plane(panel: Panel, marks: Sequence[Mark]) -> list[str]:
    """Axes, then everything that lies between them."""
    points = [point for series in panel.series for point in series.points if math.isfinite(point.y.mean)]
    names = _names(points)
    spare = BUBBLE if panel.style == "bubbles" else 6.0
    x = _x_scale(panel, points, names, spare)
    reach = [value for point in points for value in _reach(point.y)]
    if panel.reference is not None:
        reach += _reach(panel.reference[1])
    y = linear(reach, HEIGHT - BOTTOM - spare / 2, TOP + spare)
    parts = [*axes(x, y, panel.x_label, panel.y_label, names), *(_mark(mark, x) for mark in marks)]
    if panel.reference is not None:
        parts.append(_reference(panel.reference, y))
    bubbles = panel.style == "bubbles"
    labels = Labels((x(_at(point.x, names)), y(point.y.mean)) for point in points)
    largest = max((point.size or 0.0 for point in points), default=0.0)
    for number, series in enumerate(panel.series):
        known = [
            (x(_at(point.x, names)), y(point.y.mean), point) for point in series.points if math.isfinite(point.y.mean)
        ]
        colour = look(number)[0]
        drawn = _bubbles(known, largest, number, labels) if bubbles else _line(known, y, number, labels)
        parts.append(element("g", "".join(drawn), class_=f"s{colour} paper" if series.paper else f"s{colour}"))
    return parts


def _names(points: Sequence[Point]) -> list[str]:
    """Names on the x axis, where it has no numbers, in the order in which they come."""
    return list(dict.fromkeys(str(p.x) for p in points)) if any(isinstance(p.x, str) for p in points) else []


def _at(value: float | str, names: Sequence[str]) -> float:
    return names.index(str(value)) if names else float(value)


def _x_scale(panel: Panel, points: Sequence[Point], names: Sequence[str], spare: float) -> Scale:
    start, stop = LEFT + spare, WIDTH - RIGHT - spare
    if names:
        return whole(0, len(names) - 1, LEFT, WIDTH - RIGHT, count=len(names))
    values = [float(point.x) for point in points]
    if panel.log_x and values and min(values) > 0:
        return logarithmic(values, start, stop)
    if values and panel.style == "lines" and all(value.is_integer() for value in values) and max(values) < 1e6:
        return whole(int(min(values)), int(max(values)), LEFT, WIDTH - RIGHT)
    return linear(values, start, stop, zero=panel.style == "bubbles")


def _reach(value: Spread) -> list[float]:
    spread = value.std or 0.0
    return [value.mean - spread, value.mean + spread]


def axes(x: Scale, y: Scale, x_label: str, y_label: str = "", names: Sequence[str] = ()) -> list[str]:
    """Both axes with ticks, labels and the lines of a grid; `names` stand for the whole numbers of the x axis."""
    bottom = HEIGHT - BOTTOM
    parts = [element("line", class_="axis", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom)]
    for tick, text in zip(y.ticks, tick_texts(y), strict=True):
        at = y(tick)
        parts += [
            element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at),
            element("text", text, class_="tick", x=LEFT - 6, y=at + 3.5, text_anchor="end"),
        ]
    room = (WIDTH - LEFT - RIGHT) / max(len(x.ticks), 1) / 6
    for tick, number in zip(x.ticks, tick_texts(x), strict=True):
        text = shorten(names[int(tick)], max(3, int(room))) if names else number
        parts += [
            element("line", class_="axis", x1=x(tick), x2=x(tick), y1=bottom, y2=bottom + 4),
            element("text", esc(text), class_="tick", x=x(tick), y=bottom + 16, text_anchor="middle"),
        ]
    across, down = (LEFT + WIDTH - RIGHT) / 2, (TOP + bottom) / 2
    turn = f"rotate(-90 10 {down:g})"
    return [
        *parts,
        element("text", esc(x_label), class_="label", x=across, y=HEIGHT - 6, text_anchor="middle"),
        element("text", esc(y_label), class_="label", x=10, y=down, text_anchor="middle", transform=turn),
    ]


def shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _mark(mark: Mark, x: Scale) -> str:
    at = x(mark.x)
    right = at < (LEFT + WIDTH - RIGHT) / 2
    return element("line", class_="mark", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM) + element(
        "text",
        esc(mark.text),
        class_="tick",
        x=at + (4 if right else -4),
        y=TOP + 8,
        text_anchor="start" if right else "end",
    )


def _reference(reference: tuple[str, Spread], y: Scale) -> str:
    name, value = reference
    at = y(value.mean)
    line = element("line", class_="reference", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at)
    return line + element("text", esc(name), class_="tick", x=WIDTH - RIGHT - 2, y=at - 4, text_anchor="end")


def _line(known: Sequence[Placed], y: Scale, number: int, labels: Labels) -> list[str]:
    """A line through the points, whiskers of a standard deviation, markers and labels."""
    _, dash, marker = look(number)
    path = " ".join(f"{at:.1f},{height:.1f}" for at, height, _ in known)
    parts = [element("polyline", class_="line", points=path, stroke_dasharray=dash or None)] if len(known) > 1 else []
    every = max(1, math.ceil(len(known) / MARKED))
    for position, (at, height, point) in enumerate(known):
        if point.y.std:
            low, high = _reach(point.y)
            parts.append(element("line", class_="whisker", x1=at, x2=at, y1=y(low), y2=y(high)))
        if position % every == 0 or point.label:
            parts.append(_marker(marker, at, height, f"{point.x}: {point.y.mean:.5g}"))
        if point.label:
            parts.append(labels.put(point.label, at, height, 4.0))
    return parts


def _bubbles(known: Sequence[Placed], largest: float, number: int, labels: Labels) -> list[str]:
    """Marks with their names; where sizes tell something, circles of that area."""
    parts = []
    for at, height, point in known:
        tip = f"{point.label or ''} {point.x}: {point.y.mean:.5g}".strip()
        radius = 3.0
        if point.size is not None and largest:
            drawn = BUBBLE * math.sqrt(max(point.size, 0.0) / largest)
            parts.append(element("circle", f"<title>{esc(tip)}</title>", class_="bubble", cx=at, cy=height, r=drawn))
            radius = max(radius, drawn)
        parts.append(_marker(look(number)[2], at, height, tip))
        if point.label:
            parts.append(labels.put(point.label, at, height, radius))
    return parts


class Labels:
    """Words near marks: above, or wherever else nearby no other word stands and no other mark lies.

    Args:
        marks: where the middles of all marks are.
    """

    def __init__(self, marks: Iterable[tuple[float, float]]) -> None:
        self._marks = list(marks)
        self._taken: list[tuple[float, float, float]] = []

    def put(self, text: str, at: float, height: float, radius: float) -> str:
        """The word for a mark of this radius, never beyond the picture's edge."""
        half = len(text) * 3.1
        aside = radius + half + 4
        places = [(at, height - radius - 4), (at, height + radius + 12), (at + aside, height + 4)]
        places += [(at - aside, height + 4), *((at, height - radius - 4 - 12 * n) for n in (1, 2, 3))]
        inside = [(min(max(x, LEFT + half), WIDTH - RIGHT - half), max(y, 10.0)) for x, y in places]
        readable = [place for place in inside if self._free(*place, half)] or inside[:1]
        others = [mark for mark in self._marks if mark != (at, height)]
        x, y = next((place for place in readable if not _covers(*place, half, others)), readable[0])
        self._taken.append((x, y, half))
        return element("text", esc(text), class_="name", x=x, y=y, text_anchor="middle")

    def _free(self, x: float, y: float, half: float) -> bool:
        return all(abs(y - other[1]) >= 11 or abs(x - other[0]) >= half + other[2] for other in self._taken)


def _covers(x: float, y: float, half: float, marks: Sequence[tuple[float, float]]) -> bool:
    """Whether a word whose line ends at `y` lies on one of the marks."""
    return any(abs(x - at) < half + 4 and y - 13 < height < y + 7 for at, height in marks)


def _marker(kind: str, x: float, y: float, tip: str = "") -> str:
    """A small shape around a point, with its value for whoever points at it."""
    inner = f"<title>{esc(tip)}</title>" if tip else ""
    if kind == "circle":
        return element("circle", inner, class_="dot", cx=x, cy=y, r=3.4)
    r = 3.6
    shapes = {
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "triangle": [(0, -1.25 * r), (1.15 * r, r), (-1.15 * r, r)],
        "down": [(0, 1.25 * r), (1.15 * r, -r), (-1.15 * r, -r)],
        "diamond": [(0, -1.35 * r), (1.35 * r, 0), (0, 1.35 * r), (-1.35 * r, 0)],
        "plus": _cross(r, 0.0),
        "cross": _cross(r, math.pi / 4),
    }
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[kind])
    return element("polygon", inner, class_="dot", points=path)


def _cross(r: float, angle: float) -> list[tuple[float, float]]:
    """The outline of a plus, turned by an angle."""
    w, e = r / 3, 1.3 * r
    outline = [
        (-w, -e),
        (w, -e),
        (w, -w),
        (e, -w),
        (e, w),
        (w, w),
        (w, e),
        (-w, e),
        (-w, w),
        (-e, w),
        (-e, -w),
        (-w, -w),
    ]
    c, s = math.cos(angle), math.sin(angle)
    return [(c * dx - s * dy, s * dx + c * dy) for dx, dy in outline]


# --- bars ------------------------------------------------------------------------------------------------------------

BAR, GAP, NAME, EDGE = 13.0, 3.0, 15.0, 16.0


def _bars(panel: Panel) -> tuple[float, list[str]]:
    """Bars to the right, each group below its name: long names have room, on narrow pages too."""
    placed = [
        (name, [(number, point) for _, number, point in group])
        for name, group in groupby(
            sorted(
                (
                    (_order(panel)[str(point.x)], number, point)
                    for number, series in enumerate(panel.series)
                    for point in series.points
                    if math.isfinite(point.y.mean)
                ),
                key=lambda each: each[:2],
            ),
            key=lambda each: str(each[2].x),
        )
    ]
    reach = [value for _, group in placed for _, point in group for value in _reach(point.y)]
    if panel.reference is not None:
        reach += _reach(panel.reference[1])
    x = linear(reach, EDGE, WIDTH - 78, count=4, zero=True)
    parts, top = [], 8.0
    for name, group in placed:
        top += NAME
        parts.append(element("text", esc(shorten(name, 62)), class_="name", x=EDGE, y=top - 4))
        for number, point in group:
            parts.append(_bar(panel, number, point, x, top))
            top += BAR + GAP
        top += 5
    bottom = top + 2
    axis = [element("line", class_="axis", x1=x(0.0), x2=x(0.0), y1=4, y2=bottom)]
    for tick, text in zip(x.ticks, tick_texts(x), strict=True):
        axis.append(element("line", class_="grid", x1=x(tick), x2=x(tick), y1=4, y2=bottom))
        axis.append(element("text", text, class_="tick", x=x(tick), y=bottom + 14, text_anchor="middle"))
    axis.append(
        element("text", esc(panel.y_label), class_="label", x=(WIDTH - 70) / 2, y=bottom + 30, text_anchor="middle")
    )
    if panel.reference is not None:
        name, value = panel.reference
        at = x(value.mean)
        axis.append(element("line", class_="reference", x1=at, x2=at, y1=4, y2=bottom))
        axis.append(element("text", esc(name), class_="tick", x=at + 3, y=11))
    return bottom + 38, axis + parts


def _order(panel: Panel) -> dict[str, int]:
    """The names in the order in which they come first."""
    names = dict.fromkeys(str(point.x) for series in panel.series for point in series.points)
    return {name: number for number, name in enumerate(names)}


def _bar(panel: Panel, number: int, point: Point, x: Scale, top: float) -> str:
    series, several = panel.series[number], len(panel.series)
    start, end = sorted((x(0.0), x(point.y.mean)))
    tip = f"{series.name}, {point.x}: {point.y.mean:.5g}"
    drawn = element(
        "rect", f"<title>{esc(tip)}</title>", class_="bar", x=start, y=top, width=max(end - start, 0.5), height=BAR
    )
    if several > 1 and end - start > 14:
        # The series' own shape, for whoever cannot tell the colours apart.
        drawn += _marker(look(number)[2], start + 8, top + BAR / 2)
    right = end
    if point.y.std:
        low, high = (x(value) for value in _reach(point.y))
        middle = top + BAR / 2
        drawn += element("line", class_="whisker", x1=low, x2=high, y1=middle, y2=middle)
        right = max(end, high)
    text = f"{point.y.mean:.4f}" if abs(point.y.mean) < 10 else f"{point.y.mean:,.4g}"
    drawn += element("text", text, class_="tick", x=right + 4, y=top + BAR - 3)
    return element("g", drawn, class_=f"s{number % COLOURS} on" + (" paper" if series.paper else ""))
