"""Which of the vectors in a file belongs to which instance of a domain.

An instance is known by its history: two instances of one user with the same history are the same question, whatever
comes next. A 64-bit key of (user, history) therefore finds an instance's vector in any batch, however it was built.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ckd.data.batch import Batch, Batches
from ckd.data.domain import SPLITS, Domain, columns
from ckd.errors import DataError
from ckd.teachers.vectors_parts.files import VectorFile, describe

USER = "user"
POSITION = "position"
TARGET = "target"
ITEM = "item"
_ROW = "row"
_COUNT = "count"

#: Histories whose keys are computed at a time.
_CHUNK = 16384

Rows = npt.NDArray[np.int64]


def instance_table(domain: Domain) -> pl.DataFrame:
    """One row per instance of every split, in the order of the splits: what a file of user vectors has to cover.

    Columns: `user` (raw id), `position` (place of the target in the user's sequence, from 0), `target` (raw id) and
    `split`. A program that adds a column `vector` and writes the table as Parquet has made such a file.
    """
    raw_items = domain.item_table[columns.RAW]
    tables = []
    for split in SPLITS:
        found = domain.instances(split)
        tables.append(
            pl.DataFrame(
                {
                    USER: domain.user_ids.gather(found.users),
                    POSITION: found.stops - domain.indptr[found.users],
                    TARGET: raw_items.gather(found.targets - 1),
                    "split": pl.Series([split], dtype=pl.String).new_from_index(0, len(found)),
                }
            )
        )
    return pl.concat(tables)


def match_items(file: VectorFile, domain: Domain) -> Rows:
    """(n_items,) the row of `file` that holds the vector of each item 1..n; ids of other items are passed over.

    Raises:
        DataError: the file has no column `item`, an item twice, or an item of the domain not at all.
    """
    keys = _text_key(file, ITEM).select(ITEM)
    _refuse_duplicates(file, keys, "Write each item once.")
    wanted = pl.DataFrame({ITEM: domain.item_table[columns.RAW]})
    return _match(file, wanted, keys, [ITEM], f"items of domain {domain.name!r}")


def match_users(file: VectorFile, domain: Domain) -> tuple[bool, Rows]:
    """Whether vectors are per instance, and the row of `file` for each instance of `instance_table`, or each user.

    The key is `user` with `position` or else `target` where the file has such a column, and `user` alone otherwise.

    Raises:
        DataError: a key is missing, occurs twice, or does not tell the instances apart.
    """
    keys = _text_key(file, USER)
    for by in (POSITION, TARGET):
        if by in keys.columns:
            break
    else:
        keys = keys.select(USER)
        _refuse_duplicates(
            file,
            keys,
            f"Add a column {POSITION!r} or {TARGET!r} to give each instance its own, or write each user once.",
        )
        wanted = pl.DataFrame({USER: domain.user_ids})
        return False, _match(file, wanted, keys, [USER], f"users of domain {domain.name!r}")
    file = VectorFile(file.path, keys, file.vectors)
    keys = (_whole_numbers(file, POSITION) if by == POSITION else _text_key(file, TARGET)).select(USER, by)
    wanted = instance_table(domain)
    if by == TARGET:
        twice = wanted.select(USER, TARGET).is_duplicated().arg_true()
        if len(twice):
            user, target = wanted.select(USER, TARGET).row(int(twice[0]))
            raise DataError(
                f"{file.path}: user {user!r} has target {target!r} more than once in domain {domain.name!r}, "
                f"so {TARGET!r} does not tell the instances apart. Use a column {POSITION!r}."
            )
    _refuse_duplicates(file, keys, "Write each instance once.")
    return True, _match(file, wanted, keys, [USER, by], f"instances of domain {domain.name!r}")


def _text_key(file: VectorFile, name: str) -> pl.DataFrame:
    """The file's ids, `name` as text."""
    if name not in file.keys.columns:
        raise DataError(f"{file.path}: no column {name!r} of raw ids beside the vectors; found {file.keys.columns}.")
    column = file.keys[name]
    if column.null_count():
        raise DataError(
            f"{file.path}: row {int(column.is_null().arg_true()[0])} has no {name}. Every vector needs one."
        )
    if column.dtype != pl.String and not column.dtype.is_integer():
        raise DataError(f"{file.path}: column {name!r} is {column.dtype}, expected text or whole numbers.")
    return file.keys.with_columns(column.cast(pl.String))


def _whole_numbers(file: VectorFile, name: str) -> pl.DataFrame:
    column = file.keys[name]
    number = column.cast(pl.Int64, strict=False) if column.dtype == pl.String or column.dtype.is_integer() else None
    if number is None or number.null_count():
        bad = column[0] if number is None else column[int(number.is_null().arg_true()[0])]
        raise DataError(f"{file.path}: column {name!r} holds {bad!r}, expected whole numbers from 0.")
    return file.keys.with_columns(number)


def _refuse_duplicates(file: VectorFile, keys: pl.DataFrame, remedy: str) -> None:
    twice = keys.is_duplicated()
    if twice.any():
        raise DataError(f"{file.path}: {describe(keys, int(twice.arg_true()[0]))} occurs more than once. {remedy}")


def _match(file: VectorFile, wanted: pl.DataFrame, keys: pl.DataFrame, on: list[str], what: str) -> Rows:
    """Rows of `keys` in the order of `wanted`."""
    left = wanted.select(pl.col(name).cast(keys.schema[name]) for name in on).with_row_index(_COUNT)
    joined = left.join(keys.with_row_index(_ROW), on=on, how="left").sort(_COUNT)
    missing = joined[_ROW].is_null()
    if missing.any():
        first = describe(joined.select(on), int(missing.arg_true()[0]))
        raise DataError(
            f"{file.path}: no vector for {missing.sum():,} of the {len(missing):,} {what}, the first is {first}. "
            "Write one for each."
        )
    return joined[_ROW].to_numpy().astype(np.int64)


def instance_keys(domain: Domain) -> torch.Tensor:
    """(n,) int64 keys of the instances, in the order of `instance_table`."""
    return torch.cat([torch.empty(0, dtype=torch.int64), *_keys_by_chunks(domain)])


def _keys_by_chunks(domain: Domain) -> Iterator[torch.Tensor]:
    for split in SPLITS:
        instances = domain.instances(split)
        batches = Batches(domain, instances)
        for start in range(0, len(instances), _CHUNK):
            yield history_keys(batches(np.arange(start, min(start + _CHUNK, len(instances)))))


def history_keys(batch: Batch) -> torch.Tensor:
    """(B,) int64 key of each instance's user and history; padding and batch mates leave it as it is."""
    items = batch.histories()
    places = torch.arange(1, items.shape[1] + 1, device=items.device)
    mixed = torch.where(items > 0, _mix(items + (places << 40)), 0)
    return _mix(mixed.sum(dim=1) + _mix(batch.users + (1 << 60)))


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64, in wrapping signed arithmetic."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & (1 << 33) - 1)
