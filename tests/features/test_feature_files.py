"""Ready-made vectors: every form is read to the same numbers, every fault is one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from typer.testing import CliRunner

from ckd.cli import app
from ckd.data.domain import Domain, leave_one_out
from ckd.data.feature_files import NamedVectors, read_matrix, read_vectors
from ckd.data.features import load_features
from ckd.errors import CkdError, ConfigError, DataError
from ckd.pipelines.encode_items import import_features

IDS = ["i3", "i1", "stranger", "i5"]
VECTORS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def write_npy(folder: Path) -> tuple[Path, Path | None]:
    np.save(folder / "v.npy", VECTORS)
    return folder / "v.npy", id_lines(folder)


def write_fortran(folder: Path) -> tuple[Path, Path | None]:
    np.save(folder / "v.npy", np.asfortranarray(VECTORS.astype(np.float64)))
    return folder / "v.npy", id_lines(folder)


def write_safetensors(folder: Path) -> tuple[Path, Path | None]:
    save_file({"emb": VECTORS, "bias": VECTORS[0]}, folder / "v.safetensors")
    return folder / "v.safetensors", item2index(folder)


def write_raw(folder: Path) -> tuple[Path, Path | None]:
    VECTORS.tofile(folder / "v.feat1CLS")
    return folder / "v.feat1CLS", item2index(folder)


def write_lists(folder: Path) -> tuple[Path, Path | None]:
    pl.DataFrame(
        {"asin": IDS, "vector": VECTORS.tolist()}, schema_overrides={"vector": pl.List(pl.Float32)}
    ).write_parquet(folder / "v.parquet")
    return folder / "v.parquet", None


def write_arrays(folder: Path) -> tuple[Path, Path | None]:
    pl.DataFrame({"n": [1, 2, 3, 4], "name": IDS, "vector": VECTORS}).write_parquet(folder / "v.parquet")
    return folder / "v.parquet", None


def write_columns(folder: Path) -> tuple[Path, Path | None]:
    frame = pl.DataFrame({f"d{k}": VECTORS[:, k] for k in range(3)})
    frame.with_columns(pl.Series("item", IDS)).write_parquet(folder / "v.parquet")
    return folder / "v.parquet", None


def write_parquet_ids(folder: Path) -> tuple[Path, Path | None]:
    np.save(folder / "v.npy", VECTORS)
    pl.DataFrame({"weight": [0.5] * 4, "raw_id": IDS}).write_parquet(folder / "ids.parquet")
    return folder / "v.npy", folder / "ids.parquet"


def id_lines(folder: Path) -> Path:
    (folder / "ids.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(IDS).encode() + b"\r\n\r\n")
    return folder / "ids.txt"


def item2index(folder: Path) -> Path:
    """Not in the order of the rows."""
    (folder / "v.item2index").write_text("".join(f"{IDS[row]}\t{row}\n" for row in (2, 0, 3, 1)))
    return folder / "v.item2index"


WRITERS: list[Callable[[Path], tuple[Path, Path | None]]] = [
    write_npy,
    write_fortran,
    write_safetensors,
    write_raw,
    write_lists,
    write_arrays,
    write_columns,
    write_parquet_ids,
]


def work_of(domain: Domain) -> Path:
    assert domain.folder is not None
    return domain.folder.parents[1]


def read_all(table: NamedVectors) -> dict[str, list[float]]:
    return dict(zip(table.ids, table.take(np.arange(len(table))).tolist(), strict=True))


@pytest.mark.parametrize("write", WRITERS)
def test_every_form_reads_the_same(tmp_path: Path, write: Callable[[Path], tuple[Path, Path | None]]) -> None:
    table = read_vectors(*write(tmp_path), dim=3)
    assert read_all(table) == dict(zip(IDS, VECTORS.tolist(), strict=True))


@pytest.mark.parametrize("write", WRITERS)
def test_import_joins_by_raw_id(
    domain: Domain, tmp_path: Path, write: Callable[[Path], tuple[Path, Path | None]]
) -> None:
    vectors, ids = write(tmp_path)
    result = import_features(work_of(domain), "toy", "clip", vectors, ids)
    assert (result.present, result.missing, result.unknown, result.zero, result.dim) == (3, 3, 1, 0, 3)
    features = load_features(domain, "clip")
    assert result.fingerprint == features.fingerprint
    assert features.present.tolist() == [False, False, True, False, True, False, True]
    for item, row in ((2, 1), (4, 0), (6, 3)):
        assert (features.vectors[item] == VECTORS[row]).all()
    assert not features.vectors[~features.present].any()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 8), d=st.integers(1, 6), shift=st.sampled_from([0, 1]), seed=st.integers(0, 99))
def test_rows_are_where_item2index_says(tmp_path: Path, n: int, d: int, shift: int, seed: int) -> None:
    """Rows from 0, or from 1 with a row of padding before them; in any order of lines."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n + shift, d)).astype(np.float32)
    vectors.tofile(tmp_path / "x.feat")
    rows = rng.permutation(n) + shift
    (tmp_path / "x.item2index").write_text("".join(f"id {row}\t{row}\n" for row in rows))
    table = read_vectors(tmp_path / "x.feat", tmp_path / "x.item2index")
    assert table.dim == d
    assert read_all(table) == {f"id {row}": vectors[row].tolist() for row in rows}


