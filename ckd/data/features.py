"""Item features: one float vector per item of a domain, and which items have one.

A feature lies in the domain's folder as `features/<name>.safetensors` with `features/<name>.json` beside it. It is
bound to the domain's list of raw item ids: row i is the vector of item i of that list and of no other. The JSON is
written last, so a feature without one does not exist.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ckd.data.atomic import replace_file, write_json
from ckd.data.described import read_json
from ckd.data.domain import Domain, columns
from ckd.errors import DataError, did_you_mean, file_name

#: Names under which the encoders keep their features unless told otherwise.
TEXT = "text"
DROPPED_TEXT = "text-dropped"
IMAGE = "image"

FORMAT = 1
_FOLDER = "features"
_BLOCK = 16384


@dataclass(frozen=True)
class ItemFeatures:
    """Vectors of a domain's items.

    Attributes:
        name: what the feature is called, such as `text` or `image`.
        vectors: (n_items + 1, d) float32, finite; row 0 (padding) and the rows of items without a vector are zero.
        present: (n_items + 1,) bool, which rows are real.
        source: how the vectors came about (model, pooling, file, counts), for people and for cache keys.
        fingerprint: hash over `vectors` and `present`; computed when not given.
    """

    name: str
    vectors: npt.NDArray[np.float32]
    present: npt.NDArray[np.bool_]
    source: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        assert self.vectors.ndim == 2, self.vectors.shape
        assert self.vectors.dtype == np.float32, self.vectors.dtype
        assert self.present.shape == self.vectors.shape[:1], (self.present.shape, self.vectors.shape)
        assert self.present.dtype == np.bool_, self.present.dtype
        assert not self.present[0], "row 0 is padding"
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", content_fingerprint(self.vectors, self.present))

    @property
    def n_items(self) -> int:
        return len(self.vectors) - 1

    @property
    def dim(self) -> int:
        """d, the length of a vector."""
        return self.vectors.shape[1]

    @property
    def coverage(self) -> float:
        """Share of the items that have a vector, from 0 to 1."""
        return float(np.count_nonzero(self.present)) / max(self.n_items, 1)


def content_fingerprint(vectors: npt.NDArray[np.float32], present: npt.NDArray[np.bool_]) -> str:
    """Hash over shape and content of (n, d) `vectors` and (n,) `present`, read by blocks."""
    digest = hashlib.blake2b(json.dumps(vectors.shape).encode(), digest_size=16)
    digest.update(present.tobytes())
    for start in range(0, len(vectors), _BLOCK):
        digest.update(np.ascontiguousarray(vectors[start : start + _BLOCK]).astype("<f4", copy=False).data)
    return digest.hexdigest()


def item_list_hash(raw_ids: Iterable[str]) -> str:
    """Hash over raw item ids in order: what a feature is bound to."""
    digest = hashlib.blake2b(digest_size=16)
    for raw in raw_ids:
        encoded = raw.encode()
        digest.update(struct.pack("<q", len(encoded)))
        digest.update(encoded)
    return digest.hexdigest()


def feature_path(domain_folder: Path, name: str) -> Path:
    """Where the JSON of a feature lies; its vectors lie beside it."""
    return domain_folder / _FOLDER / f"{file_name('feature', name)}.json"


def save_features(domain_folder: Path, features: ItemFeatures) -> Path:
    """Write a feature into the folder of a prepared domain, in place of one of the same name; returns the JSON's path.

    Vectors are copied by blocks, so that a memory-mapped array of any size may be given.

    Raises:
        ConfigError: the feature's name cannot be a file name.
        DataError: no domain lies there, it has another number of items, or a vector is not finite or not empty where
            it is said to be missing.
    """
    table = domain_folder / "items.parquet"
    if not table.exists():
        raise DataError(f"{domain_folder}: no prepared domain here. Run `ckd prepare` first.")
    raw_ids = pl.read_parquet(table, columns=[columns.RAW])[columns.RAW]
    if features.n_items != len(raw_ids):
        raise DataError(
            f"{table}: holds {len(raw_ids)} items, feature {features.name!r} has rows for {features.n_items}. "
            "Encode the items of this domain again."
        )
    meta = feature_path(domain_folder, features.name)
    data = meta.with_suffix(".safetensors")
    with replace_file(data) as partial:
        _write_tensors(partial, features)
        # From here until the new JSON is there, the feature does not exist.
        meta.unlink(missing_ok=True)
    write_json(
        meta,
        {
            "format": FORMAT,
            "name": features.name,
            "items": item_list_hash(raw_ids),
            "n_items": features.n_items,
            "dim": features.dim,
            "present": int(np.count_nonzero(features.present)),
            "fingerprint": features.fingerprint,
            "source": features.source,
        },
    )
    return meta


def load_features(domain: Domain, name: str) -> ItemFeatures:
    """Read the feature `name` of a saved domain. The vectors are memory-mapped, copy on write.

    Raises:
        ConfigError: `name` cannot name a feature.
        DataError: there is no such feature, it belongs to another item list, or its content was changed.
    """
    if domain.folder is None:
        raise DataError(f"domain {domain.name!r} is only in memory: save it before its features can be read.")
    path = feature_path(domain.folder, name)
    if not path.exists():
        raise DataError(
            f"{path}: no such feature. Run `ckd encode-items --domain {domain.name}` or import one."
            + did_you_mean(name, list_features(domain.folder))
        )
    meta = _read_meta(path)
    expected = item_list_hash(domain.item_table[columns.RAW])
    if meta["items"] != expected:
        raise DataError(
            f"{path}: made for item list {meta['items']}, domain {domain.name!r} has item list {expected}. "
            "Encode or import it again (unchanged items come from the cache)."
        )
    vectors, present = _read_tensors(path.with_suffix(".safetensors"), domain.n_items + 1, meta["dim"])
    found = content_fingerprint(vectors, present)
    if found != meta["fingerprint"]:
        raise DataError(
            f"{path.with_suffix('.safetensors')}: content hashes to {found}, its JSON says {meta['fingerprint']}. "
            "Encode or import the feature again."
        )
    return ItemFeatures(name, vectors, present, meta["source"], found)


def list_features(domain_folder: Path) -> list[str]:
    """Names of the features in a domain's folder, sorted."""
    return sorted(path.stem for path in (domain_folder / _FOLDER).glob("*.json") if not path.name.startswith("."))


