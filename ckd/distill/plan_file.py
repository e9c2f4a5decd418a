"""A plan on disk: `batches.parquet`, `schedule.parquet`, `plan.json`. The same plan is the same bytes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

import ckd
from ckd.config import PlanConfig, parse
from ckd.data.atomic import replace_folder, write_json
from ckd.distill.composition import batch_hashes
from ckd.distill.curriculum import Bucket
from ckd.distill.plan import FORMAT, Plan, Tables, frozen, plan_fingerprint, recent
from ckd.errors import StoreError

BATCHES = pa.schema(
    [
        pa.field("batch", pa.uint32(), nullable=False),
        pa.field("hash", pa.uint64(), nullable=False),
        pa.field("bucket", pa.uint32(), nullable=False),
        pa.field("instances", pa.list_(pa.field("element", pa.uint32(), nullable=False)), nullable=False),
    ]
)
SCHEDULE = pa.schema([pa.field(name, pa.uint32(), nullable=False) for name in ("epoch", "stage", "step", "batch")])

#: Ids ascend within a batch, so differences are small; hashes are noise.
ENCODINGS = {"batch": "DELTA_BINARY_PACKED", "bucket": "DELTA_BINARY_PACKED", "hash": "PLAIN"}
OPTIONS: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}

SCHEDULE_ROWS = 1 << 20


def save_plan(plan: Plan, folder: Path) -> None:
    """Write a plan, a composition at a time; see `Plan.save`."""
    with replace_folder(folder) as unfinished:
        _write_batches(plan, unfinished / "batches.parquet")
        _write_schedule(plan.tables, unfinished / "schedule.parquet")
        write_json(
            unfinished / "plan.json",
            {
                **plan.describe(),
                "fingerprint": plan.fingerprint,
                "versions": {"ckd": ckd.__version__, "numpy": np.__version__, "pyarrow": pa.__version__},
            },
        )


def _write_batches(plan: Plan, path: Path) -> None:
    """One row group for each composition, so that reading one is reading a row group."""
    tables = plan.tables
    encodings = {**ENCODINGS, "instances.list.element": "DELTA_BINARY_PACKED"}
    with pq.ParquetWriter(path, BATCHES, column_encoding=encodings, **OPTIONS) as writer:
        for block, (start, stop) in enumerate(zip(tables.blocks[:-1], tables.blocks[1:], strict=True)):
            offsets = (tables.indptr[start : stop + 1] - tables.indptr[start]).astype(np.int32)
            ids = pa.ListArray.from_arrays(
                pa.array(offsets), pa.array(plan.read_block(block)), type=BATCHES.field("instances").type
            )
            batches = pa.array(np.arange(start, stop, dtype=np.uint32))
            hashes, buckets = pa.array(tables.hashes[start:stop]), pa.array(tables.buckets[start:stop])
            table = pa.Table.from_arrays([batches, hashes, buckets, ids], schema=BATCHES)
            writer.write_table(table, row_group_size=max(len(table), 1))


def _write_schedule(tables: Tables, path: Path) -> None:
    encodings = dict.fromkeys(SCHEDULE.names, "DELTA_BINARY_PACKED")
    with pq.ParquetWriter(path, SCHEDULE, column_encoding=encodings, **OPTIONS) as writer:
        for start in range(0, len(tables.order), SCHEDULE_ROWS):
            rows = np.arange(start, min(start + SCHEDULE_ROWS, len(tables.order)))
            epoch = tables.epoch_indptr.searchsorted(rows, side="right") - 1
            values = (epoch, tables.stages[epoch], rows - tables.epoch_indptr[epoch], tables.order[rows])
            writer.write_table(pa.Table.from_arrays([pa.array(v.astype(np.uint32)) for v in values], schema=SCHEDULE))


def load_plan(folder: Path) -> Plan:
    """Read a plan and verify it; see `Plan.load`."""
    meta = _read_meta(folder / "plan.json")
    try:
        plan = _read_plan(folder, meta)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise StoreError(f"{folder}: damaged plan ({reason}). Delete it and run `ckd plan` again.") from None
    found = plan_fingerprint({k: v for k, v in meta.items() if k not in ("fingerprint", "versions")}, plan.tables)
    if found != plan.fingerprint:
        raise StoreError(
            f"{folder}: content hashes to {found}, plan.json says {plan.fingerprint}. "
            "The files were changed: delete the folder and run `ckd plan` again."
        )
    return plan


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_text())
    except FileNotFoundError:
        raise StoreError(f"{path.parent}: no plan here. Run `ckd plan` first.") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not readable ({error}). Delete {path.parent} and run `ckd plan` again.") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise StoreError(f"{path}: format {found!r}, this version reads {FORMAT}. Run `ckd plan` again.")
    return meta


def _read_plan(folder: Path, meta: dict[str, Any]) -> Plan:
    config = parse(PlanConfig, meta["config"], f"{folder}/plan.json")
    batches, held = _read_batches(folder / "batches.parquet", hold=config.pool != "fresh")
    schedule = _read_schedule(folder / "schedule.parquet")
    return Plan(
        config=config,
        seed=meta["seed"],
        domain=meta["domain"],
        n_instances=meta["n_instances"],
        scores=meta["scores"],
        curriculum=tuple(Bucket.from_json(bucket) for bucket in meta["curriculum"]),
        tables=Tables(**{name: frozen(array) for name, array in (batches | schedule).items()}),
        fingerprint=meta["fingerprint"],
        read_block=held.__getitem__ if held else recent(partial(_read_block, folder / "batches.parquet")),
    )


def _read_batches(path: Path, hold: bool) -> tuple[dict[str, npt.NDArray[Any]], list[npt.NDArray[np.uint32]]]:
    """The batches' half of the tables, each batch compared with its hash; with `hold`, the ids as well."""
    hashes, buckets, sizes, blocks, held = [], [], [], [0], []
    with _open(path, BATCHES) as file:
        for group in range(file.metadata.num_row_groups):
            table = file.read_row_group(group, use_threads=False).combine_chunks()
            first, stop = blocks[-1], blocks[-1] + len(table)
            _require_equal(path, "batch", table["batch"].to_numpy(), np.arange(first, stop))
            ids, indptr = _ids(table["instances"])
            hashes.append(table["hash"].to_numpy())
            found = batch_hashes(indptr, ids)
            if not np.array_equal(found, hashes[-1]):
                bad = int(np.flatnonzero(found != hashes[-1])[0])
                raise StoreError(
                    f"{path}: batch {first + bad} hashes to {found[bad]:016x}, its row says {hashes[-1][bad]:016x}. "
                    f"The file was changed: delete {path.parent} and run `ckd plan` again."
                )
            buckets.append(table["bucket"].to_numpy())
            sizes.append(np.diff(indptr))
            blocks.append(stop)
            if hold:
                held.append(frozen(ids))
    arrays = {
        "indptr": np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64),
        "hashes": np.concatenate(hashes),
        "buckets": np.concatenate(buckets),
        "blocks": np.array(blocks, dtype=np.int64),
    }
    return arrays, held


