"""What several students share: negatives, fields, and the item attributes of a domain."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ckd.data.batch import Batches
from ckd.data.domain import Domain
from ckd.errors import ConfigError, DataError
from ckd.students.common.fields import HistoryBag, PaddedBag
from ckd.students.common.item_fields import ItemFields, ItemFieldsConfig
from ckd.students.common.negatives import NegativeSampler
from ckd.students.fm import FM, FMConfig


@settings(max_examples=60, deadline=None)
@given(
    n_items=st.integers(1, 9),
    pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=30),
    seed=st.integers(0, 99),
)
def test_negatives_are_all_items_that_a_user_lacks(n_items: int, pairs: list[tuple[int, int]], seed: int) -> None:
    pairs = [(user, 1 + item % n_items) for user, item in pairs]
    users, items = (torch.tensor([pair[side] for pair in pairs], dtype=torch.int64) for side in (0, 1))
    sampler = NegativeSampler(users, items, n_users=4, n_items=n_items)
    torch.manual_seed(seed)
    drawn = sampler(torch.arange(4), n=400)
    everything = set(range(1, n_items + 1))
    for user in range(4):
        allowed = everything - {item for owner, item in pairs if owner == user}
        assert set(drawn[user].tolist()) == (allowed or everything)


def test_negatives_are_uniform_and_follow_the_seed() -> None:
    sampler = NegativeSampler(torch.tensor([0, 0, 1]), torch.tensor([2, 5, 1]), n_users=2, n_items=6)
    torch.manual_seed(1)
    drawn = sampler(torch.zeros(20_000, dtype=torch.int64))[:, 0]
    torch.manual_seed(1)
    assert torch.equal(drawn, sampler(torch.zeros(20_000, dtype=torch.int64))[:, 0])
    shares = torch.bincount(drawn, minlength=7) / len(drawn)
    expected = torch.tensor([0, 0.25, 0, 0.25, 0.25, 0, 0.25])
    torch.testing.assert_close(shares, expected, atol=0.02, rtol=0)


def test_negatives_avoid_the_training_part_and_nothing_else(tiny: dict[str, Domain]) -> None:
    domain = list(tiny.values())[-1]
    sampler = NegativeSampler.of(domain)
    torch.manual_seed(0)
    drawn = sampler(torch.arange(domain.n_users), n=2_000)
    for user in range(domain.n_users):
        part = slice(domain.indptr[user], domain.indptr[user + 1])
        trained = set(domain.items[part][domain.training_part[part]].tolist())
        assert set(drawn[user].tolist()) == set(range(1, domain.n_items + 1)) - trained


def test_histories_of_shared_sequences_sum_as_their_own(tiny: dict[str, Domain]) -> None:
    domain = list(tiny.values())[-1]
    instances = domain.instances("train")
    batch = Batches(domain, instances)(torch.arange(60).numpy())
    assert len(batch.sequences) < len(batch)
    table = nn.Embedding(domain.n_items + 1, 5)
    shared, single = HistoryBag(batch), PaddedBag(batch.histories())
    assert torch.equal(shared.counts, single.counts)
    torch.testing.assert_close(shared.sums(table), single.sums(table))


def described(domain: Domain, **columns: list[str | None]) -> Domain:
    """The domain with other attributes, given for its first items and missing for the rest."""
    missing = [None] * domain.n_items
    series = [
        pl.Series(name, (values + missing)[: domain.n_items], dtype=pl.String) for name, values in columns.items()
    ]
    return replace(domain, item_table=domain.item_table.with_columns(series))


def test_missing_attributes_have_a_number_of_their_own(tiny: dict[str, Domain]) -> None:
    domain = described(list(tiny.values())[-1], brand=["Zoe", None, "Anna", " ", "Zoe"], category=["x"])
    items = ItemFields.of(domain, ItemFieldsConfig())
    assert [spec.name for spec in items.specs] == ["item_id", "brand", "category"]
    assert [spec.size for spec in items.specs] == [domain.n_items + 1, 3, 2]
    assert items.tokens[:7].tolist() == [[0, 0, 0], [1, 2, 1], [2, 0, 0], [3, 1, 0], [4, 0, 0], [5, 2, 0], [6, 0, 0]]
    assert items(torch.tensor([3])).tokens.tolist() == [[3, 1, 0]]


def test_lists_and_numbers_are_read_as_configured(tiny: dict[str, Domain]) -> None:
    domain = described(list(tiny.values())[-1], tags=["b|a|b", "", "c"], price=["10", None, "30", "15"])
    config = ItemFieldsConfig(attributes=(), lists=("tags",), separator="|", numbers=("price",))
    items = ItemFields.of(domain, config)
    assert [(spec.name, spec.kind, spec.size) for spec in items.specs] == [
        ("item_id", "token", domain.n_items + 1),
        ("tags", "list", 4),
        ("price", "number", 2),
    ]
    values = items()
    assert values.lists[0].counts[:5, 0].tolist() == [0, 2, 0, 1, 0]
    assert values.numbers[:6, 0].tolist() == [[1, 0], [0, 1], [1, 0], [1, 1], [0.25, 1], [1, 0]]


def test_an_attribute_that_tells_nothing_is_harmless(tiny: dict[str, Domain]) -> None:
    domain = described(list(tiny.values())[-1], price=["7", "7"], weight=[], brand=[])
    items = ItemFields.of(domain, ItemFieldsConfig(attributes=("brand",), numbers=("price", "weight")))
    assert items.tokens[:, 1].unique().tolist() == [0]
    assert items.numbers[1:4, 0].tolist() == [[0, 1], [0, 1], [1, 0]]
    assert items.numbers[:, 1].unique(dim=0).tolist() == [[1, 0]]


def test_bad_attributes_are_refused_in_one_line(tiny: dict[str, Domain]) -> None:
    domain = described(list(tiny.values())[-1], price=["10", "$3"], width=["nan"])
    for key in ("attributes", "lists", "numbers"):
        with pytest.raises(ConfigError, match=r"no item attribute 'brnd'. Did you mean 'brand'\?$"):
            ItemFields.of(domain, ItemFieldsConfig(**{key: ("brnd",)}))
    with pytest.raises(DataError, match=r"price of item 2 is '\$3', which is no number"):
        ItemFields.of(domain, ItemFieldsConfig(numbers=("price",)))
    with pytest.raises(DataError, match=r"width of item 1 is 'nan'"):
        ItemFields.of(domain, ItemFieldsConfig(numbers=("width",)))


def test_fm_reads_user_history_item_and_attributes(tiny: dict[str, Domain]) -> None:
    domain = list(tiny.values())[-1]
    torch.manual_seed(0)
    model = FM.create(FMConfig(embedding_size=4), domain).eval()
    names = [(spec.name, spec.side) for spec in model.fields.specs]
    expected = [("history", "user"), ("user_id", "user"), ("item_id", "item"), ("brand", "item"), ("category", "item")]
    assert names == expected
    batch = Batches(domain, domain.instances("valid"), share_prefixes=False)(torch.arange(3).numpy())
    before = model.score_items(model.encode(batch))
    offset = domain.n_users
    with torch.no_grad():
        model.token_embedding_table.embedding.weight[offset + 1] += 1.0
    changed = (model.score_items(model.encode(batch)) != before).all(0)
    assert torch.nonzero(changed)[:, 0].tolist() == [1]