def test_other_number_types(tmp_path: Path) -> None:
    ids = id_lines(tmp_path)
    for dtype in (np.float16, np.float64, np.int8):
        np.save(tmp_path / "v.npy", (VECTORS * 10).astype(dtype))
        got = read_vectors(tmp_path / "v.npy", ids)
        assert (got.take(np.arange(4)) == (VECTORS * 10).astype(dtype).astype(np.float32)).all()
    save_torch({"v": torch.from_numpy(VECTORS).bfloat16()}, tmp_path / "v.safetensors")
    got = read_vectors(tmp_path / "v.safetensors", ids)
    assert np.allclose(got.take(np.arange(4)), VECTORS, rtol=1e-2)


def test_whole_number_ids(tmp_path: Path) -> None:
    pl.DataFrame({"item_id": [7, 11], "v": [[1.0], [2.0]]}).write_parquet(tmp_path / "v.parquet")
    assert read_all(read_vectors(tmp_path / "v.parquet")) == {"7": [1.0], "11": [2.0]}


def test_rows_without_a_vector_are_missing(domain: Domain, tmp_path: Path) -> None:
    pl.DataFrame({"id": ["i0", "i1", "i2"], "v": [[1.0, 2.0], None, [0.0, 0.0]]}).write_parquet(tmp_path / "v.parquet")
    result = import_features(work_of(domain), "toy", "x", tmp_path / "v.parquet")
    assert (result.present, result.zero, result.missing) == (1, 1, 5)
    assert load_features(domain, "x").present.tolist() == [False, True, *[False] * 5]


def test_importing_twice_gives_the_same_bytes(domain: Domain, tmp_path: Path) -> None:
    vectors, ids = write_raw(tmp_path)
    first = import_features(work_of(domain), "toy", "clip", vectors, ids)
    before = first.path.read_bytes(), first.path.with_suffix(".safetensors").read_bytes()
    assert import_features(work_of(domain), "toy", "clip", vectors, ids) == first
    assert (first.path.read_bytes(), first.path.with_suffix(".safetensors").read_bytes()) == before
    assert sorted(p.name for p in first.path.parent.iterdir()) == ["clip.json", "clip.safetensors"]


def check_line(error: CkdError, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error), str(error)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("row", [1, 2])
def test_values_that_are_not_finite(domain: Domain, tmp_path: Path, value: float, row: int) -> None:
    """Of known and of unknown items: the file is damaged either way."""
    vectors = VECTORS.astype(np.float64)
    vectors[row, 2] = value
    np.save(tmp_path / "v.npy", vectors)
    with pytest.raises(DataError) as error:
        import_features(work_of(domain), "toy", "x", tmp_path / "v.npy", id_lines(tmp_path))
    check_line(error.value, "v.npy", f"row {row}", repr(IDS[row]), "nan" if np.isnan(value) else "inf")
    assert not (domain.folder / "features" / "x.json").exists()


