"""Proving a finished store: every byte against its checksum, and a sample against the teacher."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from ckd.errors import StoreError
from ckd.store.binding import BatchIndex, Binding
from ckd.store.codecs.base import divergence
from ckd.store.layout import METADATA, check_footer, columns
from ckd.store.location import Location
from ckd.store.manifest import MANIFEST, Header, Manifest, ShardRecord, damaged
from ckd.store.reader import ScoreReader
from ckd.store.shards import sha256
from ckd.store.writer import group_matches

#: Largest KL(exact || stored) of a row in nats that re-scoring accepts: far above what codecs and the arithmetic of
#: another machine cause, far below the distance between two teachers.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Verified:
    """What was compared, and one line for each file that is not what was written."""

    shards: int
    bytes: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Sampled:
    """Re-scored batches and rows, and the mean and largest KL(exact || stored) of a row in nats."""

    batches: int
    rows: int
    mean_kl: float
    max_kl: float


def verify_store(location: str | Path, expected: Binding | None = None, index: BatchIndex | None = None) -> Verified:
    """Compare every byte of a store with its checksums, and its content with what it should have been made for.

    Args:
        location: the store's folder, a path or a URI.
        expected: what it must have been made for; None leaves that open.
        index: what the plan says of its batches; None leaves that open. Stores of vectors are compared by fingerprint.

    Raises:
        StoreError: there is no readable manifest, or it was made for something else.
    """
    place = Location(location)
    manifest = Manifest.load(place)
    header = manifest.header
    wanted = Header(
        expected or header.binding,
        header.kind,
        index.fingerprint if index else header.index,
        len(index) if index else header.batches,
        header.shard_batches,
    )
    header.require(wanted, place.path(MANIFEST))
    problems = []
    for record in manifest.shards:
        try:
            _verify_shard(place, record, manifest, index)
        except StoreError as error:
            problems.append(str(error))
    problems += [
        f"{place.path(name)}: belongs to no shard of the manifest. Remove it."
        for name in sorted(set(place.sizes()) - {record.file for record in manifest.shards} - {MANIFEST})
        if not name.startswith(".")
    ]
    return Verified(len(manifest.shards), manifest.bytes, tuple(problems))


def _verify_shard(place: Location, record: ShardRecord, manifest: Manifest, index: BatchIndex | None) -> None:
    path = place.path(record.file)
    found = place.sizes().get(record.file)
    if found != record.bytes:
        raise StoreError(f"{path}: {'no such file' if found is None else f'{found} bytes'}, expected {record.bytes}.")
    check_footer(place, record, manifest)
    digest = sha256(place, record.file)
    if digest != record.sha256:
        raise damaged(path, f"content hashes to {digest}, expected {record.sha256}")
    with place.open(record.file) as file:
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        own = json.loads(parquet.metadata.metadata[METADATA])
        Header.from_dict(own, path).require(manifest.header, path)
        if index is None or manifest.header.kind == "vectors":
            return
        small = [name for name in parquet.schema_arrow.names if name not in (columns.PAYLOAD, columns.SCORES)]
        for number in range(parquet.num_row_groups):
            table = parquet.read_row_group(number, columns=small)
            if not group_matches(index, record.first + number, table):
                raise StoreError(f"{path}: batch {record.first + number} is not the plan's. Score again.")


def verify_sample(
    reader: ScoreReader,
    score: Callable[[int], npt.NDArray[np.float32]],
    *,
    fraction: float = 0.01,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> Sampled:
    """Score a random sample of batches again and compare.

    Args:
        reader: the store.
        score: (rows, cols) log-scores of a batch by the teacher, at the store's temperature.
        fraction: of the batches, rounded up.
        seed: of the choice.
        tolerance: largest KL(exact || stored) of a row in nats.

    Raises:
        StoreError: a row differs by more.
    """
    if not 0 < fraction <= 1:
        raise StoreError(f"sample {fraction}: write a share of the batches, above 0 and at most 1.")
    count = max(1, int(np.ceil(fraction * len(reader))))
    chosen = np.sort(np.random.default_rng(seed).choice(len(reader), count, replace=False))
    total, highest, rows = 0.0, 0.0, 0
    for batch_id in chosen.tolist():
        rescored = score(batch_id)
        found = divergence(rescored, reader.read(batch_id))
        if not float(found.max()) <= tolerance:
            raise StoreError(
                f"{reader.location.text}: row {int(found.argmax())} of batch {batch_id} differs from the teacher by "
                f"{float(found.max()):.3g} nats, expected at most {tolerance:g}. Score again."
            )
        total, highest, rows = total + float(found.sum()), max(highest, float(found.max())), rows + len(found)
    return Sampled(count, rows, total / rows, highest)
