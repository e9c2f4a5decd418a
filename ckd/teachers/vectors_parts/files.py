"""Vectors with ids, from the files that other programs write.

| file | vectors | ids |
|---|---|---|
| `.parquet` | column `vector`, lists of numbers of one length | the other columns |
| `.npy` | (n, d) array | the columns of the `.csv` file of the same name beside it, one row to a vector |
| `.safetensors` | the one tensor (n, d) | likewise |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from ckd.data.feature_files import parquet_columns, read_matrix
from ckd.errors import DataError, did_you_mean

VECTOR = "vector"
SUFFIXES = (".npy", ".parquet", ".safetensors")


@dataclass(frozen=True)
class VectorFile:
    """What a file holds.

    Attributes:
        path: the file.
        keys: (n rows) one or more columns of ids.
        vectors: (n, d) float32, finite.
    """

    path: Path
    keys: pl.DataFrame
    vectors: npt.NDArray[np.float32]


def id_file(path: Path) -> Path | None:
    """The CSV file that holds the ids of `path`; none for Parquet, which holds its own."""
    return None if path.suffix == ".parquet" else path.with_suffix(".csv")


def check_exists(path: Path) -> None:
    """Refuse a file of another form, and one that is not there or has no ids beside it.

    Raises:
        DataError: one line with the remedy.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: vectors are read from {', '.join(SUFFIXES)}.{did_you_mean(path.suffix, SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: no such file. Name the file that holds the vectors.")
    ids = id_file(path)
    if ids is not None and not ids.is_file():
        raise DataError(
            f"{ids}: no such file. It must hold the ids of {path.name}, one row to a vector, with a header."
        )


def read_vectors(path: Path) -> VectorFile:
    """Read a file of vectors with its ids.

    Raises:
        DataError: the file is missing, damaged, of another form, or a vector is missing or not finite.
    """
    check_exists(path)
    ids = id_file(path)
    matrix, filled = read_matrix(path, VECTOR if ids is None else None)
    keys = parquet_columns(path).drop(VECTOR) if ids is None else _read_ids(ids)
    if keys.width and keys.height != len(matrix):
        raise DataError(
            f"{ids}: {keys.height} rows of ids, {path.name} has {len(matrix)} vectors. Write one row to each."
        )
    if not len(matrix):
        raise DataError(f"{path}: holds no vectors. Write one for each id.")
    with np.errstate(over="ignore"):
        vectors = np.asarray(matrix).astype(np.float32)
    bad = np.flatnonzero(~filled | ~np.isfinite(vectors).all(axis=1))
    if len(bad):
        row = int(bad[0])
        what = "holds NaN, infinity or a number beyond float32" if filled[row] else "is missing"
        raise DataError(f"{path}: the vector of {describe(keys, row)} {what}. Write it again.")
    return VectorFile(path, keys, vectors)


def describe(keys: pl.DataFrame, row: int) -> str:
    """The ids of a row, for a message: `user 'u7', position 3`."""
    return ", ".join(f"{name} {value!r}" for name, value in zip(keys.columns, keys.row(row), strict=True))


def _read_ids(path: Path) -> pl.DataFrame:
    try:
        return pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise DataError(f"{path}: not a readable CSV file with a header ({reason}). Write it again.") from None
