"""Item attributes as clean strings."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable

#: Attributes that come first, in this order.
LEADING = ("title", "brand", "category")

#: Other names of the leading attributes.
ALIASES = {"categories": "category", "item_title": "title", "movie_title": "title", "name": "title"}

_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


def clean(value: object) -> str:
    """A value as one line of text: entities resolved, mark-up and line breaks removed, no full stop at the end.

    A list is joined with spaces, bytes are read as UTF-8, and NaN, a table's mark of a gap, is no text. The published
    UniSRec data is cleaned in this manner.
    """
    if value is None or isinstance(value, dict) or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, list | tuple):
        return " ".join(part for part in map(clean, value) if part)
    text = _TAG.sub(" ", html.unescape(str(value)))
    # JSON may hold half of a surrogate pair, which no UTF-8 file can.
    text = text.encode("utf-8", "replace").decode()
    return " ".join(text.split()).rstrip(" .")


def ordered(names: Iterable[str]) -> list[str]:
    """Attribute names with the leading ones first and the others in the order they come."""
    names = list(names)
    return [n for n in LEADING if n in names] + [n for n in names if n not in LEADING]
