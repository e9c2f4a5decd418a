"""A feature round-trips, belongs to one item list, and never looks whole when it is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ckd.data import features as features_module
from ckd.data.domain import Domain
from ckd.data.features import (
    ItemFeatures,
    item_list_hash,
    list_features,
    load_features,
    read_feature_info,
    save_features,
)
from ckd.errors import ConfigError, DataError


def some_features(n: int, d: int, seed: int = 0, name: str = "text") -> ItemFeatures:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n + 1, d)).astype(np.float32)
    present = rng.random(n + 1) < 0.7
    present[0] = False
    vectors[~present] = 0
    return ItemFeatures(name, vectors, present, {"model": "none"})


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(d=st.integers(1, 40), seed=st.integers(0, 99))
def test_round_trip(domain: Domain, d: int, seed: int) -> None:
    saved = some_features(6, d, seed)
    save_features(domain.folder, saved)
    loaded = load_features(domain, "text")
    assert loaded.vectors.tobytes() == saved.vectors.tobytes()
    assert (loaded.present == saved.present).all()
    assert (loaded.source, loaded.fingerprint, loaded.dim) == (saved.source, saved.fingerprint, d)
    assert loaded.coverage == saved.present.sum() / 6


def test_other_readers_open_the_file_and_bytes_are_reproducible(domain: Domain) -> None:
    saved = some_features(6, 5)
    path = save_features(domain.folder, saved).with_suffix(".safetensors")
    tensors = load_file(path)
    assert (tensors["vectors"] == saved.vectors).all()
    assert (tensors["present"] == saved.present).all()
    # Numbers begin at a multiple of eight bytes, as readers that map the file expect.
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    first = path.read_bytes(), path.with_suffix(".json").read_bytes()
    save_features(domain.folder, saved)
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == first


def test_a_tensor_may_share_the_loaded_memory_without_changing_the_file(domain: Domain) -> None:
    save_features(domain.folder, some_features(6, 5))
    tensor = torch.from_numpy(load_features(domain, "text").vectors)
    tensor.fill_(7)
    assert load_features(domain, "text").fingerprint == some_features(6, 5).fingerprint


def test_blocks_do_not_matter(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = some_features(6, 5)
    whole = save_features(domain.folder, saved).with_suffix(".safetensors").read_bytes()
    monkeypatch.setattr(features_module, "_BLOCK", 2)
    again = some_features(6, 5)
    assert again.fingerprint == saved.fingerprint
    assert save_features(domain.folder, again).with_suffix(".safetensors").read_bytes() == whole


def test_fingerprint_sees_values_presence_and_shape() -> None:
    base = some_features(6, 4)
    changed = base.vectors.copy()
    changed[-1, -1] += 1
    seen = {
        base.fingerprint,
        ItemFeatures("x", changed, base.present).fingerprint,
        ItemFeatures("x", base.vectors, np.zeros(7, dtype=bool)).fingerprint,
        ItemFeatures("x", base.vectors.reshape(7, 2, 2)[:, 0], base.present).fingerprint,
    }
    assert len(seen) == 4
    # Nothing but zeros, and as many bytes of it.
    few, many = (ItemFeatures("x", np.zeros((n, d), np.float32), np.zeros(n, bool)) for n, d in ((5, 2), (9, 1)))
    assert few.fingerprint != many.fingerprint
    assert ItemFeatures("other name", base.vectors, base.present).fingerprint == base.fingerprint


@given(ids=st.lists(st.text(max_size=4), max_size=6), others=st.lists(st.text(max_size=4), max_size=6))
@settings(max_examples=60, deadline=None)
def test_item_lists_with_the_same_hash_are_the_same(ids: list[str], others: list[str]) -> None:
    assert (item_list_hash(ids) == item_list_hash(others)) == (ids == others)


def test_a_feature_of_another_item_list_is_refused(domain: Domain) -> None:
    save_features(domain.folder, some_features(6, 4))
    ids = domain.item_table["raw_id"].reverse()
    other = replace(domain, item_table=domain.item_table.with_columns(ids.alias("raw_id"))).save(domain.folder)
    assert list_features(other.folder) == ["text"], "preparing again keeps the features"
    with pytest.raises(DataError) as error:
        load_features(other, "text")
    message = str(error.value)
    assert "text.json" in message
    assert item_list_hash(domain.item_table["raw_id"]) in message
    assert item_list_hash(ids) in message
    assert "\n" not in message


def test_texts_may_change_without_losing_a_feature(domain: Domain) -> None:
    save_features(domain.folder, some_features(6, 4))
    other = replace(domain, item_table=domain.item_table.with_columns(pl.lit("new").alias("text"))).save(domain.folder)
    assert load_features(other, "text").dim == 4


def test_listing_and_info(domain: Domain) -> None:
    assert list_features(domain.folder) == []
    for name in ("image", "text", "clip-ViT.B_32"):
        save_features(domain.folder, some_features(6, 4, name=name))
    assert list_features(domain.folder) == ["clip-ViT.B_32", "image", "text"]
    info = read_feature_info(domain.folder, "image")
    assert info["dim"] == 4
    assert info["present"] == some_features(6, 4).present.sum()


def test_dots_in_a_name_are_kept(domain: Domain) -> None:
    for name in ("v1.0", "v1.1"):
        save_features(domain.folder, some_features(6, 4, seed=int(name[-1]), name=name))
    assert load_features(domain, "v1.0").fingerprint == some_features(6, 4, seed=0).fingerprint
    assert load_features(domain, "v1.1").fingerprint == some_features(6, 4, seed=1).fingerprint


def test_unknown_feature_names_a_near_one(domain: Domain) -> None:
    save_features(domain.folder, some_features(6, 4, name="image"))
    with pytest.raises(DataError, match=r"no such feature.*Did you mean 'image'"):
        load_features(domain, "imag")


@pytest.mark.parametrize("name", ["", "../up", "a b", ".hidden", "x/y"])
def test_names_that_are_no_file_names(domain: Domain, name: str) -> None:
    with pytest.raises(ConfigError, match="use letters"):
        load_features(domain, name)
    with pytest.raises(ConfigError, match="use letters"):
        save_features(domain.folder, some_features(6, 4, name=name))
    assert list_features(domain.folder) == []


def test_saving_where_no_domain_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ckd prepare"):
        save_features(tmp_path, some_features(6, 4))


def test_domain_in_memory_has_no_features(domain: Domain) -> None:
    with pytest.raises(DataError, match="only in memory"):
        load_features(replace(domain, folder=None), "text")


@pytest.mark.parametrize("n", [5, 7])
def test_wrong_number_of_rows(domain: Domain, n: int) -> None:
    with pytest.raises(DataError, match=rf"holds 6 items.* rows for {n}"):
        save_features(domain.folder, some_features(n, 4))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_never_saved(domain: Domain, value: float) -> None:
    vectors = np.ones((7, 3), dtype=np.float32)
    vectors[0] = 0
    vectors[4, 1] = value
    present = np.arange(7) > 0
    with pytest.raises(DataError, match="item 4 is NaN or infinite"):
        save_features(domain.folder, ItemFeatures("text", vectors, present))
    assert list((domain.folder / "features").iterdir()) == []


def test_a_refused_save_leaves_the_old_feature(domain: Domain) -> None:
    save_features(domain.folder, some_features(6, 4))
    with pytest.raises(DataError, match="not zero though missing"):
        save_features(domain.folder, ItemFeatures("text", np.ones((7, 3), dtype=np.float32), np.arange(7) > 0))
    assert load_features(domain, "text").fingerprint == some_features(6, 4).fingerprint


def test_missing_rows_must_be_zero(domain: Domain) -> None:
    vectors = np.ones((7, 3), dtype=np.float32)
    with pytest.raises(DataError, match="item 0 is not zero though missing"):
        save_features(domain.folder, ItemFeatures("text", vectors, np.arange(7) > 0))


def test_one_number_of_a_missing_row_is_too_many_in_any_block(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "_BLOCK", 2)
    vectors = np.zeros((7, 3), dtype=np.float32)
    vectors[5, 1] = 1
    with pytest.raises(DataError, match="item 5 is not zero though missing"):
        save_features(domain.folder, ItemFeatures("text", vectors, np.zeros(7, dtype=bool)))


@pytest.mark.parametrize(
    ("written", "changed", "message"),
    [
        (b'"F32"', b'"I32"', "holds .*'I32'"),
        (b"[140,147]", b"[139,147]", "bytes, expected"),
    ],
)
def test_a_file_that_says_other_kinds_or_places_is_refused(
    domain: Domain, written: bytes, changed: bytes, message: str
) -> None:
    path = save_features(domain.folder, some_features(6, 5)).with_suffix(".safetensors")
    whole = path.read_bytes()
    assert whole.count(written) == 1
    path.write_bytes(whole.replace(written, changed))
    with pytest.raises(DataError, match=message):
        load_features(domain, "text")


def test_what_macos_puts_beside_a_feature_is_none(domain: Domain) -> None:
    path = save_features(domain.folder, some_features(6, 4))
    path.with_name(f"._{path.name}").touch()
    assert list_features(domain.folder) == ["text"]


def test_an_interrupted_overwrite_leaves_no_feature(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    save_features(domain.folder, some_features(6, 4))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(features_module, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        save_features(domain.folder, some_features(6, 4, seed=1))
    assert list_features(domain.folder) == []


def test_damage_is_found(domain: Domain) -> None:
    meta = save_features(domain.folder, some_features(6, 4))
    data = meta.with_suffix(".safetensors")
    whole, text = data.read_bytes(), meta.read_text()
    flipped = bytearray(whole)
    flipped[-20] ^= 1
    for content, message in (
        (bytes(flipped), "content hashes to"),
        (whole[:-1], "bytes, expected"),
        (whole[:5], "not a feature's"),
        (b"\0" * 64, "not a feature's"),
    ):
        data.write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_features(domain, "text")
    save_file({"vectors": np.zeros((7, 3), np.float32), "present": np.zeros(7, bool)}, data)
    with pytest.raises(DataError, match="expected"):
        load_features(domain, "text")
    data.unlink()
    with pytest.raises(DataError, match="missing though its JSON is there"):
        load_features(domain, "text")
    data.write_bytes(whole)
    for content, message in (
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object, found list"),
        ("{}", "format None"),
        (json.dumps({**json.loads(text), "format": 99}), "format 99"),
        (json.dumps({**json.loads(text), "dim": None}), "dim is None"),
    ):
        meta.write_text(content)
        with pytest.raises(DataError, match=message):
            load_features(domain, "text")
