"""Vectors that somebody else has made: read from a file with the ids of its rows, and joined to a domain's items."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from polars import selectors
from safetensors import SafetensorError, safe_open

from ckd.data.domain import Domain, columns
from ckd.errors import DataError, did_you_mean, first_line

#: Names by which the id column of a Parquet file is found where none is given.
ID_COLUMNS = ("raw_id", "item_id", "user_id", "id", "parent_asin", "asin", "item", "user")

_BLOCK = 16384

#: Digits of a row's number at most.
_DIGITS = 18


@dataclass(frozen=True)
class NamedVectors:
    """Vectors with their raw ids.

    Attributes:
        path: the file they are from.
        ids: (n,) raw ids, all different.
        at: (n,) int64, ascending, the row of `vectors` that belongs to each id.
        vectors: (m, d) of any number type, possibly memory-mapped.
    """

    path: Path
    ids: pl.Series
    at: npt.NDArray[np.int64]
    vectors: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """d, the length of a vector."""
        return self.vectors.shape[1]

    def take(self, which: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """(k, d) float32, the vectors of the ids at the positions `which`.

        Raises:
            DataError: a value is not finite, or too large for float32.
        """
        with np.errstate(over="ignore"):
            block: npt.NDArray[np.float32] = np.asarray(self.vectors[self.at[which]]).astype(np.float32)
        bad = np.argwhere(~np.isfinite(block))
        if len(bad):
            first, column = bad[0]
            raise DataError(
                f"{self.path}: row {self.at[which[first]]} (id {self.ids[int(which[first])]!r}) holds "
                f"{block[first, column]}. Leave out the rows of items that have no vector."
            )
        return block


@dataclass(frozen=True)
class AlignCounts:
    """What became of the rows of a file.

    Attributes:
        unknown: rows whose id is no item of the domain.
        zero: items whose row is all zeros, taken as missing.
    """

    unknown: int
    zero: int


def read_vectors(
    path: Path,
    ids: Path | None = None,
    *,
    dim: int | None = None,
    vector_column: str | None = None,
    id_column: str | None = None,
) -> NamedVectors:
    """Read vectors and the ids of their rows.

    Args:
        path: `.npy`, `.safetensors`, `.parquet`, or raw little-endian float32 under any other name.
        ids: a text file with an id on each line, or with `id TAB row` on each (rows from 0, as UniSRec's item2index),
            or a `.parquet` file. Not needed where `path` is a Parquet file with an id column.
        dim: length of a vector, checked; raw files need it only where it does not follow from the number of ids.
        vector_column: column (Parquet) or tensor (safetensors) of the vectors, where there are several.
        id_column: column of the ids, where it has another name than `ID_COLUMNS`.

    Raises:
        DataError: a file is missing or is not what its name says, the numbers of rows or dimensions do not fit, or an
            id is empty or comes twice.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of vectors.")
    if ids is None and path.suffix != ".parquet":
        raise DataError(f"{path}: give the ids of its rows as well, in a text file or a Parquet column.")
    names, rows = _read_ids(ids or path, id_column)
    expected = int(rows.max()) + 1
    if path.suffix == ".parquet":
        vectors, filled = _read_parquet(path, vector_column, id_column)
    elif path.suffix == ".safetensors":
        vectors, filled = _read_safetensors(path, vector_column), None
    else:
        if vector_column is not None:
            raise DataError(f"{path}: vector_column={vector_column!r}, but only Parquet and safetensors name theirs.")
        vectors, filled = _read_npy(path) if path.suffix == ".npy" else _read_raw(path, expected, dim), None
    _check_matrix(path, vectors, dim)
    if len(vectors) != expected:
        raise DataError(f"{path}: {len(vectors)} rows, but ids for {expected} in {ids or path}.")
    if filled is not None and not filled.all():
        # A row without a vector, in a table that has one for others: missing, as a row that is not there.
        names, rows = names.filter(pl.Series(filled[rows])), rows[filled[rows]]
    return NamedVectors(path, names, rows, vectors)


def read_matrix(path: Path, vector_column: str | None = None) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """(n, d) numbers of a `.parquet`, `.npy` or `.safetensors` file without any ids, and (n,) which rows have some.

    Args:
        vector_column: column (Parquet) or tensor (safetensors) of the vectors, where there are several.

    Raises:
        DataError: the file is not what its name says, or holds no matrix of numbers.
    """
    if path.suffix == ".parquet":
        vectors, filled = _read_parquet(path, vector_column, None)
    else:
        vectors, filled = _read_npy(path) if path.suffix == ".npy" else _read_safetensors(path, vector_column), None
    _check_matrix(path, vectors, None)
    return vectors, np.ones(len(vectors), dtype=np.bool_) if filled is None else filled


def align(
    domain: Domain, table: NamedVectors, out: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.bool_], AlignCounts]:
    """Write the vectors of the domain's items into `out` (n_items + 1, d), which is zero; returns which are present.

    Every row is checked, those of unknown items as well. A row of zeros, which has no direction, is a missing vector.

    Raises:
        DataError: a value is not finite, or no id of the file is an item of the domain.
    """
    numbers = pl.DataFrame({columns.RAW: domain.item_table[columns.RAW]}).with_row_index(columns.ITEM, offset=1)
    joined = pl.DataFrame({columns.RAW: table.ids}).join(numbers, on=columns.RAW, how="left", maintain_order="left")
    items = joined[columns.ITEM].fill_null(0).cast(pl.Int64).to_numpy()
    if not items.any():
        mine = domain.item_table[columns.RAW][0] if domain.n_items else None
        raise DataError(
            f"{table.path}: none of its {len(table)} ids is an item of {domain.name!r} "
            f"(first: {table.ids[0]!r}; the domain's first: {mine!r})."
        )
    present = np.zeros(domain.n_items + 1, dtype=np.bool_)
    zero = 0
    for start in range(0, len(table), _BLOCK):
        which = np.arange(start, min(start + _BLOCK, len(table)))
        block = table.take(which)
        known, filled = items[which] > 0, block.any(axis=1)
        use = known & filled
        out[items[which[use]]] = block[use]
        present[items[which[use]]] = True
        zero += int(np.count_nonzero(known & ~filled))
    return present, AlignCounts(unknown=int(np.count_nonzero(items == 0)), zero=zero)


