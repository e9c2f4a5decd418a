"""Raw Amazon reviews and metadata, a JSON object per line, with the field names of 2014, 2018 and 2023.

| | 2014, 2018 | 2023 |
|---|---|---|
| review | `reviewerID`, `asin`, `unixReviewTime` | `user_id`, `parent_asin`, `timestamp` |
| item | `asin`, `title`, `brand`, `categories` or `category` | `parent_asin`, `title`, `store`, `categories` |

The metadata of 2014 is written as Python dictionaries, with single quotes.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from ckd.data.ingest.lines import Block, blocks, head
from ckd.data.ingest.problems import one_line
from ckd.data.ingest.raw import RawDomain, ReadOptions, files_with
from ckd.data.ingest.spool import IMAGE, ITEM, LINE, ORDER, USER, Spool, interaction_spool, item_spool, parse_time
from ckd.data.ingest.text import clean
from ckd.errors import DataError

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")

USER_FIELDS = ("reviewerID", "user_id")
ITEM_FIELDS = ("parent_asin", "asin")
TIME_FIELDS = ("unixReviewTime", "timestamp")

ATTRIBUTES = ("title", "brand", "category", "description", "features")

#: A longer title, brand or category is page source that the crawl took for one.
LONGEST_NAME = 2000

Row = dict[str, Any]


class Amazon:
    """Users and items with fewer than five interactions are left out unless configured, as in the papers."""

    k_core = 5

    def detect(self, source: Path) -> bool:
        if source.is_file():
            return source.name.endswith(SUFFIXES)
        return any(_is_reviews(first) or _is_metadata(first) for _, first in _looked_at(source))

    def read(self, source: Path, options: ReadOptions) -> RawDomain:
        path = source if source.is_file() else _reviews_in(source)
        items = options.items or _metadata_beside(path)
        interactions = _read_reviews(path, options)
        return RawDomain(path, interactions, items, _read_metadata(items, options) if items else None)


def _looked_at(folder: Path) -> list[tuple[Path, Row]]:
    return [(path, _first_object(path)) for path in files_with(folder, SUFFIXES)]


def _first_object(path: Path) -> Row:
    return next((found for line in head(path) if (found := parse_object(line)) is not None), {})


def _is_reviews(row: Row) -> bool:
    return any(name in row for name in USER_FIELDS) and any(name in row for name in ITEM_FIELDS)


def _is_metadata(row: Row) -> bool:
    return not any(name in row for name in USER_FIELDS) and any(name in row for name in ITEM_FIELDS)


def _reviews_in(folder: Path) -> Path:
    if not folder.exists():
        raise DataError(f"{folder}: no such file or folder.")
    found = [path for path, first in _looked_at(folder) if _is_reviews(first)]
    if len(found) != 1:
        names = f" ({', '.join(path.name for path in found)})" if found else ""
        raise DataError(f"{folder}: {len(found)} files of reviews here{names}, expected one. Give the file's path.")
    return found[0]


def _metadata_beside(path: Path) -> Path | None:
    """`meta_X` for `X`, `X_5` or `reviews_X_5`; else the only file of metadata beside the reviews."""
    beside = {other: first for other, first in _looked_at(path.parent) if other != path}
    for other, first in beside.items():
        if not first and other.name.startswith("meta_") and _category(other) == _category(path):
            raise DataError(
                f"{other}: no object can be read from it, and by its name it has the items of {path.name}. "
                "Fetch it again, or name the items with prepare.items=PATH."
            )
    found = [other for other, first in beside.items() if _is_metadata(first)]
    named = [other for other in found if _category(other) == _category(path)]
    found = named or found
    if len(found) > 1:
        names = ", ".join(other.name for other in found)
        raise DataError(
            f"{path}: {len(found)} metadata files lie beside it ({names}). Name one with prepare.items=PATH."
        )
    return found[0] if found else None


def _category(path: Path) -> str:
    stem = path.name.split(".")[0].removeprefix("reviews_").removeprefix("meta_")
    return re.sub(r"_(5|0)$", "", stem)


def parse_object(line: str) -> Row | None:
    """The object that a line of JSON, or of Python as in 2014, writes; None where it is neither."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        if not line.lstrip().startswith("{"):
            return None
        try:
            with warnings.catch_warnings():
                # "\/" and its like in a Python string warn.
                warnings.simplefilter("ignore")
                value = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _read_reviews(path: Path, options: ReadOptions) -> pl.LazyFrame:
    spool = interaction_spool(options.scratch)
    fields: tuple[str, str, str] | None = None
    for block in blocks(path, options.problems, options.progress):
        fields = fields or _review_fields(path, block)
        frame = _fast(block, fields) if fields else None
        if frame is not None:
            spool.add_frame(frame)
        else:
            _slow(block, fields or (USER_FIELDS[0], ITEM_FIELDS[1], TIME_FIELDS[0]), path, options, spool)
    return spool.finish()


def _review_fields(path: Path, block: Block) -> tuple[str, str, str] | None:
    """The names of user, item and time, by the first object of the block; None where the block has none."""
    rows = ((number, row) for number, line in block.lines() if (row := parse_object(line)) is not None)
    number, row = next(rows, (0, None))
    if row is None:
        return None
    chosen = []
    for what, names in (("user", USER_FIELDS), ("item", ITEM_FIELDS), ("time", TIME_FIELDS)):
        name = next((name for name in names if name in row), None)
        if name is None:
            has = one_line(", ".join(map(str, row))) or "none"
            raise DataError(f"{path}:{number}: no field for the {what} ({' or '.join(names)}); the fields are {has}.")
        chosen.append(name)
    return chosen[0], chosen[1], chosen[2]


def _fast(block: Block, fields: tuple[str, str, str]) -> pl.DataFrame | None:
    """The rows of a block in which nothing is unusual; None leaves the block to `_slow`, which alone judges rows."""
    user, item, time = fields
    rows = block.data.count(b"\n") + (not block.data.endswith(b"\n"))
    if not all(_plain(block.data, rows, name, kinds) for name, kinds in ((user, _ID), (item, _ID), (time, _WHOLE))):
        return None
    try:
        read = pl.read_ndjson(block.data, schema={user: pl.String, item: pl.String, time: pl.Int64})
    except pl.exceptions.PolarsError:
        return None
    if read.height != rows or sum(read.null_count().row(0)):
        return None
    # Half a surrogate pair shows as a null character.
    odd = pl.col(user, item).str.contains(r"^$|\x00").any()
    if any(read.select(odd).row(0)):
        return None
    line = pl.int_range(block.first, block.first + rows, dtype=pl.UInt32, eager=True)
    return read.select(pl.col(user).alias(USER), pl.col(item).alias(ITEM), pl.col(time).alias(ORDER), line.alias(LINE))


#: How a value begins that polars and Python read alike: a whole number of at most 18 digits, or that or a string.
_WHOLE = rb"(?:0|-?[1-9]\d{0,17})[\s,}]"
_ID = rb'(?:"|' + _WHOLE + rb")"


def _plain(data: bytes, rows: int, name: str, value: bytes) -> bool:
    """Whether the key `name` comes as often as there are rows, and each time with such a value."""
    key = json.dumps(name).encode()
    if data.count(key) != rows:
        return False
    # Strings as they are mostly written, counted several times faster than found by the expression.
    strings = data.count(key + b': "') if value is _ID else 0
    return strings == rows or len(re.findall(re.escape(key) + rb"\s*:\s*" + value, data)) == rows


def _slow(block: Block, fields: tuple[str, str, str], path: Path, options: ReadOptions, spool: Spool) -> None:
    bad = options.problems.row
    for number, row in _objects(path, block, options):
        user, item = _identifier(row.get(fields[0])), _identifier(row.get(fields[1]))
        time = row.get(fields[2])
        when = parse_time(str(time)) if isinstance(time, int | float | str) and not isinstance(time, bool) else None
        if user is None:
            bad(path, number, f"no {fields[0]}")
        elif item is None:
            bad(path, number, f"no {fields[1]}")
        elif when is None:
            bad(path, number, f"{fields[2]} is no number", repr(time))
        else:
            spool.add((user, item, when, number))


def _objects(path: Path, block: Block, options: ReadOptions) -> Iterator[tuple[int, Row]]:
    for number, line in block.lines():
        row = parse_object(line)
        if row is None:
            options.problems.row(path, number, "not a JSON object", line[:60])
        else:
            yield number, row


def _identifier(value: object) -> str | None:
    """An id as a string; None for what cannot be one."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        return None
    text = str(value)
    # Half of a surrogate pair, which JSON may hold, is in no real id and in no UTF-8 file.
    return None if any("\ud800" <= c <= "\udfff" for c in text) else text


def _read_metadata(path: Path, options: ReadOptions) -> pl.LazyFrame:
    spool = item_spool(options.scratch, [*ATTRIBUTES, IMAGE])
    found = False
    for block in blocks(path, options.problems, options.progress):
        for number, row in _objects(path, block, options):
            raw = next((known for name in ITEM_FIELDS if (known := _identifier(row.get(name))) is not None), None)
            if raw is None:
                detail = f"none of {', '.join(ITEM_FIELDS)} among {', '.join(map(str, row)) or 'no field at all'}"
                options.problems.row(path, number, "no item id", detail)
            else:
                found = True
                spool.add((raw, number, *item_attributes(row), item_image(row)))
    if not found:
        raise DataError(f"{path}: no line describes an item (a JSON object with {' or '.join(ITEM_FIELDS)}).")
    return spool.finish()


def item_attributes(row: Row) -> list[str]:
    """Title, brand, category, description and features of one item, cleaned; empty strings for what it lacks."""
    details = row.get("details")
    brand = row.get("brand") or (details.get("Brand") if isinstance(details, dict) else None) or row.get("store")
    category = row.get("category") or row.get("categories") or row.get("main_category") or row.get("main_cat")
    names = [clean(value) for value in (row.get("title"), brand, _distinct(category))]
    return [
        *(name if len(name) < LONGEST_NAME else "" for name in names),
        clean(row.get("description")),
        clean(row.get("features") or row.get("feature")),
    ]


def _distinct(category: object) -> object:
    """The names of a category path, or of several paths (2014), each once."""
    if not isinstance(category, list):
        return category
    names = [name for part in category for name in (part if isinstance(part, list) else [part])]
    return list(dict.fromkeys(map(str, names)))


def item_image(row: Row) -> str | None:
    """The address of the largest picture, where there is one."""
    images = row.get("images")
    if isinstance(images, list) and images and isinstance(images[0], dict):
        main = next(
            (image for image in images if isinstance(image, dict) and image.get("variant") == "MAIN"), images[0]
        )
        images = {size: [main.get(size)] for size in main}
    candidates: list[object] = []
    if isinstance(images, dict):
        candidates += [images.get(size) for size in ("hi_res", "large", "thumb")]
    candidates += [row.get(name) for name in ("imageURLHighRes", "imageURL", "image", "imUrl")]
    for value in candidates:
        found = value[0] if isinstance(value, list) and value else value
        if isinstance(found, str) and found:
            return found
    return None


FORMAT = Amazon()