def bad_vectors(tmp_path: Path) -> dict[str, tuple[Path, Path | None, dict[str, object], str]]:
    """Every fault with what its line must say."""
    ids = id_lines(tmp_path)
    files = {
        "rows": np.zeros((3, 2)),
        "flat": np.zeros(4),
        "cube": np.zeros((4, 2, 2)),
        "empty": np.zeros((4, 0)),
        "text": np.array([["a"]] * 4),
    }
    for name, array in files.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "pickle.npy", np.array([{}, {}, {}, {}], dtype=object), allow_pickle=True)
    (tmp_path / "broken.npy").write_bytes(b"no")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    (tmp_path / "broken.parquet").write_bytes(b"no")
    (tmp_path / "odd.feat").write_bytes(b"\0" * 50)
    (tmp_path / "void.feat").write_bytes(b"")
    (tmp_path / "good.feat").write_bytes(b"\0" * 48)
    save_file({"a": VECTORS, "b": VECTORS}, tmp_path / "two.safetensors")
    pl.DataFrame({"id": IDS, "a": VECTORS.tolist(), "b": VECTORS.tolist()}).write_parquet(tmp_path / "two.parquet")
    pl.DataFrame({"id": ["x", "y"], "a": [[1.0], [1.0, 2.0]]}).write_parquet(tmp_path / "ragged.parquet")
    pl.DataFrame({"id": IDS}).write_parquet(tmp_path / "bare.parquet")
    pl.DataFrame({"p": IDS, "q": IDS, "a": VECTORS.tolist()}).write_parquet(tmp_path / "which.parquet")
    pl.DataFrame({"id": [0.5, 1.5], "a": [[1.0], [2.0]]}).write_parquet(tmp_path / "floats.parquet")
    return {
        "absent": (tmp_path / "absent.npy", ids, {}, "no such file"),
        "no ids": (tmp_path / "rows.npy", None, {}, "give the ids"),
        "rows": (tmp_path / "rows.npy", ids, {}, "3 rows, but ids for 4"),
        "flat": (tmp_path / "flat.npy", ids, {}, "shape (4,)"),
        "cube": (tmp_path / "cube.npy", ids, {}, "shape (4, 2, 2)"),
        "empty": (tmp_path / "empty.npy", ids, {}, "shape (4, 0)"),
        "text": (tmp_path / "text.npy", ids, {}, "expected numbers"),
        "pickle": (tmp_path / "pickle.npy", ids, {}, "not an array"),
        "broken npy": (tmp_path / "broken.npy", ids, {}, "not an array"),
        "broken safetensors": (tmp_path / "broken.safetensors", ids, {}, "not a safetensors"),
        "broken parquet": (tmp_path / "broken.parquet", None, {}, "not a Parquet"),
        "odd": (tmp_path / "odd.feat", ids, {}, "50 bytes are not 4 equal rows"),
        "void": (tmp_path / "void.feat", ids, {}, "0 bytes"),
        "dim raw": (tmp_path / "good.feat", ids, {"dim": 4}, "48 bytes are not 4 rows of 4"),
        "dim npy": (write_npy(tmp_path)[0], ids, {"dim": 4}, "length 3, but dim=4"),
        "two tensors": (tmp_path / "two.safetensors", ids, {}, "Give vector_column"),
        "wrong tensor": (tmp_path / "two.safetensors", ids, {"vector_column": "c"}, "no tensor 'c'"),
        "two columns": (tmp_path / "two.parquet", None, {}, "Give vector_column"),
        "wrong column": (tmp_path / "two.parquet", None, {"vector_column": "c"}, "no column 'c'"),
        "id as vector": (tmp_path / "two.parquet", None, {"vector_column": "id"}, "expected lists"),
        "ragged": (tmp_path / "ragged.parquet", None, {}, "2 lengths"),
        "bare": (tmp_path / "bare.parquet", None, {}, "no column of vectors"),
        "which id": (tmp_path / "which.parquet", None, {}, "Give id_column"),
        "wrong id": (tmp_path / "two.parquet", None, {"id_column": "idd"}, "Did you mean 'id'"),
        "float ids": (tmp_path / "floats.parquet", None, {}, "expected ids"),
        "column of npy": (tmp_path / "rows.npy", ids, {"vector_column": "v"}, "only Parquet and safetensors"),
        "id column of text": (tmp_path / "rows.npy", ids, {"id_column": "v"}, "no Parquet file"),
    }


