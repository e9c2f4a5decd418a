"""Writing and reading: what comes back, what is refused, and how it streams."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckd.errors import CkdError, StoreError
from ckd.store import BatchIndex, Binding, ScoreReader, Stream, write_store, write_vector_store, zip_readers
from ckd.store.codecs import CODECS

MATRIX_CODECS = ["f16", "u8", "tensor"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("codec", MATRIX_CODECS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_written_is_read(tmp_path: Path, make_case: Any, codec: str, dtype: type) -> None:
    case = make_case(codec=codec)
    manifest = case.write(tmp_path / "s")
    reader = case.open(tmp_path / "s")
    assert len(reader) == case.batches
    assert reader.temperature == 0.07
    assert manifest.rows == int(case.index.rows.sum())
    assert manifest.bytes == sum(path.stat().st_size for path in (tmp_path / "s").glob("part-*.parquet"))
    for batch_id in np.random.default_rng(0).permutation(case.batches).tolist():
        found, exact = reader.read(batch_id, dtype), case.exact(batch_id)
        assert found.dtype == dtype
        # Reading u8 as float16 rounds once more.
        tolerance = CODECS.get(codec).tolerance(exact) + CODECS.get("f16").tolerance(exact)
        assert (np.abs(found - exact) <= tolerance).all()


@given(st.integers(1, 7), st.integers(2, 6), st.integers(1, 8), st.sampled_from(MATRIX_CODECS))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_number_of_batches_and_shards(
    tmp_path_factory: pytest.TempPathFactory, make_case: Any, batches: int, size: int, shard: int, codec: str
) -> None:
    case = make_case(batches=batches, size=size, shard_batches=shard, codec=codec)
    folder = tmp_path_factory.mktemp("s")
    manifest = case.write(folder)
    assert len(manifest.shards) == -(-batches // shard)
    assert case.scored == list(range(batches))
    for batch_id, found in enumerate(case.read(folder)):
        assert (np.abs(found - case.exact(batch_id)) <= CODECS.get(codec).tolerance(case.exact(batch_id))).all()


def test_equal_input_gives_equal_bytes(tmp_path: Path, make_case: Any) -> None:
    for codec in MATRIX_CODECS:
        for name in ("a", "b"):
            make_case(codec=codec).write(tmp_path / codec / name)
        assert files(tmp_path / codec / "a") == files(tmp_path / codec / "b")


def test_a_finished_store_is_not_scored_again(tmp_path: Path, case: Any) -> None:
    first = case.write(tmp_path)
    case.scored.clear()
    assert case.write(tmp_path) == first
    assert case.scored == []


def test_lossy_codecs_record_their_divergence(tmp_path: Path, make_case: Any) -> None:
    assert make_case(codec="f16").write(tmp_path / "f16").quality is None
    case = make_case(codec="u8", size=64)
    quality = case.write(tmp_path / "u8").quality
    assert quality is not None
    assert quality.rows == int(case.index.rows.sum())
    assert 0 < quality.mean <= quality.max < 1e-3


def test_polars_reads_the_tensor_codec(tmp_path: Path, make_case: Any) -> None:
    case = make_case(codec="tensor")
    case.write(tmp_path)
    table = pl.read_parquet(tmp_path / "part-*.parquet").filter(pl.col("batch") == 3).sort("row")
    found = table["scores"].to_numpy()
    np.testing.assert_allclose(found.astype(np.float32), case.exact(3).astype(np.float16), atol=0)


@pytest.mark.parametrize("key", ["domain", "plan", "teacher", "temperature", "similarity", "codec"])
def test_a_store_for_something_else_is_refused(tmp_path: Path, case: Any, key: str) -> None:
    case.write(tmp_path)
    other = 0.5 if key == "temperature" else "other"
    full = replace(case.binding, codec="f16")
    with pytest.raises(StoreError) as refused:
        ScoreReader(tmp_path, replace(full, **{key: other}), case.index)
    message = str(refused.value)
    for part in (str(tmp_path / "manifest.json"), f"{key} {getattr(full, key)}", f"{key} {other}"):
        assert part in message
    assert "\n" not in message


def test_a_store_for_something_else_is_not_overwritten(tmp_path: Path, case: Any) -> None:
    case.write(tmp_path)
    before = files(tmp_path)
    other = replace(case, binding=replace(case.binding, teacher="teacher-b"))
    with pytest.raises(StoreError, match="teacher teacher-a, expected teacher teacher-b"):
        other.write(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"part-00000.parquet: made for teacher teacher-a, expected"):
        other.write(tmp_path)
    case.write(tmp_path)
    assert files(tmp_path) == before


def test_any_temperature_is_read_when_none_is_expected(tmp_path: Path, case: Any) -> None:
    case.write(tmp_path)
    reader = ScoreReader(tmp_path, Binding("domain-a", "plan-a", "teacher-a"), case.index)
    assert reader.temperature == 0.07


def test_a_mismatch_can_be_allowed_and_is_remembered(tmp_path: Path, case: Any) -> None:
    case.write(tmp_path)
    reader = ScoreReader(tmp_path, replace(case.binding, teacher="new"), case.index, allow_mismatch=True)
    assert reader.mismatch == "made for teacher teacher-a, expected teacher new"
    np.testing.assert_array_equal(reader.read(2), case.open(tmp_path).read(2))
    assert case.open(tmp_path).mismatch is None


def test_allowing_a_mismatch_does_not_excuse_another_batch(tmp_path: Path, case: Any) -> None:
    case.write(tmp_path)
    reader = ScoreReader(tmp_path, replace(case.binding, teacher="new"), case.index, allow_mismatch=True)
    object.__setattr__(reader.index, "hashes", reader.index.hashes + np.uint64(1))
    with pytest.raises(StoreError, match="batch 2 has hash"):
        reader.read(2)


def test_another_plan_of_the_same_name_is_refused(tmp_path: Path, case: Any) -> None:
    case.write(tmp_path)
    with pytest.raises(StoreError, match="made for batches"):
        ScoreReader(tmp_path, case.binding, replace(case, seed=1).index)


@pytest.mark.parametrize("codec", MATRIX_CODECS)
def test_the_hash_is_compared_at_every_read(tmp_path: Path, make_case: Any, codec: str) -> None:
    case = make_case(codec=codec)
    case.write(tmp_path)
    reader = case.open(tmp_path)
    wanted = int(reader.index.hashes[5])
    reader.index.hashes[5] += np.uint64(1)
    reader.read(4)
    with pytest.raises(StoreError, match=rf"batch 5 has hash {wanted:016x}, the plan says {wanted + 1:016x}"):
        reader.read(5)


def test_a_batch_that_is_not_planned_is_an_index_error(tmp_path: Path, case: Any) -> None:
    case.write(tmp_path)
    for batch_id in (-1, case.batches):
        with pytest.raises(IndexError):
            case.open(tmp_path).read(batch_id)


def test_no_store_is_said_in_one_line(tmp_path: Path, case: Any) -> None:
    with pytest.raises(StoreError, match=r"manifest.json: no such file, expected the manifest"):
        case.open(tmp_path / "nowhere")


def test_bad_scores_are_refused(tmp_path: Path, case: Any) -> None:
    def bad(value: float) -> Any:
        return lambda ids: ((b, np.full_like(case.exact(b), value)) for b in ids)

    for value in (np.nan, -np.inf, 1.0):
        with pytest.raises(StoreError, match=r"batch 0: log-scores are finite and at most 0"):
            write_store(tmp_path, case.binding, case.index, "f16", bad(value))
    for score, what in (
        (lambda ids: ((b, case.exact(b)[:, :3]) for b in ids), r"expected float32 \(16, 16\)"),
        (lambda ids: ((b, case.exact(b).astype(np.float64)) for b in ids), "expected float32"),
        (lambda ids: ((b, case.exact(b)) for b in reversed(ids)), "out of order"),
        (lambda ids: iter([(0, case.exact(0))]), "no scores for batch 1"),
    ):
        with pytest.raises(ValueError, match=what):
            write_store(tmp_path, case.binding, case.index, "f16", score)
    assert files(tmp_path) == {}


def test_an_empty_plan_and_a_codec_without_matrices_are_refused(tmp_path: Path, case: Any) -> None:
    empty = BatchIndex(np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, np.int32))
    with pytest.raises(StoreError, match="no batches"):
        write_store(tmp_path, case.binding, empty, "f16", case.score)
    with pytest.raises(StoreError, match="write_vector_store"):
        write_store(tmp_path, case.binding, case.index, "vectors", case.score)
    with pytest.raises(CkdError, match="unknown codec 'f17'"):
        write_store(tmp_path, case.binding, case.index, "f17", case.score)


def test_an_index_of_unequal_columns_is_an_error() -> None:
    with pytest.raises(ValueError, match="one length"):
        BatchIndex(np.zeros(2, np.uint64), np.ones(3, np.int32), np.ones(2, np.int32))
    with pytest.raises(ValueError, match="at least one row"):
        BatchIndex(np.zeros(2, np.uint64), np.zeros(2, np.int32), np.ones(2, np.int32))


class TestStream:
    """Reading ahead."""

    @pytest.mark.parametrize(("read_ahead", "threads"), [(1, 1), (8, 1), (3, 4), (100, 2)])
    @pytest.mark.parametrize("codec", MATRIX_CODECS)
    def test_order_and_content(self, tmp_path: Path, make_case: Any, read_ahead: int, threads: int, codec: str) -> None:
        case = make_case(codec=codec)
        case.write(tmp_path)
        order = np.random.default_rng(1).integers(0, case.batches, 40).tolist()
        reader = case.open(tmp_path)
        stream = reader.stream(order, read_ahead=read_ahead, threads=threads)
        found = list(stream)
        assert [batch_id for batch_id, _ in found] == order
        for batch_id, scores in found:
            np.testing.assert_array_equal(scores, reader.read(batch_id))
        assert stream.waited_s > 0

    def test_it_reads_no_further_than_told(self) -> None:
        begun: list[int] = []

        def work(batch_id: int) -> int:
            begun.append(batch_id)
            return batch_id

        taken = iter(Stream(range(100), work, 3, 1))
        next(taken)
        next(taken)
        taken.close()
        assert max(begun) <= 4

    def test_endless_orders_are_taken_as_needed(self) -> None:
        def endless() -> Any:
            while True:
                yield 7

        taken = iter(Stream(endless(), lambda b: b, 2, 1))
        assert [next(taken) for _ in range(5)] == [(7, 7)] * 5
        taken.close()

    def test_an_error_comes_at_its_place(self) -> None:
        def work(batch_id: int) -> int:
            if batch_id == 3:
                raise StoreError("broken")
            return batch_id

        taken = iter(Stream(range(10), work, 8, 2))
        assert [next(taken) for _ in range(3)] == [(0, 0), (1, 1), (2, 2)]
        with pytest.raises(StoreError, match="broken"):
            next(taken)

    def test_leaving_early_stops_the_threads(self, tmp_path: Path, case: Any) -> None:
        case.write(tmp_path)
        before = threading.active_count()
        for _ in case.open(tmp_path).stream(list(range(10)) * 10, threads=3):
            break
        assert threading.active_count() == before

    @pytest.mark.parametrize("bad", [{"read_ahead": 0}, {"threads": 0}])
    def test_nothing_ahead_is_refused(self, tmp_path: Path, case: Any, bad: dict[str, int]) -> None:
        case.write(tmp_path)
        with pytest.raises(ValueError, match="at least 1"):
            case.open(tmp_path).stream([0], **bad)


class TestSeveralTeachers:
    """Readers zipped."""

    def test_one_matrix_from_each(self, tmp_path: Path, make_case: Any) -> None:
        cases = [make_case(), make_case(codec="u8", shard_batches=3), make_case(codec="tensor", shard_batches=100)]
        for number, case in enumerate(cases):
            case.write(tmp_path / str(number))
        zipped = zip_readers([case.open(tmp_path / str(number)) for number, case in enumerate(cases)])
        assert len(zipped) == 10
        for batch_id, matrices in zipped.stream([3, 9, 0], dtype=np.float16):
            assert len(matrices) == 3
            for matrix in matrices:
                assert matrix.dtype == np.float16
                np.testing.assert_allclose(matrix, cases[0].exact(batch_id), atol=0.1)

    @pytest.mark.parametrize("key", ["domain", "plan", "batches"])
    def test_different_plans_are_refused_before_the_first_step(self, tmp_path: Path, make_case: Any, key: str) -> None:
        one = make_case()
        binding = one.binding if key == "batches" else replace(one.binding, **{key: "other"})
        two = make_case(binding=binding, seed=int(key == "batches"))
        one.write(tmp_path / "one")
        two.write(tmp_path / "two")
        with pytest.raises(StoreError, match=f"made for {key} .* expected {key} .*one"):
            zip_readers([one.open(tmp_path / "one"), two.open(tmp_path / "two")])

    def test_none_is_refused(self) -> None:
        with pytest.raises(StoreError, match="no teacher"):
            zip_readers([])

    def test_replacing_one_teacher_leaves_the_others_alone(self, tmp_path: Path, make_case: Any) -> None:
        a, b = make_case(), make_case(binding=replace(make_case().binding, teacher="b"))
        a.write(tmp_path / "a")
        b.write(tmp_path / "b")
        before = files(tmp_path / "a")
        for path in (tmp_path / "b").iterdir():
            path.unlink()
        replace(b, codec="u8").write(tmp_path / "b")
        assert files(tmp_path / "a") == before


class TestVectorStore:
    """Vectors in place of matrices."""

    n, d, n_items = 700, 12, 50

    def parts(self, case: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
        rng = np.random.default_rng(5)
        users = rng.standard_normal((self.n, self.d)).astype(np.float32)
        items = rng.standard_normal((self.n_items + 1, self.d)).astype(np.float32)
        targets = rng.integers(1, self.n_items + 1, self.n)
        ids = [np.random.default_rng([9, b]).integers(0, self.n, case.index.rows[b]) for b in range(case.batches)]
        return users, items, targets, lambda b: (ids[b], targets[ids[b]])

    def write(self, folder: Path, case: Any) -> Any:
        users, items, targets, _ = self.parts(case)

        def encode(ids: range) -> np.ndarray:
            return users[ids.start : ids.stop]

        return write_vector_store(folder, case.binding, case.index, encode, targets, items, shard_instances=300)

    @pytest.mark.parametrize("similarity", ["dot", "cosine"])
    def test_matrices_are_rebuilt(self, tmp_path: Path, make_case: Any, similarity: str) -> None:
        case = make_case(binding=replace(make_case().binding, similarity=similarity, temperature=0.5))
        manifest = self.write(tmp_path, case)
        assert [shard.count for shard in manifest.shards] == [300, 300, 100, self.n_items + 1]
        assert manifest.quality is not None
        assert manifest.quality.rows == self.n
        assert 0 < manifest.quality.mean <= manifest.quality.max < 1e-4
        users, items, _, members = self.parts(case)
        reader = ScoreReader(tmp_path, case.binding, case.index, members=members)
        if similarity == "cosine":
            users, items = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (users, items))
        for batch_id, found in reader.stream([2, 9, 0]):
            ids, targets = members(batch_id)
            for scores, table in ((found, items[targets]), (reader.vectors.catalogue(batch_id), items[1:])):
                logits = users[ids].astype(np.float64) @ table.T.astype(np.float64) / 0.5
                exact = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
                assert scores.shape == exact.shape
                tolerance = CODECS.get("vectors").tolerance(users[ids], table, 0.5)
                assert (np.abs(scores - exact) <= tolerance).all()

    def test_a_second_run_encodes_nothing_and_changes_nothing(self, tmp_path: Path, case: Any) -> None:
        self.write(tmp_path, case)
        before = files(tmp_path)
        self.write(tmp_path, case)
        (tmp_path / "manifest.json").unlink()
        self.write(tmp_path, case)
        assert files(tmp_path) == before

    def test_a_renumbered_catalogue_is_refused(self, tmp_path: Path, case: Any) -> None:
        self.write(tmp_path, case)
        *_, members = self.parts(case)

        def renumbered(batch_id: int) -> tuple[np.ndarray, np.ndarray]:
            ids, targets = members(batch_id)
            return ids, targets % self.n_items + 1

        reader = ScoreReader(tmp_path, case.binding, case.index, members=renumbered)
        with pytest.raises(StoreError, match=r"instance \d+ of batch 1 was stored with item \d+, the plan says"):
            reader.read(1)

    @pytest.mark.parametrize("bad", ["ids", "shape"])
    def test_a_batch_of_other_instances_is_refused(self, tmp_path: Path, case: Any, bad: str) -> None:
        self.write(tmp_path, case)
        *_, members = self.parts(case)

        def other(batch_id: int) -> tuple[np.ndarray, np.ndarray]:
            ids, targets = members(batch_id)
            return (ids + self.n, targets) if bad == "ids" else (ids[1:], targets[1:])

        with pytest.raises(StoreError, match="no instance" if bad == "ids" else "batch 1 has"):
            ScoreReader(tmp_path, case.binding, case.index, members=other).read(1)

    def test_the_plan_is_needed(self, tmp_path: Path, case: Any) -> None:
        self.write(tmp_path, case)
        with pytest.raises(StoreError, match="expected the plan's members"):
            case.open(tmp_path)

    def test_only_vectors_score_the_catalogue(self, tmp_path: Path, case: Any) -> None:
        case.write(tmp_path)
        with pytest.raises(StoreError, match="codec f16 holds in-batch scores"):
            _ = case.open(tmp_path).vectors

    def test_a_flipped_bit_is_found_at_opening(self, tmp_path: Path, case: Any) -> None:
        self.write(tmp_path, case)
        *_, members = self.parts(case)
        path = tmp_path / "part-00001.parquet"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"part-00001.parquet: damaged"):
            ScoreReader(tmp_path, case.binding, case.index, members=members)

    def test_what_cannot_be_rebuilt_is_refused(self, tmp_path: Path, case: Any) -> None:
        users, items, targets, _ = self.parts(case)
        with pytest.raises(StoreError, match="expected dot or cosine"):
            write_vector_store(
                tmp_path, replace(case.binding, similarity=None), case.index, lambda r: users[:1], targets, items
            )
        users[3, 3] = np.nan

        def broken(ids: range) -> np.ndarray:
            return users[ids.start : ids.stop]

        with pytest.raises(StoreError, match="not finite"):
            write_vector_store(tmp_path, case.binding, case.index, broken, targets, items)
