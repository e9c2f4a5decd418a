"""What there is to encode of a domain's items: their texts, or their pictures."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from ckd.data.domain import Domain, columns
from ckd.errors import DataError
from ckd.pipelines.progress import Progress
from ckd.teachers.encoders.cache import KEY, content_keys
from ckd.teachers.encoders.common import Report
from ckd.teachers.encoders.image import ImageEncoder, Source
from ckd.teachers.encoders.text import TextEncoder, drop_words

#: Contents between two writes to the cache; a killed run loses at most these.
TEXT_BLOCK, IMAGE_BLOCK = 1024, 256

#: Files that a folder of pictures is searched for.
PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".ico")
)

Encoded = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Contents:
    """The contents of those items that have one.

    Attributes:
        table: a row per such item: its number `item`, the content's key, and `order`, by which contents are encoded.
        encode: from m row numbers of the table to (m, d) float32 vectors and (m,) bool which could be encoded; reports
            how far it is.
        block: rows to encode between two writes to the cache.
        unit: what one content is called.
        unknown: contents that belong to no item.
        traits: filled while encoding: how many pictures were of which kind.
    """

    table: pl.DataFrame
    encode: Callable[[npt.NDArray[np.integer], Report], Encoded]
    block: int
    unit: str
    unknown: int = 0
    traits: Counter[str] = field(default_factory=Counter)

    @property
    def hash(self) -> str:
        """Hash over which items have which content."""
        digest = hashlib.blake2b(digest_size=16)
        for name in ("item", *KEY):
            digest.update(self.table[name].to_numpy().astype("<u8").data)
        return digest.hexdigest()


def text_contents(domain: Domain, encoder: TextEncoder, word_drop: float, seed: int) -> Contents:
    """The items' texts, each without a share `word_drop` of its words.

    Raises:
        DataError: no item has a text.
    """
    texts = [text or "" for text in domain.item_table[columns.TEXT].to_list()]
    items = np.flatnonzero([bool(text.strip()) for text in texts]) + 1
    if not len(items):
        raise DataError(f"{domain.folder}/items.parquet: no item has a text. Prepare the domain with item texts.")
    kept = [drop_words(texts[item - 1], word_drop, seed) if word_drop else texts[item - 1] for item in items]
    # Longest first: what does not fit into memory shows at once, and the time left is never too hopeful.
    table = _table(items, content_keys(text.encode() for text in kept), [-len(text) for text in kept])

    def encode(rows: npt.NDArray[np.integer], report: Report) -> Encoded:
        return encoder.encode([kept[row] for row in rows], report), np.ones(len(rows), dtype=np.bool_)

    return Contents(table, encode, TEXT_BLOCK, "text")


@dataclass(frozen=True)
class Pictures:
    """Where the items' pictures are.

    Attributes:
        sources: by item, for those that have one.
        unknown: files that belong to no item.
    """

    sources: dict[int, Source]
    unknown: int


def find_pictures(domain: Domain, folder: Path | None) -> Pictures:
    """The files in `folder` named by raw id, or else what the image column names or holds.

    Raises:
        DataError: there is neither a folder nor a column, no item has a picture, or two files are named for one item.
    """
    found, unknown = _column(domain) if folder is None else _files(domain, folder)
    if not found:
        where = f"{folder}" if folder else f"{domain.folder}/items.parquet, column {columns.IMAGE!r}"
        raise DataError(f"{where}: no picture of any item. Name files by raw item id, such as {_example(domain)!r}.")
    return Pictures(found, unknown)


def picture_contents(pictures: Pictures, encoder: ImageEncoder, progress: Progress) -> Contents:
    """The items' pictures as they are encoded.

    Raises:
        DataError: one cannot be read.
    """
    sources = list(pictures.sources.values())

    def contents() -> Iterator[bytes]:
        for done, source in enumerate(sources):
            progress(done, len(sources), "file", "reading")
            yield source if isinstance(source, bytes) else _read(source)

    def encode(rows: npt.NDArray[np.integer], report: Report) -> Encoded:
        return encoder.encode([sources[row] for row in rows], report)

    table = _table(np.array(list(pictures.sources)), content_keys(contents()), [0] * len(sources))
    return Contents(table, encode, IMAGE_BLOCK, "picture", pictures.unknown, encoder.traits)


def _table(items: npt.NDArray[np.integer], keys: pl.DataFrame, order: list[int]) -> pl.DataFrame:
    return keys.with_columns(pl.Series("item", items, dtype=pl.Int64), pl.Series("order", order, dtype=pl.Int64))


def _column(domain: Domain) -> tuple[dict[int, Source], int]:
    if columns.IMAGE not in domain.item_table.columns:
        table = f"{domain.folder}/items.parquet"
        raise DataError(f"{table}: no column {columns.IMAGE!r}. Give a folder of pictures named by raw item id.")
    assert domain.folder is not None
    found: dict[int, Source] = {}
    for item, value in enumerate(domain.item_table[columns.IMAGE].to_list(), 1):
        if isinstance(value, bytes) and value:
            found[item] = value
        elif isinstance(value, str) and value and _is_file(domain.folder / value):
            found[item] = domain.folder / value
    return found, 0


def _is_file(path: Path) -> bool:
    """Whether there is such a file; what is too long to name one, such as a picture in a `data:` address, is none."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def _files(domain: Domain, folder: Path) -> tuple[dict[int, Source], int]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of pictures.")
    by_id: dict[str, Path] = {}
    with os.scandir(folder) as entries:
        for path in sorted(Path(entry.path) for entry in entries if entry.is_file()):
            if path.suffix.lower() not in PICTURE_SUFFIXES:
                continue
            if path.stem in by_id:
                raise DataError(f"{path}: {by_id[path.stem].name} is there as well. Keep one picture for each item.")
            by_id[path.stem] = path
    raw_ids = domain.item_table[columns.RAW].to_list()
    found: dict[int, Source] = {item: by_id[raw] for item, raw in enumerate(raw_ids, 1) if raw in by_id}
    return found, len(by_id) - len(found)


def _example(domain: Domain) -> str:
    return f"{domain.item_table[columns.RAW][0]}.jpg" if domain.n_items else "ID.jpg"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