def test_a_single_number_is_no_matrix(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.float32(1))
    with pytest.raises(DataError, match=r"one\.npy: shape \(\), expected \(rows, dimensions\)"):
        read_matrix(tmp_path / "one.npy")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vectors", "v.npy", "--model", "m"], "--model m: nothing is encoded"),
        (["--vectors", "v.npy", "--images", "m"], "--images m: nothing is encoded"),
        (["--ids", "i.txt"], "--ids i.txt: is for importing"),
        (["--dim", "3"], "--dim 3: is for importing"),
        (["--vector-column", "v"], "--vector-column v: is for importing"),
        (["--id-column", "i"], "--id-column i: is for importing"),
    ],
)
def test_options_without_effect_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
    done = runner.invoke(app, ["encode-items", "--domain", "toy", "--work", str(tmp_path), *words])
    assert done.exit_code == 2
    assert message in done.output


def test_bad_vectors(tmp_path: Path) -> None:
    for case, (vectors, ids, options, message) in bad_vectors(tmp_path).items():
        with pytest.raises(DataError) as error:
            read_vectors(vectors, ids, **options)  # type: ignore[arg-type]
        assert message in str(error.value), (case, str(error.value))
        assert vectors.name in str(error.value) or "ids.txt" in str(error.value), case
        assert "\n" not in str(error.value), case


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no ids"),
        (b"a\nb\na\nd\n", "'a' comes twice, for rows 0 and 2"),
        (b"a\n\nc\nd\n", "id of row 1 is empty"),
        (b"a\nb\n\xff\nd\n", "ids.txt:3: not UTF-8"),
        (b"a\t0\nb\t1\na\t2\nd\t3\n", "'a' comes twice, for rows 0 and 2"),
        (b"a\t0\nb\t1\nc\t1\nd\t3\n", "row 1 has two ids"),
        (b"a\t0\nb\t1\nc\t3\nd\t4\n", "no id for row 2"),
        (b"a\t2\nb\t3\nc\t4\nd\t5\n", "no id for row 1"),
        (b"a\t0\nb\t1\nc\nd\t3\n", "ids.txt:3: 'c' is not"),
        (b"a\t0\nb\t1\nc\t-1\nd\t3\n", "ids.txt:3"),
        (b"\t0\nb\t1\n", "ids.txt:1"),
        (b"a\t0\nb\t99999999999999999999\n", "ids.txt:2: 'b\\t99999999999999999999' is not"),
        (b"a\t0\nb\t1\nc\t2\nd\t3\ne\t4\n", "4 rows, but ids for 5"),
    ],
)
def test_bad_ids(tmp_path: Path, content: bytes, message: str) -> None:
    vectors, _ = write_npy(tmp_path)
    (tmp_path / "ids.txt").write_bytes(content)
    with pytest.raises(DataError) as error:
        read_vectors(vectors, tmp_path / "ids.txt")
    check_line(error.value, message, "ids.txt")