def _read_schedule(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The schedule's half of the tables."""
    with _open(path, SCHEDULE) as file:
        table = file.read(use_threads=False)
    epoch, stage, step, batch = (table[name].to_numpy() for name in SCHEDULE.names)
    starts = np.flatnonzero(np.diff(epoch.astype(np.int64), prepend=-1))
    indptr = np.append(starts, len(epoch)).astype(np.int64)
    steps = np.diff(indptr)
    _require_equal(path, "epoch", epoch, np.repeat(np.arange(len(starts)), steps))
    _require_equal(path, "step", step, np.arange(len(epoch)) - np.repeat(starts, steps))
    _require_equal(path, "stage", stage, np.repeat(stage[starts], steps))
    return {"stages": stage[starts], "epoch_indptr": indptr, "order": batch}


def _read_block(path: Path, block: int) -> npt.NDArray[np.uint32]:
    with _open(path, BATCHES) as file:
        return frozen(_ids(file.read_row_group(block, columns=["instances"], use_threads=False)["instances"])[0])


def _ids(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """The ids of a column of lists, and where each list begins and the last one ends."""
    ids = np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])
    sizes = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks])
    return ids, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _open(path: Path, schema: pa.Schema) -> pq.ParquetFile:
    if not path.is_file():
        raise StoreError(f"{path}: missing. Delete {path.parent} and run `ckd plan` again.")
    file = pq.ParquetFile(path, page_checksum_verification=True)
    if not file.schema_arrow.equals(schema):
        names = ", ".join(file.schema_arrow.names)
        raise StoreError(
            f"{path}: columns {names} are not, or not of the types of, {', '.join(schema.names)}. Run `ckd plan` again."
        )
    return file


def _require_equal(path: Path, name: str, found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    if not np.array_equal(found, expected):
        row = int(np.flatnonzero(found != expected)[0])
        raise StoreError(
            f"{path}: row {row} says {name} {found[row]}, expected {expected[row]}. "
            f"The file was changed: delete {path.parent} and run `ckd plan` again."
        )
