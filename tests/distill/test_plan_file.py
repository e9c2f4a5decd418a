"""Plans on disk: the same bytes every time, and no changed byte goes unseen."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ckd.config import PlanConfig
from ckd.data.domain import Domain
from ckd.distill.composition import batch_hash
from ckd.distill.plan import Plan, build_plan
from ckd.errors import StoreError

FILES = ("batches.parquet", "plan.json", "schedule.parquet")

VARIANTS = {
    "user": {},
    "instance": {"layout": "instance"},
    "pool of 3": {"pool": 3},
    "fresh": {"pool": "fresh"},
    "no curriculum": {"difficulty": "none"},
}


@pytest.fixture(params=VARIANTS, ids=str)
def plan(request: pytest.FixtureRequest, small_domain: Domain) -> Plan:
    config = PlanConfig(batch_size=64, buckets=3, epochs=7).model_copy(update=VARIANTS[request.param])
    return build_plan(small_domain, config, 11)


@pytest.fixture
def saved(small_domain: Domain, tmp_path: Path) -> Path:
    build_plan(small_domain, PlanConfig(batch_size=64, buckets=2, epochs=4), 11).save(tmp_path / "plan")
    return tmp_path / "plan"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_plan_comes_back_whole(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan")
    loaded = Plan.load(tmp_path / "plan")
    assert loaded.fingerprint == plan.fingerprint
    assert (loaded.config, loaded.seed, loaded.curriculum) == (plan.config, plan.seed, plan.curriculum)
    assert (loaded.domain, loaded.n_instances, loaded.scores) == (plan.domain, plan.n_instances, plan.scores)
    for name, array in vars(plan.tables).items():
        found = getattr(loaded.tables, name)
        assert found.dtype == array.dtype, name
        assert np.array_equal(found, array), name
        assert not found.flags.writeable, name
    for i in reversed(range(plan.n_batches)):
        assert loaded.batch(i).dtype == np.uint32
        assert np.array_equal(loaded.batch(i), plan.batch(i))
        assert not loaded.batch(i).flags.writeable


def test_the_same_plan_is_the_same_bytes(plan: Plan, small_domain: Domain, tmp_path: Path) -> None:
    plan.save(tmp_path / "one")
    Plan.load(tmp_path / "one").save(tmp_path / "two")
    build_plan(small_domain, plan.config, plan.seed).save(tmp_path / "three")
    assert content(tmp_path / "one") == content(tmp_path / "two") == content(tmp_path / "three")
    assert tuple(content(tmp_path / "one")) == FILES


THREADS = """
import hashlib, sys
from pathlib import Path
import numpy as np, polars as pl
from ckd.config import PlanConfig
from ckd.data.domain import Domain, leave_one_out
from ckd.distill.plan import build_plan
indptr = np.arange(0, 3001 * 12, 12, dtype=np.int64)
items = (1 + np.arange(indptr[-1]) ** 2 % 97).astype(np.int32)
table = pl.DataFrame({"item": range(1, 98), "raw_id": [str(i) for i in range(97)], "text": [""] * 97})
users = pl.Series([str(u) for u in range(3000)])
domain = Domain("d", indptr, items, leave_one_out(indptr), table, users)
build_plan(domain, PlanConfig(batch_size=100, epochs=6, layout="instance"), 4).save(Path(sys.argv[1]))
"""


def test_the_number_of_threads_changes_no_byte(tmp_path: Path) -> None:
    names = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "ARROW_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    for threads in ("1", "4"):
        environment = os.environ | dict.fromkeys(names, threads)
        subprocess.run([sys.executable, "-c", THREADS, tmp_path / threads], env=environment, check=True)
    assert content(tmp_path / "1") == content(tmp_path / "4")


def test_the_tables_read_without_ckd(saved: Path) -> None:
    plan = Plan.load(saved)
    batches, schedule = pq.read_table(saved / "batches.parquet"), pq.read_table(saved / "schedule.parquet")
    assert batches.column_names == ["batch", "hash", "bucket", "instances"]
    assert schedule.column_names == ["epoch", "stage", "step", "batch"]
    ids = batches["instances"].to_pylist()
    assert [batch_hash(np.array(b)) for b in ids] == batches["hash"].to_pylist()
    rows = schedule.to_pylist()
    for epoch in range(plan.epochs):
        mine = [row for row in rows if row["epoch"] == epoch]
        assert [row["step"] for row in mine] == list(range(plan.steps_in(epoch)))
        assert [row["batch"] for row in mine] == plan.schedule_of(epoch)[1].tolist()
        assert {row["stage"] for row in mine} == {plan.schedule_of(epoch)[0]}


def change_table(path: Path, change: Callable[[dict[str, list[Any]]], None]) -> None:
    """Rewrite a table with changed values, row groups and checksums in order."""
    with pq.ParquetFile(path) as file:
        schema, groups = file.schema_arrow, [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        columns = file.read().to_pydict()
    change(columns)
    table = pa.Table.from_pydict(columns, schema=schema)
    with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        start = 0
        for rows in groups:
            writer.write_table(table.slice(start, rows))
            start += rows


def one_more(column: str, row: int) -> Callable[[dict[str, list[Any]]], None]:
    def change(columns: dict[str, list[Any]]) -> None:
        columns[column][row] += 1

    return change


def another_id(columns: dict[str, list[Any]]) -> None:
    columns["instances"][1][-1] += 1


def another_id_with_its_hash(columns: dict[str, list[Any]]) -> None:
    another_id(columns)
    columns["hash"][1] = batch_hash(np.array(columns["instances"][1]))


def swapped(columns: dict[str, list[Any]]) -> None:
    columns["batch"][0], columns["batch"][1] = columns["batch"][1], columns["batch"][0]


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("batches", another_id, "batch 1 hashes to [0-9a-f]{16}, its row says [0-9a-f]{16}"),
        ("batches", one_more("hash", 2), "batch 2 hashes to [0-9a-f]{16}, its row says [0-9a-f]{16}"),
        ("batches", another_id_with_its_hash, "content hashes to [0-9a-f]{32}, plan.json says [0-9a-f]{32}"),
        ("batches", one_more("bucket", 0), "content hashes to [0-9a-f]{32}, plan.json says [0-9a-f]{32}"),
        ("batches", one_more("batch", 0), "row 0 says batch 1, expected 0"),
        ("schedule", one_more("batch", 0), "content hashes to [0-9a-f]{32}, plan.json says [0-9a-f]{32}"),
        ("schedule", one_more("step", 3), "row 3 says step"),
        ("schedule", one_more("stage", 1), "row 1 says stage"),
        ("schedule", one_more("epoch", 0), "row 0 says epoch 1, expected 0"),
        ("schedule", swapped, "content hashes to [0-9a-f]{32}, plan.json says [0-9a-f]{32}"),
    ],
)
def test_a_changed_value_is_refused(
    saved: Path, name: str, change: Callable[[dict[str, list[Any]]], None], line: str
) -> None:
    path = saved / f"{name}.parquet"
    change_table(path, lambda columns: None)
    assert Plan.load(saved).epochs == 4  # rewriting alone changes nothing
    change_table(path, change)
    with pytest.raises(StoreError, match=line) as error:
        Plan.load(saved)
    assert str(saved) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [{"seed": 12}, {"domain": "0" * 32}, {"n_instances": 1}, {"scores": "x"}, {"fingerprint": "0" * 32}],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_description_is_refused(saved: Path, change: dict[str, Any]) -> None:
    described = json.loads((saved / "plan.json").read_text())
    (saved / "plan.json").write_text(json.dumps(described | change))
    with pytest.raises(StoreError, match=r"content hashes to [0-9a-f]{32}, plan\.json says [0-9a-f]{32}"):
        Plan.load(saved)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "not readable"),
        ("[]", "format None, this version reads 1"),
        ('{"format": 2}', "format 2, this version reads 1"),
        ('{"format": 1}', "damaged plan"),
        ("\udcff", "not readable"),
    ],
)
def test_a_description_that_is_none_is_refused(saved: Path, text: str, line: str) -> None:
    (saved / "plan.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(StoreError, match=line):
        Plan.load(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(StoreError, match="no plan here" if name == "plan.json" else name):
        Plan.load(saved)


def load_or_line(folder: Path) -> tuple[Plan | None, str]:
    """The plan, or the line that refuses it."""
    try:
        return Plan.load(folder), ""
    except StoreError as error:
        return None, str(error)


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_bit_goes_unseen(saved: Path, name: str) -> None:
    path, good = saved / name, content(saved)[name]
    expected = Plan.load(saved)
    # Every region of the file: magic, page headers, payload, footer.
    for offset in sorted({*range(0, len(good), 29), *range(16), *range(len(good) - 16, len(good))}):
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 1 << offset % 8]) + good[offset + 1 :])
        found, line = load_or_line(saved)
        if found is None:
            assert line.startswith(str(saved))
            assert "\n" not in line
            continue
        # What the change hit was then no content: an unused header field, a recorded version.
        assert found.fingerprint == expected.fingerprint
        assert all(np.array_equal(found.batch(i), expected.batch(i)) for i in range(expected.n_batches))
        assert np.array_equal(found.tables.order, expected.tables.order)


@pytest.mark.parametrize("name", ["batches.parquet", "schedule.parquet"])
@pytest.mark.parametrize("kept", [0, 3, 100, -1])
def test_a_cut_file_is_refused(saved: Path, name: str, kept: int) -> None:
    (saved / name).write_bytes((saved / name).read_bytes()[:kept])
    with pytest.raises(StoreError, match="damaged plan"):
        Plan.load(saved)


def test_other_columns_are_refused(saved: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), saved / "schedule.parquet")
    with pytest.raises(StoreError, match="columns a are not"):
        Plan.load(saved)


def test_a_failure_leaves_no_plan(plan: Plan, tmp_path: Path) -> None:
    def fail(block: int) -> np.ndarray:
        if block == len(plan.tables.blocks) - 2:
            raise OSError("disk full")
        return plan.read_block(block)

    broken = Plan(**{**vars(plan), "read_block": fail})
    with pytest.raises(OSError, match="disk full"):
        broken.save(tmp_path / "plan")
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_a_plan_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no plan here"):
        Plan.load(tmp_path / "absent")


GOLDEN = Path(__file__).parent.parent / "golden_plan.json"


@pytest.mark.parametrize("number", range(len(json.loads(GOLDEN.read_text())["plans"])))
def test_golden_plan(make_domain: Callable[..., Domain], number: int) -> None:
    """Plans of a domain made without a random generator, pinned for every version and machine."""
    recorded = json.loads(GOLDEN.read_text())
    domain = make_domain(**recorded["domain"])
    assert domain.fingerprint == recorded["domain_fingerprint"]
    golden = recorded["plans"][number]
    plan = build_plan(domain, PlanConfig(**golden["config"]), golden["seed"])
    ids = hashlib.blake2b(digest_size=16)
    for i in range(plan.n_batches):
        ids.update(plan.batch(i).astype("<u4").tobytes())
    assert plan.n_batches == golden["n_batches"]
    assert plan.batch(0).tolist() == golden["first_batch"]
    assert plan.schedule_of(0)[1].tolist() == golden["first_epoch"]
    assert f"{plan.hashes[-1]:016x}" == golden["last_hash"]
    assert ids.hexdigest() == golden["instance_ids"]
    assert plan.fingerprint == golden["fingerprint"]
