"""Vectors by content: what an encoder has encoded once, for any domain and any run.

One folder belongs to one encoder identity. It holds blocks, each a safetensors file of keys and vectors under the
hash of its keys; a block appears whole or not at all, and one whose checksum fails is encoded again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ckd.data.atomic import replace_file

#: The two halves of a content's 128-bit key.
KEY = ["key_high", "key_low"]


def content_keys(contents: Iterable[bytes]) -> pl.DataFrame:
    """One row per content: the two halves of its 128-bit hash."""
    joined = b"".join(hashlib.blake2b(content, digest_size=16).digest() for content in contents)
    halves = np.frombuffer(joined, dtype="<u8").reshape(-1, 2)
    return pl.DataFrame({KEY[0]: halves[:, 0], KEY[1]: halves[:, 1]})


class VectorCache:
    """The cached vectors of one encoder.

    Args:
        folder: where the blocks lie; need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._blocks: list[Path] = []
        self._index: list[pl.DataFrame] = []
        self._verified: set[int] = set()
        for path in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="numpy") as file:
                    self._add(path, file.get_tensor("keys"))
            except SafetensorError:
                path.unlink(missing_ok=True)

    def _add(self, path: Path, keys: npt.NDArray[np.uint64]) -> None:
        block = len(self._blocks)
        self._blocks.append(path)
        self._index.append(
            pl.DataFrame({KEY[0]: keys[:, 0], KEY[1]: keys[:, 1]}).with_columns(
                pl.lit(block, dtype=pl.Int64).alias("block"), pl.int_range(len(keys), dtype=pl.Int64).alias("row")
            )
        )

    def find(self, keys: pl.DataFrame) -> pl.DataFrame:
        """`keys` with the columns `block` and `row` where their vector lies, null where there is none; same order.

        Every block that is named has been verified.
        """
        while True:
            empty = pl.DataFrame(schema={**dict.fromkeys(KEY, pl.UInt64), "block": pl.Int64, "row": pl.Int64})
            index = pl.concat([empty, *self._index]).unique(subset=KEY, keep="first", maintain_order=True)
            found = keys.join(index, on=KEY, how="left", maintain_order="left")
            touched = set(found["block"].drop_nulls().unique().to_list())
            damaged = [block for block in sorted(touched - self._verified) if not _is_whole(self._blocks[block])]
            self._verified |= touched - set(damaged)
            if not damaged:
                return found
            for block in damaged:
                self._blocks[block].unlink(missing_ok=True)
                self._index[block] = empty

    def write(self, keys: pl.DataFrame, vectors: npt.NDArray[np.float32]) -> None:
        """Add a block of (n, d) vectors under n keys."""
        table = keys.select(KEY).to_numpy().astype(np.uint64)
        path = self.folder / f"{hashlib.blake2b(table.tobytes(), digest_size=16).hexdigest()}.safetensors"
        tensors = {"keys": np.ascontiguousarray(table), "vectors": np.ascontiguousarray(vectors)}
        with replace_file(path) as partial:
            save_file(tensors, partial, metadata={"checksum": _checksum(**tensors)})
        self._add(path, table)

    def read(self, found: pl.DataFrame) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """Block by block, the column `item` and the vectors of the rows of `found` that have one."""
        for _, rows in found.drop_nulls("block").sort("block", "row").group_by("block", maintain_order=True):
            with safe_open(self._blocks[rows["block"][0]], framework="numpy") as file:
                vectors = file.get_tensor("vectors")
            yield rows["item"].to_numpy(), vectors[rows["row"].to_numpy()]

    @property
    def dim(self) -> int | None:
        """d of the first whole block, None while the cache is empty."""
        for index, path in zip(self._index, self._blocks, strict=True):
            if not index.is_empty():
                with safe_open(path, framework="numpy") as file:
                    return int(file.get_slice("vectors").get_shape()[1])
        return None


def _checksum(keys: npt.NDArray[np.uint64], vectors: npt.NDArray[np.float32]) -> str:
    digest = hashlib.blake2b(json.dumps([keys.shape, vectors.shape]).encode(), digest_size=16)
    digest.update(keys.data)
    digest.update(vectors.data)
    return digest.hexdigest()


def _is_whole(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            expected = (file.metadata() or {}).get("checksum")
            return bool(_checksum(file.get_tensor("keys"), file.get_tensor("vectors")) == expected)
    except SafetensorError:
        return False
