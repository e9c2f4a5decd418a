"""Text that came from data, made harmless in HTML, and what hangs on a figure."""

from __future__ import annotations

import base64
import csv
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Characters that no HTML or XML document may hold.
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def esc(value: Any) -> str:
    """Text for elements and quoted attributes alike."""
    return html.escape(FORBIDDEN.sub("\ufffd", str(value)), quote=True)


def element(tag: str, content: str = "", **attributes: str | float | None) -> str:
    """An element around markup; attributes are escaped, those of None left out, and `_` stands for `-`."""
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{esc(_number(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{written}>{content}</{tag}>"


def _number(value: str | float) -> str:
    """Coordinates to a tenth: finer than any screen."""
    return value if isinstance(value, str) else f"{round(float(value), 1):g}"


class Anchors:
    """Ids of a page's sections: letters of the name, each id given once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def __call__(self, *parts: str) -> str:
        base = re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-") or "part"
        name, number = base, 1
        while name in self._given:
            number += 1
            name = f"{base}-{number}"
        self._given.add(name)
        return name


def csv_text(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The rows as CSV; nothing where there is no value."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(headers)
    writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    return file.getvalue()


def download(headers: Sequence[str], rows: Sequence[Sequence[Any]], name: str) -> str:
    """A link that saves the rows as CSV, with the data in the link itself."""
    encoded = base64.b64encode(csv_text(headers, rows).encode("utf-8", "replace")).decode()
    return element("a", "Save as CSV", href=f"data:text/csv;charset=utf-8;base64,{encoded}", download=f"{name}.csv")


def data_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], label: str) -> str:
    """A plain table of values, numbers to the right; `label` is read out where it is entered."""
    head = "".join(element("th", esc(name), scope="col") for name in headers)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return scrolling(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", label)


def _cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{esc(value)}</td>"
    return f'<td class="n">{value:.6g}</td>' if isinstance(value, float) else f'<td class="n">{value}</td>'


def scrolling(table: str, label: str) -> str:
    """The table in a box of its own that scrolls where the page is narrow, by keyboard too."""
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def behind(headers: Sequence[str], rows: Sequence[Sequence[Any]], name: str, title: str, what: str = "Data") -> str:
    """The data behind a figure of that title, folded away; `name` is that of its CSV file."""
    link = element("p", download(headers, rows, name))
    return f"<details><summary>{esc(what)}</summary>{data_table(headers, rows, f'{what}: {title}')}{link}</details>"


def definition(pairs: Mapping[str, Any]) -> str:
    """Names and values, nested ones with their names joined by a dot."""
    rows = "".join(f"<div><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>" for name, value in flatten(pairs))
    return f"<dl>{rows}</dl>" if rows else ""


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """`{"train": {"lr": 1}}` as `[("train.lr", "1")]`; what is empty is left out."""
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            if value:
                found.append((f"{prefix}{name}", ", ".join(str(each) for each in value)))
        elif value is not None and value != "":
            found.append((f"{prefix}{name}", f"{value:g}" if isinstance(value, float) else str(value)))
    return found