def _check_matrix(path: Path, vectors: npt.NDArray[Any], dim: int | None) -> None:
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise DataError(f"{path}: shape {vectors.shape}, expected (rows, dimensions).")
    if vectors.dtype.kind not in "fiu":
        raise DataError(f"{path}: holds {vectors.dtype}, expected numbers.")
    if dim is not None and vectors.shape[1] != dim:
        raise DataError(f"{path}: vectors of length {vectors.shape[1]}, but dim={dim} was given.")


def _read_ids(path: Path, column: str | None) -> tuple[pl.Series, npt.NDArray[np.int64]]:
    """Raw ids and the row of each, by ascending row."""
    if path.suffix == ".parquet":
        names = _parquet_ids(path, column)
        rows = np.arange(len(names))
    else:
        if column is not None:
            raise DataError(f"{path}: id_column={column!r}, but it is no Parquet file.")
        names, rows = _text_ids(path)
    if not len(names):
        raise DataError(f"{path}: holds no ids.")
    empty = names.is_null() | (names == "")
    if empty.any():
        raise DataError(f"{path}: the id of row {rows[empty.arg_max() or 0]} is empty.")
    twice = names.is_duplicated()
    if twice.any():
        name = names[twice.arg_max() or 0]
        first, second = rows[(names == name).to_numpy()][:2]
        raise DataError(f"{path}: id {name!r} comes twice, for rows {first} and {second}.")
    return names, rows


def _text_ids(path: Path) -> tuple[pl.Series, npt.NDArray[np.int64]]:
    try:
        data = path.read_bytes()
        lines = data.decode("utf-8-sig").rstrip().splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of ids.") from None
    except UnicodeDecodeError as error:
        at = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{at}: not UTF-8 text.") from None
    if not any("\t" in line for line in lines):
        return pl.Series(columns.RAW, [line.strip() for line in lines], dtype=pl.String), np.arange(len(lines))
    names, rows = [], np.empty(len(lines), dtype=np.int64)
    for number, line in enumerate(lines):
        name, _, row = line.rpartition("\t")
        if not name or not row.strip().isdecimal() or len(row.strip()) > _DIGITS:
            raise DataError(f"{path}:{number + 1}: {line!r} is not `id TAB row`.")
        names.append(name.strip())
        rows[number] = int(row)
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    # Row 0 may have no id: many keep it for padding.
    gap = np.flatnonzero(np.diff(rows, prepend=min(int(rows[0]), 1) - 1) != 1)
    if len(gap):
        at = int(gap[0])
        same = at > 0 and rows[at] == rows[at - 1]
        raise DataError(f"{path}: row {rows[at]} has two ids." if same else f"{path}: no id for row {rows[at] - 1}.")
    return pl.Series(columns.RAW, names, dtype=pl.String).gather(order), rows