@pytest.mark.parametrize("name", ["npz.npy", "cut.npy", "lists.parquet", "numbers.parquet", "ids.parquet"])
def test_damaged_files_of_vectors_are_told_in_a_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    (tmp_path / "ids.txt").write_text("\n".join(map(str, range(5000))))
    drawn = np.random.default_rng(0).normal(size=(5000, 2))
    if name.endswith(".npy"):
        with path.open("wb") as file:
            np.savez(file, drawn)
        if name.startswith("cut"):
            path.write_bytes(path.read_bytes()[:40_000])
    else:
        columns = {"lists": {"v": drawn}, "numbers": {"x": drawn[:, 0], "y": drawn[:, 1]}, "ids": {}}[path.stem]
        ids = {"id": drawn[:, 0].astype(str)} if name.startswith("ids") else {}
        pl.DataFrame({**ids, **columns}).write_parquet(path)
        data = bytearray(path.read_bytes())
        data[4 : len(data) // 2] = b"\xff" * (len(data) // 2 - 4)
        path.write_bytes(data)
    vectors = write_npy(tmp_path)[0] if name.startswith("ids") else path
    with pytest.raises(DataError) as error:
        read_vectors(vectors, path if name.startswith("ids") else tmp_path / "ids.txt")
    check_line(error.value, "archive" if name.endswith(".npy") else "damaged", name)


def test_absent_ids(tmp_path: Path) -> None:
    vectors, _ = write_npy(tmp_path)
    for name in ("absent.txt", "absent.parquet"):
        with pytest.raises(DataError, match="no such file"):
            read_vectors(vectors, tmp_path / name)


def test_duplicate_and_null_ids_in_parquet(tmp_path: Path) -> None:
    pl.DataFrame({"id": ["a", "a"], "v": [[1.0], [2.0]]}).write_parquet(tmp_path / "v.parquet")
    with pytest.raises(DataError, match="'a' comes twice, for rows 0 and 1"):
        read_vectors(tmp_path / "v.parquet")
    pl.DataFrame({"id": ["a", None], "v": [[1.0], [2.0]]}).write_parquet(tmp_path / "v.parquet")
    with pytest.raises(DataError, match="id of row 1 is empty"):
        read_vectors(tmp_path / "v.parquet")


def test_nothing_in_common(domain: Domain, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", VECTORS[:2])
    (tmp_path / "ids.txt").write_text("x\ny\n")
    with pytest.raises(DataError) as error:
        import_features(work_of(domain), "toy", "x", tmp_path / "v.npy", tmp_path / "ids.txt")
    check_line(error.value, "none of its 2 ids", "'x'", "'i0'")


def test_bad_name_and_domain(domain: Domain, tmp_path: Path) -> None:
    vectors, ids = write_npy(tmp_path)
    with pytest.raises(ConfigError, match="use letters"):
        import_features(work_of(domain), "toy", "a/b", vectors, ids)
    with pytest.raises(DataError, match="ckd prepare"):
        import_features(work_of(domain), "nowhere", "x", vectors, ids)


def test_real_clip_features_of_scientific(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "scientific"
    raw_ids = [line.split("\t")[0] for line in (folder / "Scientific.item2index").read_text().splitlines()]
    n = len(raw_ids)
    indptr = np.array([0, n])
    table = pl.DataFrame({"item": range(1, n + 1), "raw_id": raw_ids, "text": [""] * n})
    items = np.arange(1, n + 1, dtype=np.int32)
    domain = Domain("scientific", indptr, items, leave_one_out(indptr), table, pl.Series("raw_id", ["u"]))
    domain = domain.save(tmp_path / "domains" / "scientific")
    clip_ids = folder / "clip" / "Scientific.item2index"
    for name, file in (("clip-text", "Scientific.feat1CLS"), ("clip-image", "Scientific.feat3CLS")):
        result = import_features(tmp_path, "scientific", name, folder / "clip" / file, clip_ids)
        assert (result.present, result.missing, result.unknown) == (1585, n - 1585, 0)
        assert (n, result.dim) == (4385, 512)
        features = load_features(domain, name)
        values = np.fromfile(folder / "clip" / file, dtype="<f4").reshape(1585, 512)
        for line in clip_ids.read_text().splitlines()[::100]:
            raw, row = line.split("\t")
            assert (features.vectors[raw_ids.index(raw) + 1] == values[int(row)]).all()