def read_feature_info(domain_folder: Path, name: str) -> dict[str, Any]:
    """What a feature's JSON says (dim, present, fingerprint, items, source), without reading its vectors.

    Raises:
        DataError: there is no such feature, or its JSON is damaged.
    """
    return _read_meta(feature_path(domain_folder, name))


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise DataError(f"{path}: no such feature.{did_you_mean(path.stem, list_features(path.parents[1]))}")
    meta = read_json(path, "Encode or import the feature again.")
    if (found := meta.get("format")) != FORMAT:
        raise DataError(f"{path}: format {found!r}, this version reads {FORMAT}. Encode or import the feature again.")
    for key, kind in (("items", str), ("dim", int), ("fingerprint", str), ("source", dict)):
        if not isinstance(meta.get(key), kind):
            raise DataError(f"{path}: {key} is {meta.get(key)!r}. Encode or import the feature again.")
    return meta


def _write_tensors(path: Path, features: ItemFeatures) -> None:
    """A safetensors file, written by blocks: the library's own writer holds a second copy of everything in memory."""
    n, d = features.vectors.shape
    split = n * d * 4
    layout = {
        "vectors": {"dtype": "F32", "shape": [n, d], "data_offsets": [0, split]},
        "present": {"dtype": "BOOL", "shape": [n], "data_offsets": [split, split + n]},
    }
    header = json.dumps(layout, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for start in range(0, n, _BLOCK):
            block = np.ascontiguousarray(features.vectors[start : start + _BLOCK]).astype("<f4", copy=False)
            present = features.present[start : start + _BLOCK]
            bad = np.flatnonzero(~np.isfinite(block).all(axis=1) | (block.any(axis=1) & ~present))
            if len(bad):
                why = "NaN or infinite" if present[bad[0]] else "not zero though missing"
                raise DataError(f"feature {features.name!r}: the vector of item {start + bad[0]} is {why}.")
            file.write(block.data)
        file.write(features.present.tobytes())


def _read_tensors(path: Path, n: int, d: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    expected = {"vectors": ("F32", [n, d]), "present": ("BOOL", [n])}
    remedy = "Encode or import the feature again."
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(size, 1 << 20)))
        spans = {key: header[key]["data_offsets"] for key in expected}
        found = {key: (header[key]["dtype"], header[key]["shape"]) for key in expected}
    except FileNotFoundError:
        raise DataError(f"{path}: missing though its JSON is there. {remedy}") from None
    except (ValueError, KeyError, TypeError, struct.error):
        raise DataError(f"{path}: not a feature's safetensors file. {remedy}") from None
    if found != expected:
        raise DataError(f"{path}: holds {found}, expected {expected}. {remedy}")
    start = 8 + size
    if start + spans["present"][1] != path.stat().st_size or spans["present"] != [n * d * 4, n * d * 4 + n]:
        raise DataError(f"{path}: {path.stat().st_size} bytes, expected {start + n * d * 4 + n}. {remedy}")
    # Copy on write, so that a tensor may share the memory and nobody can change the file.
    vectors = np.memmap(path, dtype="<f4", mode="c", offset=start, shape=(n, d))
    present = np.fromfile(path, dtype=np.bool_, count=n, offset=start + n * d * 4)
    return vectors, present
