"""A domain: the users, items and interactions that everything else works on.

Users are numbered from 0, items from 1; item 0 is padding. A user's interactions lie together in time order in one
flat array. A *training instance* is (history, next item): every interaction of the training part that has a history.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from ckd.data.atomic import replace_folder, write_json
from ckd.data.described import nearest, read_json
from ckd.errors import DataError

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

#: Code of an interaction that only serves as history (a given split may leave some out as targets).
CONTEXT = 3

FORMAT = 1


class columns:
    """Column names of a domain's tables, in one place."""

    USER = "user"
    ITEM = "item"
    SPLIT = "split"
    RAW = "raw_id"
    TEXT = "text"
    IMAGE = "image"


#: Columns of the item table that are not attributes.
RESERVED_ITEM_COLUMNS = (columns.ITEM, columns.RAW, columns.TEXT, columns.IMAGE)


@dataclass(frozen=True)
class Instances:
    """Instances of one split: where each target and its history lie in the flat interaction array.

    Attributes:
        users: (n,) int32, the user of each instance.
        targets: (n,) int32, the item to predict.
        starts: (n,) int64, position of the first item of the history.
        stops: (n,) int64, position of the target, one past the history.
    """

    users: npt.NDArray[np.int32]
    targets: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(n,) number of items in each history, at most the domain's history cap."""
        return self.stops - self.starts


@dataclass(frozen=True)
class Domain:
    """Interactions, items and split of one domain.

    Attributes:
        name: the domain's name, used in paths.
        indptr: (n_users + 1,) int64; user u's interactions are `items[indptr[u]:indptr[u + 1]]`, oldest first.
        items: (n_interactions,) int32 item numbers from 1.
        split: (n_interactions,) uint8; 0 train, 1 valid, 2 test, 3 context only.
        item_table: one row per item 1..n in order: `item`, `raw_id`, `text`, optional `image` (bytes, a path
            counted from the domain's folder, or a web address), and any attributes (`title`, `brand`, `category`, ...
            as strings).
        user_ids: (n_users,) raw user ids.
        history_cap: longest history of an instance, in items.
        folder: where the domain is stored, None while only in memory.
        notes: what preparation did (source, filters), kept beside the data.
    """

    name: str
    indptr: npt.NDArray[np.int64]
    items: npt.NDArray[np.int32]
    split: npt.NDArray[np.uint8]
    item_table: pl.DataFrame
    user_ids: pl.Series
    history_cap: int = 50
    folder: Path | None = None
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def n_users(self) -> int:
        return len(self.indptr) - 1

    @property
    def n_items(self) -> int:
        """Number of items, padding not counted; item numbers run from 1 to this."""
        return self.item_table.height

    @property
    def attributes(self) -> list[str]:
        """Names of the item attributes, in the order of the item table."""
        return [c for c in self.item_table.columns if c not in RESERVED_ITEM_COLUMNS]

    @cached_property
    def fingerprint(self) -> str:
        """Hash over the content: sequences, split, cap, raw ids and item texts in order, but no paths or names."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps([FORMAT, self.history_cap, self.n_users, self.n_items]).encode())
        for array, kind in ((self.indptr, "<i8"), (self.items, "<i4"), (self.split, "u1")):
            digest.update(np.ascontiguousarray(array).astype(kind, copy=False).tobytes())
        _hash_strings(digest, self.user_ids)
        for name in (columns.RAW, columns.TEXT, *self.attributes):
            digest.update(f"\x1e{name}\x1f".encode())
            _hash_strings(digest, self.item_table[name])
        return digest.hexdigest()

    @cached_property
    def user_of(self) -> npt.NDArray[np.int32]:
        """(n_interactions,) int32, the user of each interaction."""
        return np.repeat(np.arange(self.n_users, dtype=np.int32), np.diff(self.indptr))

    def instances(self, split: Split = "train") -> Instances:
        """The instances whose target belongs to `split`, ordered by user and then time.

        An instance's id is its row here. Targets without any history yield no instance.
        """
        positions = np.flatnonzero(self.split == SPLITS.index(split))
        users = self.user_of[positions]
        first = self.indptr[users]
        keep = positions > first
        positions, users, first = positions[keep], users[keep], first[keep]
        return Instances(
            users=users,
            targets=self.items[positions],
            starts=np.maximum(first, positions - self.history_cap),
            stops=positions.astype(np.int64),
        )

    @cached_property
    def training_part(self) -> npt.NDArray[np.bool_]:
        """(n_interactions,) True for every interaction that comes before its user's first valid or test target."""
        held_out = (self.split == 1) | (self.split == 2)
        before = np.cumsum(held_out)
        at_start = np.concatenate([[0], before])[self.indptr[:-1]]
        result: npt.NDArray[np.bool_] = before == at_start[self.user_of]
        return result

    @cached_property
    def popularity(self) -> npt.NDArray[np.int64]:
        """(n_items + 1,) how often each item occurs in the training part; entry 0 is 0."""
        return np.bincount(self.items[self.training_part], minlength=self.n_items + 1)

    def statistics(self) -> dict[str, float]:
        """The columns of the paper's Table 2: users, items, interactions, average length, sparsity."""
        n = len(self.items)
        return {
            "users": self.n_users,
            "items": self.n_items,
            "interactions": n,
            "average_length": n / max(self.n_users, 1),
            "sparsity": 1.0 - n / max(self.n_users * self.n_items, 1),
        }

    def save(self, folder: Path) -> Domain:
        """Write the domain as a folder that appears whole or not at all; returns the domain with its folder set."""
        with replace_folder(folder, keep=("features", "images")) as partial:
            pl.DataFrame(
                {columns.USER: self.user_of, columns.ITEM: self.items, columns.SPLIT: self.split}
            ).write_parquet(partial / "interactions.parquet")
            self.item_table.write_parquet(partial / "items.parquet")
            pl.DataFrame({columns.RAW: self.user_ids}).write_parquet(partial / "users.parquet")
            write_json(
                partial / "domain.json",
                {
                    "format": FORMAT,
                    "name": self.name,
                    "history_cap": self.history_cap,
                    "fingerprint": self.fingerprint,
                    "statistics": self.statistics(),
                    "notes": self.notes,
                },
            )
        return replace(self, folder=folder)

    @classmethod
    def load(cls, folder: Path) -> Domain:
        """Read a prepared domain and check its content against its fingerprint.

        Raises:
            DataError: nothing was prepared there, another format, or the content was changed since.
        """
        meta = _read_meta(folder)
        table = _read_table(folder / "interactions.parquet", (columns.USER, columns.ITEM, columns.SPLIT))
        item_table = _read_table(folder / "items.parquet", (columns.ITEM, columns.RAW, columns.TEXT))
        user_ids = _read_table(folder / "users.parquet", (columns.RAW,))[columns.RAW]
        if not all(kind.is_integer() for kind in table.schema.values()):
            raise DataError(f"{folder}/interactions.parquet: columns must be integers. Prepare the domain again.")
        users = table[columns.USER].to_numpy().astype(np.int64)
        # The hash below covers sequences by their ends alone, and items by their order.
        in_order = len(users) == 0 or (bool((np.diff(users) >= 0).all()) and 0 <= users[0] <= users[-1] < len(user_ids))
        numbered = item_table[columns.ITEM].to_list() == list(range(1, item_table.height + 1))
        if not (in_order and numbered):
            raise DataError(f"{folder}: users or items are out of order; the files were changed. Prepare it again.")
        counts = np.bincount(users, minlength=len(user_ids))
        domain = cls(
            name=meta["name"],
            indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            items=table[columns.ITEM].to_numpy().astype(np.int32),
            split=table[columns.SPLIT].to_numpy().astype(np.uint8),
            item_table=item_table,
            user_ids=user_ids,
            history_cap=meta["history_cap"],
            folder=folder,
            notes=meta["notes"],
        )
        if domain.fingerprint != meta["fingerprint"]:
            raise DataError(
                f"{folder}: content hashes to {domain.fingerprint}, domain.json says {meta['fingerprint']}. "
                "The files were changed by hand: prepare the domain again."
            )
        return domain


