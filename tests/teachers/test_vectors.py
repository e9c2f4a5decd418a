"""The teacher from files: the contract for each way of writing them, and every way of getting them wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ckd.baselines.hetcomp_parts.kept import kept_rankings
from ckd.baselines.hetcomp_parts.rankings import ranking_lists
from ckd.config import RunConfig, TrainConfig, parse
from ckd.data.batch import Batch, Batches
from ckd.data.domain import SPLITS, Domain
from ckd.errors import CkdError, ConfigError, DataError
from ckd.pipelines.finetune_teacher import finetune_teacher, load_teacher
from ckd.teachers.protocol import SelfFinetuning
from ckd.teachers.vectors import Vectors, VectorsConfig
from ckd.teachers.vectors_parts.instances import history_keys, instance_table
from ckd.testing.teacher_contract import TeacherContract

Array = npt.NDArray[Any]


def write(path: Path, keys: pl.DataFrame, vectors: Array) -> Path:
    """A file of vectors in the form that its suffix says."""
    if path.suffix == ".parquet":
        keys.with_columns(pl.Series("vector", vectors.tolist(), dtype=pl.List(pl.Float64))).write_parquet(path)
        return path
    if path.suffix == ".npy":
        np.save(path, vectors)
    else:
        save_file({"anything": vectors}, path)
    keys.write_csv(path.with_suffix(".csv"))
    return path


def vectors_of(n: int, size: int = 6, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((n, size))


def item_keys(domain: Domain) -> pl.DataFrame:
    return domain.item_table.select(pl.col("raw_id").alias("item"))


def user_keys(domain: Domain, by: str) -> pl.DataFrame:
    return pl.DataFrame({"user": domain.user_ids}) if by == "user" else instance_table(domain).select("user", by)


def make(domain: Domain, folder: Path, by: str = "position", suffix: str = ".parquet", **config: Any) -> Vectors:
    """A teacher of random vectors, written in shuffled order."""
    files = {}
    for seed, (name, keys) in enumerate((("items", item_keys(domain)), ("users", user_keys(domain, by)))):
        order = np.random.default_rng(seed).permutation(keys.height)
        files[name] = write(folder / f"{name}{suffix}", keys[order], vectors_of(keys.height, seed=seed)[order])
    return Vectors.create(VectorsConfig(user_vectors=files["users"], item_vectors=files["items"], **config), domain)


class TestVectorsByInstance(TeacherContract):
    by, suffix, similarity = "position", ".parquet", "cosine"

    def make_teacher(self, domain: Domain) -> Vectors:
        assert domain.folder is not None
        return make(domain, domain.folder, self.by, self.suffix, similarity=self.similarity)

    def test_unknown_configuration_keys_are_refused(self, teacher: Any, domain: Domain) -> None:  # type: ignore[override]
        assert domain.folder is not None
        files = {
            name: domain.folder / f"{name.split('_')[0]}s{self.suffix}" for name in ("user_vectors", "item_vectors")
        }
        with pytest.raises(ConfigError, match="surely_no_such_key"):
            parse(VectorsConfig, {**files, "surely_no_such_key": 1}, "teacher")


class TestVectorsByUser(TestVectorsByInstance):
    by, suffix = "user", ".npy"


class TestVectorsByDotProduct(TestVectorsByInstance):
    suffix, similarity = ".safetensors", "dot"


@pytest.fixture(scope="module")
def domain(tiny: dict[str, Domain]) -> Domain:
    return list(tiny.values())[-1]


# --- which vector goes where ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".npy", ".safetensors"])
@pytest.mark.parametrize("by", ["position", "user"])
def test_every_instance_gets_the_vector_that_was_written_for_it(
    domain: Domain, tmp_path: Path, by: str, suffix: str
) -> None:
    teacher = make(domain, tmp_path, by, suffix, similarity="dot")
    expected = torch.from_numpy(vectors_of(user_keys(domain, by).height, seed=1)).float()
    start = 0
    for split in SPLITS:
        instances = domain.instances(split)
        batch = Batches(domain, instances)(np.arange(len(instances)))
        rows = torch.arange(start, start + len(instances)) if by == "position" else batch.users
        assert torch.equal(teacher.encode_instances(batch), expected[rows])
        start += len(instances)
    items = torch.from_numpy(vectors_of(domain.n_items, seed=0)).float()
    assert torch.equal(teacher.encode_items(torch.arange(1, domain.n_items + 1)), items)
    assert not teacher.item_table()[0].any()


def test_cosine_vectors_are_kept_at_length_one(domain: Domain, tmp_path: Path) -> None:
    teacher = make(domain, tmp_path)
    for vectors in (teacher.users, teacher.item_table()[1:]):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_the_target_may_stand_for_the_position(domain: Domain, tmp_path: Path) -> None:
    table = instance_table(domain)
    once = table.filter(~table.select("user", "target").is_duplicated())
    if once.height < table.height:
        pytest.fail("the example repeats items: choose another seed")
    by_target, by_position = (make(domain, tmp_path, by, similarity="dot") for by in ("target", "position"))
    assert torch.equal(by_target.users, by_position.users)
    assert torch.equal(by_target.rows, by_position.rows)


def test_columns_beside_the_key_are_passed_over(domain: Domain, tmp_path: Path) -> None:
    table = instance_table(domain)
    users = write(tmp_path / "users.parquet", table, vectors_of(table.height))
    items = write(tmp_path / "items.parquet", item_keys(domain), vectors_of(domain.n_items))
    teacher = Vectors.create(VectorsConfig(user_vectors=users, item_vectors=items), domain)
    assert len(teacher.users) == table.height


def test_ids_that_the_domain_lacks_are_passed_over(domain: Domain, tmp_path: Path) -> None:
    keys = pl.concat([pl.DataFrame({"item": ["of another shop"]}), item_keys(domain)])
    items = write(tmp_path / "items.npy", keys, vectors_of(keys.height))
    users = write(tmp_path / "users.npy", user_keys(domain, "user"), vectors_of(domain.n_users))
    config = VectorsConfig(user_vectors=users, item_vectors=items, similarity="dot")
    found = Vectors.create(config, domain).encode_items(torch.tensor([1]))
    assert torch.equal(found[0], torch.from_numpy(vectors_of(keys.height)[1]).float())


def test_whole_numbers_serve_as_raw_ids(domain: Domain, tmp_path: Path) -> None:
    numbered = Domain(
        **{
            **{name: getattr(domain, name) for name in ("name", "indptr", "items", "split", "history_cap")},
            "item_table": domain.item_table.with_columns(raw_id=pl.col("item").cast(pl.String)),
            "user_ids": pl.Series("raw_id", [str(u) for u in range(domain.n_users)]),
        }
    )
    items = write(
        tmp_path / "i.parquet", pl.DataFrame({"item": range(1, domain.n_items + 1)}), vectors_of(domain.n_items)
    )
    users = write(tmp_path / "u.parquet", pl.DataFrame({"user": range(domain.n_users)}), vectors_of(domain.n_users))
    teacher = Vectors.create(VectorsConfig(user_vectors=users, item_vectors=items), numbered)
    assert teacher.rows.tolist() == list(range(domain.n_users))


def test_the_temperature_follows_the_similarity(domain: Domain, tmp_path: Path) -> None:
    assert make(domain, tmp_path).temperature == 0.07
    assert make(domain, tmp_path, similarity="dot").temperature == 1.0
    assert make(domain, tmp_path, similarity="dot", temperature=3.0).temperature == 3.0


def test_fine_tuning_trains_nothing_and_measures(domain: Domain, tmp_path: Path) -> None:
    teacher = make(domain, tmp_path)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    assert isinstance(teacher, SelfFinetuning)
    result = teacher.finetune(domain, TrainConfig(), 0, tmp_path, lambda *_: None)
    assert 0.0 < result.metric < 1.0
    assert result.epochs == 0
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_the_configuration_knows_when_a_file_was_written_anew(domain: Domain, tmp_path: Path) -> None:
    make(domain, tmp_path, "user", ".npy")
    files = {"user_vectors": tmp_path / "users.npy", "item_vectors": tmp_path / "items.npy"}
    before = VectorsConfig(**files).model_dump(mode="json")
    assert VectorsConfig(**files).model_dump(mode="json") == before
    ids = tmp_path / "users.csv"
    ids.write_text(ids.read_text() + "\n")
    assert VectorsConfig(**files).model_dump(mode="json") != before


def test_ranking_lists_of_vectors_are_kept(domain: Domain, tmp_path: Path) -> None:
    stored = domain.save(tmp_path / "domains" / domain.name)
    for by in ("user", "position"):
        teacher = make(stored, tmp_path, by)
        files = {"user_vectors": str(tmp_path / "users.parquet"), "item_vectors": str(tmp_path / "items.parquet")}
        done = finetune_teacher(tmp_path, domain.name, "vectors", RunConfig(teacher=files), run=by, keep_rankings=1)
        (lists,) = kept_rankings(done.folder, stored, done.fingerprint)
        assert np.array_equal(lists.items, ranking_lists(teacher, stored))
    # Where all is training, a user's whole training part is the history of no instance.
    bare = replace(stored, split=np.zeros_like(stored.split))
    with pytest.raises(DataError, match=r"histories have no vector.* Write vectors by user to serve any history"):
        ranking_lists(make(bare, tmp_path), bare)


def test_a_run_is_reused_until_a_file_is_written_anew(domain: Domain, tmp_path: Path) -> None:
    stored = domain.save(tmp_path / "domains" / domain.name)
    make(domain, tmp_path, "user")
    files = {"user_vectors": str(tmp_path / "users.parquet"), "item_vectors": str(tmp_path / "items.parquet")}
    done = finetune_teacher(tmp_path, domain.name, "vectors", RunConfig(teacher=files))
    assert set(done.metrics) == {"valid", "test"}
    assert finetune_teacher(tmp_path, domain.name, "vectors", RunConfig(teacher=files)).reused
    write(tmp_path / "users.parquet", user_keys(domain, "user"), vectors_of(domain.n_users, seed=9))
    with pytest.raises(DataError, match=r"config\.content"):
        finetune_teacher(tmp_path, domain.name, "vectors", RunConfig(teacher=files))
    (tmp_path / "users.parquet").unlink()
    teacher, fingerprint, _ = load_teacher(tmp_path, stored, "vectors")
    assert isinstance(teacher, Vectors)
    assert fingerprint == done.fingerprint


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=2, max_size=12), st.integers(0, 3))
def test_the_key_of_a_history_depends_on_user_and_items_alone(histories: list[list[int]], more: int) -> None:
    lengths = torch.tensor([len(h) for h in histories])
    width = int(lengths.max()) + more
    padded = torch.tensor([h + [0] * (width - len(h)) for h in histories])
    users = torch.arange(len(histories)) % 2
    targets = torch.ones(len(histories), dtype=torch.int64)
    keys = history_keys(Batch.from_histories(padded, lengths, targets, users)).tolist()
    wanted = [(user, tuple(history)) for user, history in zip(users.tolist(), histories, strict=True)]
    assert len(set(keys)) == len(set(wanted))
    assert len(set(zip(keys, wanted, strict=True))) == len(set(wanted))


# --- what can be wrong ---------------------------------------------------------------------------------------------


def broken(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path, Domain, str], None]:
    def apply(folder: Path, domain: Domain, name: str) -> None:
        path = folder / f"{name}.parquet"
        change(pl.read_parquet(path)).write_parquet(path)

    return apply


def with_first(column: str, value: Any) -> Callable[[pl.DataFrame], pl.DataFrame]:
    def change(table: pl.DataFrame) -> pl.DataFrame:
        values = [value, *table[column].to_list()[1:]]
        return table.with_columns(pl.Series(column, values, strict=False))

    return change


WRONG = {
    "a missing item": ("items", broken(lambda t: t[1:]), r"no vector for 1 of the 40 items .* item '"),
    "a missing instance": (
        "users",
        broken(lambda t: t[2:]),
        r"no vector for 2 of the .* instances .* user '.*position",
    ),
    "an item twice": ("items", broken(lambda t: pl.concat([t, t[:1]])), "item '.*' occurs more than once"),
    "an instance twice": ("users", broken(lambda t: pl.concat([t, t[:1]])), "position .* occurs more than once"),
    "not a number": ("items", broken(with_first("vector", [float("nan")] * 6)), "item '.*' holds NaN"),
    "infinity": (
        "users",
        broken(with_first("vector", [float("inf")] * 6)),
        "user '.*', position .* holds NaN, infinity or",
    ),
    "beyond float32": ("users", broken(with_first("vector", [1e300] * 6)), "beyond float32"),
    "an odd length": ("items", broken(with_first("vector", [1.0] * 5)), "2 lengths"),
    "no vector": ("items", broken(with_first("vector", None)), "item '.*' is missing"),
    "zero": ("items", broken(with_first("vector", [0.0] * 6)), "is zero and has no direction"),
    "shorter vectors": (
        "items",
        broken(lambda t: t.with_columns(pl.col("vector").list.head(4))),
        "user vectors have 6 numbers, the item vectors .* have 4",
    ),
    "no vectors": ("items", broken(lambda t: t.drop("vector")), "no column 'vector'"),
    "no ids": ("items", broken(lambda t: t.drop("item")), "no column 'item'"),
    "no rows": ("items", broken(lambda t: t[:0]), "items.parquet"),
    "a null id": ("items", broken(with_first("item", None)), "row 0 has no item"),
    "ids with fractions": (
        "items",
        broken(lambda t: t.with_columns(item=pl.lit(0.5))),
        "expected text or whole numbers",
    ),
    "text for vectors": ("items", broken(lambda t: t.with_columns(vector=pl.lit("x"))), "expected lists of numbers"),
    "positions with fractions": (
        "users",
        broken(lambda t: t.with_columns(position=pl.lit(0.5))),
        "column 'position' holds 0.5, expected whole numbers",
    ),
    "positions in words": ("users", broken(lambda t: t.with_columns(position=pl.lit("two"))), "holds 'two'"),
    "users instead of instances": (
        "users",
        broken(lambda t: t.drop("position")),
        "user '.*' occurs more than once. Add a column 'position'",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_refused_in_one_line(domain: Domain, tmp_path: Path, what: str) -> None:
    make(domain, tmp_path)
    name, damage, message = WRONG[what]
    damage(tmp_path, domain, name)
    with pytest.raises(CkdError, match=message) as caught:
        Vectors.create(
            VectorsConfig(user_vectors=tmp_path / "users.parquet", item_vectors=tmp_path / "items.parquet"), domain
        )
    assert f"{name}.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


def spoil_npy(folder: Path) -> None:
    np.save(folder / "items.npy", np.array([{}], dtype=object), allow_pickle=True)


def flatten_npy(folder: Path) -> None:
    np.save(folder / "items.npy", np.ones(4))


def lose_a_row(folder: Path) -> None:
    np.save(folder / "items.npy", np.load(folder / "items.npy")[1:])


def lose_the_ids(folder: Path) -> None:
    (folder / "items.csv").unlink()


def empty_the_ids(folder: Path) -> None:
    (folder / "items.csv").write_text("")


def lose_the_file(folder: Path) -> None:
    (folder / "items.npy").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (spoil_npy, "items.npy: not an array"),
        (flatten_npy, "items.npy: shape"),
        (lose_a_row, "items.csv: 40 rows of ids, items.npy has 39 vectors"),
        (lose_the_ids, "items.csv: no such file"),
        (empty_the_ids, "items.csv: not a readable CSV"),
        (lose_the_file, "items.npy: no such file"),
    ],
)
def test_a_wrong_array_or_its_ids_are_refused_in_one_line(
    domain: Domain, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    make(domain, tmp_path, "user", ".npy")
    damage(tmp_path)
    with pytest.raises(CkdError, match=message) as caught:
        Vectors.create(VectorsConfig(user_vectors=tmp_path / "users.npy", item_vectors=tmp_path / "items.npy"), domain)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v.parquets").write_text("")
    with pytest.raises(CkdError, match=r"Did you mean '\.parquet'"):
        VectorsConfig(user_vectors=tmp_path / "v.parquets", item_vectors=tmp_path / "v.parquets")


def test_a_target_seen_twice_needs_positions(domain: Domain, tmp_path: Path) -> None:
    items = domain.items.copy()
    start = int(domain.indptr[0])
    items[start : start + 3] = items[start]
    repeated = Domain(domain.name, domain.indptr, items, domain.split, domain.item_table, domain.user_ids)
    with pytest.raises(CkdError, match=r"more than once in domain .* Use a column 'position'"):
        make(repeated, tmp_path, "target")
    make(repeated, tmp_path, "position")


def test_a_history_that_is_no_instance_is_refused(domain: Domain, tmp_path: Path) -> None:
    one = torch.ones(1, dtype=torch.int64)
    batch = Batch.from_histories(torch.full((1, 7), 3), one * 7, one, one)
    with pytest.raises(CkdError, match="1 of 1 histories have no vector, the first is of user number 1"):
        make(domain, tmp_path).encode_instances(batch)
    assert make(domain, tmp_path, "user").encode_instances(batch).shape == (1, 6)
