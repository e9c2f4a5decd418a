"""Several domains as one: what belongs to each stays its own, under numbers and names of the whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from ckd.data.domain import Domain
from ckd.data.features import ItemFeatures
from ckd.data.merge import item_offsets, merge_domains, merge_features, same_encoder
from ckd.errors import ConfigError, DataError

ENCODER = {"kind": "transformers", "weights": "abc", "pooling": "mean"}


@pytest.fixture
def three(tiny: dict[str, Domain]) -> list[Domain]:
    """Domains of unequal size, the longest cap in the middle."""
    whole = list(tiny.values())
    first = replace(whole[0], indptr=whole[0].indptr[:6], items=whole[0].items[: whole[0].indptr[5]])
    first = replace(first, split=first.split[: len(first.items)], user_ids=first.user_ids[:5])
    return [replace(domain, history_cap=cap) for domain, cap in zip((first, *whole[1:]), (7, 9, 8), strict=True)]


def vectors(n: int, seed: int, encoder: Any = None) -> ItemFeatures:
    rng = np.random.default_rng(seed)
    present = rng.random(n + 1) < 0.5
    present[0] = False
    values = rng.normal(size=(n + 1, 3)).astype(np.float32) * present[:, None]
    return ItemFeatures("text", values, present, {} if encoder is None else {"encoder": encoder})


def test_every_users_sequence_is_there_under_the_domains_name(three: list[Domain]) -> None:
    merged = merge_domains(three)
    raw = ["", *merged.item_table["raw_id"].to_list()]
    found = {
        user: [(raw[item], split) for item, split in zip(merged.items[a:b], merged.split[a:b].tolist(), strict=True)]
        for user, a, b in zip(merged.user_ids.to_list(), merged.indptr[:-1], merged.indptr[1:], strict=True)
    }
    expected: dict[str, list[tuple[str, int]]] = {}
    for domain in three:
        names = ["", *domain.item_table["raw_id"].to_list()]
        for number, user in enumerate(domain.user_ids.to_list()):
            a, b = domain.indptr[number : number + 2]
            expected[f"{domain.name}/{user}"] = [
                (f"{domain.name}/{names[item]}", split)
                for item, split in zip(domain.items[a:b], domain.split[a:b].tolist(), strict=True)
            ]
    assert found == expected
    assert list(found) == list(expected)
    assert merged.item_table["text"].to_list() == [t for domain in three for t in domain.item_table["text"].to_list()]
    assert merged.name == "+".join(domain.name for domain in three)


def test_items_come_after_those_of_the_domains_before(three: list[Domain]) -> None:
    sizes = [domain.n_items for domain in three]
    assert item_offsets(three).tolist() == [0, sizes[0], sizes[0] + sizes[1]]


def test_histories_are_as_long_as_the_longest_cap_lets_them_be(three: list[Domain]) -> None:
    assert merge_domains(three).history_cap == 9
    assert merge_domains(three[::2]).history_cap == 8


def test_pictures_of_any_kind_stay_behind(three: list[Domain]) -> None:
    kinds = (pl.lit("1.png"), pl.lit(b"\x89PNG"), None)
    tables = [
        domain.item_table.drop("image", strict=False) if image is None else domain.item_table.with_columns(image=image)
        for domain, image in zip(three, kinds, strict=True)
    ]
    merged = merge_domains([replace(d, item_table=t) for d, t in zip(three, tables, strict=True)])
    assert "image" not in merged.item_table.columns
    assert len(merged.item_table) == sum(map(len, tables))


def test_the_domain_that_is_given_twice_is_named(three: list[Domain]) -> None:
    with pytest.raises(ConfigError, match=rf"domain '{three[1].name}' is given twice"):
        merge_domains([*three, three[1]])


def test_vectors_and_which_are_there_follow_the_items() -> None:
    parts = [vectors(n, n) for n in (3, 5, 2)]
    merged = merge_features(parts)
    assert merged.present.tolist() == [False, *(bool(each) for part in parts for each in part.present[1:])]
    assert merged.vectors[1:].tolist() == [row for part in parts for row in part.vectors[1:].tolist()]
    assert not merged.vectors[0].any()
    assert merged.source == {"merged": [part.fingerprint for part in parts], "encoder": None}


def test_the_encoder_of_some_is_that_of_all() -> None:
    assert merge_features([vectors(2, 1), vectors(2, 2, ENCODER)]).source["encoder"] == ENCODER
    with pytest.raises(DataError, match="different encoders"):
        merge_features([vectors(2, 1), vectors(2, 2, ENCODER), vectors(2, 3, {**ENCODER, "weights": "other"})])


@pytest.mark.parametrize("key", [*ENCODER, "precision", "max_length"])
def test_an_encoder_is_its_kind_weights_and_pooling(key: str) -> None:
    assert same_encoder(ENCODER, {**ENCODER, key: "other"}) == (key not in ENCODER)