def _hash_strings(digest: hashlib.blake2b, column: pl.Series) -> None:
    """Lengths first, then the bytes: no two columns of strings look alike. Nothing counts as the empty string."""
    texts = column.cast(pl.String).fill_null("")
    digest.update(texts.str.len_bytes().to_numpy().astype("<u4").tobytes())
    for part in texts.to_frame().iter_slices(65_536):
        digest.update("".join(part.to_series().to_list()).encode())


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "domain.json"
    if not path.is_file():
        raise DataError(f"{folder}: no prepared domain here. Run `ckd prepare` first.{nearest(folder, path.name)}")
    meta = read_json(path, "Prepare the domain again.")
    if (found := meta.get("format")) != FORMAT:
        raise DataError(f"{path}: format {found!r}, this version reads {FORMAT}. Prepare the domain again.")
    lacking = sorted({"name", "history_cap", "fingerprint", "notes"} - set(meta))
    if lacking:
        raise DataError(f"{path}: no {' and no '.join(lacking)}. Prepare the domain again.")
    return meta


def _read_table(path: Path, wanted: tuple[str, ...]) -> pl.DataFrame:
    try:
        table = pl.read_parquet(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Prepare the domain again.") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: cannot be read ({reason}). Prepare the domain again.") from None
    lacking = [name for name in wanted if name not in table.columns or table[name].null_count()]
    if lacking:
        raise DataError(f"{path}: column {lacking[0]!r} is missing or has gaps. Prepare the domain again.")
    return table


def leave_one_out(indptr: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Split codes of leave-one-out: a user's last item is test, the one before valid, the rest train (paper 4.1.2).

    A user with two items has a test item only, one with a single item has no target at all; both stay as context.
    """
    split = np.zeros(int(indptr[-1]), dtype=np.uint8)
    lengths = np.diff(indptr)
    split[indptr[1:][lengths >= 2] - 1] = 2
    split[indptr[1:][lengths >= 3] - 2] = 1
    return split
