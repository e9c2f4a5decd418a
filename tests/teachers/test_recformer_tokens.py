"""Recformer's token sequences and masked words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from ckd.errors import DataError
from ckd.teachers.common.by_length import by_length
from ckd.teachers.recformer_parts import tokenise
from ckd.teachers.recformer_parts.losses import IGNORED
from ckd.teachers.recformer_parts.mask import MASKED, RANDOM, mask_words
from ckd.teachers.recformer_parts.tokenise import (
    FIRST,
    KEY,
    PADDING,
    VALUE,
    ItemTokens,
    SpecialTokens,
    TokenBatch,
    TokenLimits,
    compose,
    newest_first,
    read_tokenizer,
    token_lengths,
    word_starts,
)

SPECIAL = SpecialTokens(first=0, pad=1, mask=2)
LIMITS = TokenLimits(attributes=2, attribute_tokens=6, items=3, tokens=20)


def tokenizer_of(folder: Path) -> Tokenizer:
    return read_tokenizer(AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str(), str(folder))


@pytest.fixture(scope="module")
def letters(tiny_backbone) -> Tokenizer:
    """WordPiece over single letters."""
    return tokenizer_of(tiny_backbone("bert"))


@pytest.fixture(scope="module")
def bytes_(tiny_backbone) -> Tokenizer:
    """Byte-level BPE."""
    return tokenizer_of(tiny_backbone("roberta"))


def spelled(tokens: ItemTokens, item: int, tokenizer: Tokenizer) -> list[tuple[str, int]]:
    low, high = tokens.indptr[item : item + 2]
    return [
        (tokenizer.id_to_token(int(i)), int(t))
        for i, t in zip(tokens.ids[low:high], tokens.types[low:high], strict=True)
    ]


# --- items -----------------------------------------------------------------------------------------------------


def test_attributes_are_keys_and_values_cut_together(letters: Tokenizer) -> None:
    table = pl.DataFrame(
        {"item": [1], "raw_id": ["a"], "title": ["a bc"], "text": ["x"], "tag": ["defghij"], "z": ["q"]}
    )
    found = spelled(ItemTokens.of(table, letters, LIMITS), 1, letters)
    # The third attribute is beyond the limit; every attribute has six tokens, its name included.
    keys = [("t", KEY), ("##i", KEY), ("##t", KEY), ("##l", KEY), ("##e", KEY), ("a", VALUE)]
    assert found == [*keys, ("t", KEY), ("##a", KEY), ("##g", KEY), ("d", VALUE), ("##e", VALUE), ("##f", VALUE)]


def test_a_missing_value_takes_its_name_along_and_an_empty_one_does_not(letters: Tokenizer) -> None:
    table = pl.DataFrame({"u": ["a", "a", "a"], "v": ["b", None, ""]})
    tokens = ItemTokens.of(table, letters, LIMITS)
    assert "".join(token for token, _ in spelled(tokens, 1, letters)) == "uavb"
    assert "".join(token for token, _ in spelled(tokens, 2, letters)) == "ua"
    assert "".join(token for token, _ in spelled(tokens, 3, letters)) == "uav"


def test_an_item_without_values_shows_its_text_or_nothing(letters: Tokenizer) -> None:
    table = pl.DataFrame({"text": ["abcdefghijk", "x", "  ", None], "u": [None, "a", "", None]})
    tokens = ItemTokens.of(table, letters, LIMITS)
    found = spelled(tokens, 1, letters)
    assert len(found) == LIMITS.attributes * LIMITS.attribute_tokens
    assert "".join(token for token, _ in found).replace("##", "") == "title" + "abcdefg"
    assert "".join(token for token, _ in spelled(tokens, 2, letters)) == "ua"
    assert spelled(tokens, 3, letters) == spelled(tokens, 4, letters) == []
    only_text = ItemTokens.of(table.select("text"), letters, LIMITS)
    assert spelled(only_text, 1, letters) == found


def test_tables_without_items_and_tables_without_any_text(letters: Tokenizer) -> None:
    empty = ItemTokens.of(pl.DataFrame({"text": pl.Series([], dtype=pl.String)}), letters, LIMITS)
    assert empty.n_items == 0
    bare = ItemTokens.of(pl.DataFrame({"item": [1, 2]}), letters, LIMITS)
    assert bare.n_items == 2
    assert len(bare.ids) == 0


@pytest.mark.parametrize("special", ["[SEP]", "[MASK]"])
def test_special_tokens_in_a_text_are_text(letters: Tokenizer, special: str) -> None:
    tokens = ItemTokens.of(pl.DataFrame({"u": [f"a {special} b"]}), letters, LIMITS)
    assert letters.token_to_id(special) not in tokens.ids


def test_chunks_make_no_difference(bytes_: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pl.DataFrame({"title": [f"item {i}" if i % 3 else None for i in range(25)], "text": ["some"] * 25})
    whole = ItemTokens.of(table, bytes_, LIMITS)
    monkeypatch.setattr(tokenise, "CHUNK", 4)
    parts = ItemTokens.of(table, bytes_, LIMITS)
    assert whole.fingerprint == parts.fingerprint
    joined = ItemTokens.joined([ItemTokens.of(table[:10], bytes_, LIMITS), ItemTokens.of(table[10:], bytes_, LIMITS)])
    assert joined.fingerprint == whole.fingerprint
    assert ItemTokens.of(table[1:], bytes_, LIMITS).fingerprint != whole.fingerprint


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(DataError, match="here: not a tokenizer"):
        read_tokenizer('{"model": 1}', "here")


# --- sequences -------------------------------------------------------------------------------------------------


@st.composite
def catalogues(draw: st.DrawFn) -> ItemTokens:
    sizes = draw(st.lists(st.integers(0, 7), min_size=1, max_size=6))
    indptr = np.cumsum([0, 0, *sizes])
    ids = np.arange(10, 10 + indptr[-1], dtype=np.int32)
    return ItemTokens(indptr, ids, (1 + ids % 2).astype(np.uint8))


@st.composite
def cases(draw: st.DrawFn) -> tuple[ItemTokens, list[list[int]], TokenLimits]:
    tokens = draw(catalogues())
    sequences = draw(st.lists(st.lists(st.integers(1, tokens.n_items), max_size=6), min_size=1, max_size=5))
    return tokens, sequences, TokenLimits(3, 8, draw(st.integers(1, 5)), draw(st.integers(2, 25)))


def flat(sequences: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    stops = np.cumsum([len(sequence) for sequence in sequences])
    items = np.array([item for sequence in sequences for item in sequence] or [0])
    return items, stops - [len(sequence) for sequence in sequences], stops


@given(cases())
@settings(max_examples=60, deadline=None)
def test_sequences_equal_those_put_together_one_by_one(case: tuple[ItemTokens, list[list[int]], TokenLimits]) -> None:
    tokens, sequences, limits = case
    recent = newest_first(*flat(sequences), limits.items)
    batch = compose(tokens, recent, limits, SPECIAL)
    assert batch.lengths.tolist() == token_lengths(tokens, recent, limits).tolist()
    assert batch.ids.shape[1] == max(batch.lengths.tolist())
    for row, sequence in enumerate(sequences):
        expected = [(SPECIAL.first, FIRST, 0)]
        for place, item in enumerate(sequence[::-1][: limits.items], start=1):
            low, high = tokens.indptr[item : item + 2]
            expected += [(int(tokens.ids[at]), int(tokens.types[at]), place) for at in range(low, high)]
        expected = expected[: limits.tokens]
        expected += [(SPECIAL.pad, PADDING, limits.items)] * (batch.ids.shape[1] - len(expected))
        found = zip(batch.ids[row].tolist(), batch.types[row].tolist(), batch.items[row].tolist(), strict=True)
        assert list(found) == expected


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_passes_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    passes = list(by_length(sizes, budget))
    assert sorted(row for rows in passes for row in rows) == list(range(len(lengths)))
    for rows in passes:
        assert len(rows) == 1 or len(rows) * sizes[rows].max() <= budget


# --- masked words ----------------------------------------------------------------------------------------------

#: Even ids begin a word.
STARTS = np.arange(60) % 2 == 0


def mask(batch: TokenBatch, probability: float, seed: int) -> tuple[TokenBatch, torch.Tensor]:
    return mask_words(batch, STARTS, SPECIAL.mask, probability, np.random.default_rng(seed))


@given(cases(), st.floats(0.05, 0.6), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_whole_words_are_masked_among_real_tokens(
    case: tuple[ItemTokens, list[list[int]], TokenLimits], probability: float, seed: int
) -> None:
    tokens, sequences, limits = case
    batch = compose(tokens, newest_first(*flat(sequences), limits.items), limits, SPECIAL)
    masked, labels = mask(batch, probability, seed)
    chosen = labels != IGNORED
    assert torch.equal(labels[chosen], batch.ids[chosen])
    assert torch.equal(masked.ids[~chosen], batch.ids[~chosen])
    assert not bool(chosen[:, 0].any())
    assert not bool(chosen[~batch.mask].any())
    for row in range(len(batch)):
        length = int(batch.lengths[row])
        ids, types, items = (x[row, :length].tolist() for x in (batch.ids, batch.types, batch.items))
        begins = [
            at for at in range(1, length) if STARTS[ids[at]] or types[at] != types[at - 1] or items[at] != items[at - 1]
        ]
        words = [list(range(low, high)) for low, high in zip(begins, [*begins[1:], length][: len(begins)], strict=True)]
        taken = [word for word in words if bool(chosen[row, word[0]])]
        assert sum(len(word) for word in taken) == int(chosen[row].sum())
        assert all(bool(chosen[row, word].all()) for word in taken)
        room = max(1, round(length * probability))
        assert int(chosen[row].sum()) <= room or taken == [min(words, key=len)]
        assert bool(taken) == (length > 1)


def test_masking_is_a_function_of_the_generator_and_keeps_its_shares() -> None:
    ids = torch.arange(10, 60).repeat(200, 1)
    ids[:, 0] = SPECIAL.first
    types = torch.full_like(ids, VALUE)
    types[:, 0] = FIRST
    batch = TokenBatch(ids, types, (types > 0).long(), torch.full((200,), 50))
    masked, labels = mask(batch, 0.3, seed=4)
    again, labels_again = mask(batch, 0.3, seed=4)
    assert torch.equal(masked.ids, again.ids)
    assert torch.equal(labels, labels_again)
    assert not torch.equal(mask(batch, 0.3, seed=5)[1], labels)
    chosen = labels != IGNORED
    assert float(chosen.float().mean()) == pytest.approx(0.3, abs=0.02)
    became = masked.ids[chosen]
    assert float((became == SPECIAL.mask).float().mean()) == pytest.approx(MASKED, abs=0.03)
    assert float((became == batch.ids[chosen]).float().mean()) == pytest.approx(1 - MASKED - RANDOM, abs=0.03)


def test_names_and_values_begin_words_of_their_own(bytes_: Tokenizer) -> None:
    starts = word_starts(bytes_)
    tokens = ItemTokens.of(pl.DataFrame({"title": ["Glue stick"]}), bytes_, TokenLimits(1, 30, 3, 60))
    pieces = [bytes_.id_to_token(int(i)) for i in tokens.ids]
    # The vocabulary alone sees one word begin: the one with a space before it.
    assert sum(bool(starts[i]) for i in tokens.ids) == sum(piece.startswith("Ġ") for piece in pieces) == 1
    batch = compose(tokens, np.array([[1]]), TokenLimits(1, 30, 3, 60), SPECIAL)
    drawn = set()
    for seed in range(200):
        chosen = mask_words(batch, starts, SPECIAL.mask, 0.5, np.random.default_rng(seed))[1][0] != IGNORED
        drawn |= {at for at in torch.nonzero(chosen).flatten().tolist() if not chosen[at - 1]}
    first_value = 1 + tokens.types.tolist().index(VALUE)
    second_word = 1 + next(at for at, piece in enumerate(pieces) if piece.startswith("Ġ"))
    assert {1, first_value, second_word} == drawn


def test_wordpiece_marks_what_goes_on(letters: Tokenizer) -> None:
    starts = word_starts(letters)
    assert starts[letters.token_to_id("a")]
    assert not starts[letters.token_to_id("##a")]