def _parquet_schema(path: Path) -> pl.Schema:
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        return pl.Schema(pl.read_parquet_schema(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: not a Parquet file ({first_line(error)}).") from None


def _id_column(path: Path, schema: pl.Schema, asked: str | None) -> str | None:
    if asked is not None:
        if asked not in schema:
            raise DataError(f"{path}: no column {asked!r}.{did_you_mean(asked, schema)}")
        return asked
    strings = [name for name, kind in schema.items() if kind == pl.String]
    named = [name for name in ID_COLUMNS if name in schema]
    return next(iter(named), strings[0] if len(strings) == 1 else None)


def _parquet_ids(path: Path, asked: str | None) -> pl.Series:
    schema = _parquet_schema(path)
    column = _id_column(path, schema, asked)
    if column is None:
        raise DataError(f"{path}: which column holds the ids? It has {', '.join(schema)}. Give id_column.")
    kind = schema[column]
    if not (kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum)):
        raise DataError(f"{path}: column {column!r} holds {kind}, expected ids (text or whole numbers).")
    return parquet_columns(path, [column])[column].cast(pl.String).alias(columns.RAW)


def parquet_columns(path: Path, names: list[str] | None = None) -> pl.DataFrame:
    """The columns of a Parquet file, all where none are named; raises DataError where its pages are damaged."""
    try:
        return pl.read_parquet(path, columns=names)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: damaged ({first_line(error)}). Fetch it again.") from None


def _read_parquet(
    path: Path, asked: str | None, id_column: str | None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """The vectors, from a column of lists or from one column for each dimension, and which rows have one."""
    schema = _parquet_schema(path)
    if asked is not None and asked not in schema:
        raise DataError(f"{path}: no column {asked!r}.{did_you_mean(asked, schema)}")
    lists = [name for name, kind in schema.items() if isinstance(kind, pl.List | pl.Array) and kind.inner.is_numeric()]
    if asked is None and len(lists) > 1:
        raise DataError(f"{path}: several columns of lists ({', '.join(lists)}). Give vector_column.")
    if asked is None and not lists:
        numbers = pl.scan_parquet(path).select(selectors.numeric()).collect_schema().names()
        numbers = [name for name in numbers if name != _id_column(path, schema, id_column)]
        if not numbers:
            raise DataError(f"{path}: no column of vectors. It has {', '.join(schema)}.")
        frame = parquet_columns(path, numbers)
        return frame.to_numpy(), np.ones(frame.height, dtype=np.bool_)
    name = asked or lists[0]
    if name not in lists:
        raise DataError(f"{path}: column {name!r} holds {schema[name]}, expected lists of numbers.")
    series = parquet_columns(path, [name])[name]
    series = series.arr.to_list() if isinstance(series.dtype, pl.Array) else series
    lengths = series.list.len()
    filled = lengths.is_not_null()
    sizes = lengths.drop_nulls().unique()
    if len(sizes) != 1:
        raise DataError(f"{path}: column {name!r} holds vectors of {len(sizes)} lengths ({sizes.to_list()[:5]}).")
    size = int(sizes[0])
    inner = series.dtype.inner  # type: ignore[attr-defined]
    dense = series.fill_null(pl.lit([0] * size, dtype=pl.List(inner))).list.to_array(size)
    return dense.to_numpy(), filled.to_numpy()


def _read_safetensors(path: Path, asked: str | None) -> npt.NDArray[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            matrices = [key for key, shape in shapes.items() if len(shape) == 2]
            if asked is None and len(matrices) != 1:
                raise DataError(f"{path}: {len(matrices)} matrices among {sorted(shapes)}. Give vector_column.")
            name = asked or matrices[0]
            if name not in shapes:
                raise DataError(f"{path}: no tensor {name!r}.{did_you_mean(name, shapes)}")
            tensor = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a safetensors file ({error}).") from None
    # numpy has no bfloat16.
    found: npt.NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return found


def _read_npy(path: Path) -> npt.NDArray[Any]:
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            raise DataError(f"{path}: an archive of arrays (.npz). Save the one with the vectors by itself.")
    try:
        found: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not an array of numbers in numpy's format ({first_line(error)}).") from None
    return found


def _read_raw(path: Path, rows: int, dim: int | None) -> npt.NDArray[Any]:
    size = path.stat().st_size
    width = dim * 4 if dim is not None else size // rows
    if not size or width % 4 or size != rows * width:
        shape = f"{rows} rows of {dim}" if dim is not None else f"{rows} equal rows of"
        raise DataError(f"{path}: {size} bytes are not {shape} float32 values.")
    return np.memmap(path, dtype="<f4", mode="r", shape=(rows, width // 4))
