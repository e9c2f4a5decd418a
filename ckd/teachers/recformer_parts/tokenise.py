"""Items and histories as token ids (Recformer section 3.1: items as key-value attribute pairs).

An item's tokens are computed once and kept in flat arrays; a sequence is put together by copying.

Shapes: B sequences, S items of a sequence, newest first, L tokens.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from tokenizers import Tokenizer

from ckd.data.domain import RESERVED_ITEM_COLUMNS, columns
from ckd.errors import DataError

Ints = npt.NDArray[np.int64]

#: Token types.
FIRST, KEY, VALUE, PADDING = range(4)
N_TOKEN_TYPES = 4

#: Rows of the item table that are tokenised at a time.
CHUNK = 8192

#: The key under which an item without attributes shows its text: the one that pre-trained weights know best.
TEXT_KEY = "title"


@dataclass(frozen=True)
class TokenLimits:
    """Where items and sequences are cut.

    Attributes:
        attributes: the first so many attributes of an item are used.
        attribute_tokens: most tokens of one attribute, its name and its value together.
        items: most items of a sequence, the newest.
        tokens: most tokens of a sequence, the leading `<s>` included.
    """

    attributes: int
    attribute_tokens: int
    items: int
    tokens: int


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the first token (`<s>`, or BERT's `[CLS]`), of padding and of the mask."""

    first: int
    pad: int
    mask: int


def read_tokenizer(text: str, where: str) -> Tokenizer:
    """A tokenizer from its JSON form, set up so that special tokens spelled out in a text stay text.

    Raises:
        DataError: `text`, read from `where`, is no tokenizer.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{where}: not a tokenizer ({error}). Give the folder's own tokenizer.json.") from None
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    return tokenizer


def word_starts(tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    """(V,) whether each token of the vocabulary begins a word: for masking whole words.

    Byte-level and sentence-piece vocabularies mark the first token of a word, WordPiece marks all others.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    starts = np.zeros(max(vocabulary.values()) + 1, dtype=np.bool_)
    wordpiece = json.loads(tokenizer.to_str())["model"]["type"] == "WordPiece"
    for token, number in vocabulary.items():
        starts[number] = not token.startswith("##") if wordpiece else token.startswith(("Ġ", "▁"))
    return starts


@dataclass(frozen=True)
class ItemTokens:
    """The tokens of every item, end to end.

    Attributes:
        indptr: (n + 2,) int64; item i's tokens are `ids[indptr[i]:indptr[i + 1]]`, item 0 (padding) has none.
        ids: (T,) int32 token ids.
        types: (T,) uint8 token types, KEY or VALUE.
    """

    indptr: Ints
    ids: npt.NDArray[np.int32]
    types: npt.NDArray[np.uint8]

    @property
    def n_items(self) -> int:
        return len(self.indptr) - 2

    @cached_property
    def fingerprint(self) -> str:
        """Hash over the tokens of all items in order."""
        digest = hashlib.blake2b(digest_size=16)
        for array, kind in ((self.indptr, "<i8"), (self.ids, "<i4"), (self.types, "u1")):
            digest.update(np.ascontiguousarray(array).astype(kind, copy=False).tobytes())
        return digest.hexdigest()

    @classmethod
    def of(cls, table: pl.DataFrame, tokenizer: Tokenizer, limits: TokenLimits) -> ItemTokens:
        """Tokenise an item table, a chunk at a time.

        The attributes are the columns beside the reserved ones, in order. A value that is missing (null) is left out
        with its name; an empty one keeps its name, as in the published code. An item with no value at all shows
        its `text` under the name `title`, with the room of all attributes; without text either it has no tokens.
        """
        names = [c for c in table.columns if c not in RESERVED_ITEM_COLUMNS][: limits.attributes]
        tokenizer.no_truncation()
        keys = [list(tokenizer.encode(name, add_special_tokens=False).ids) for name in names]
        text_key = list(tokenizer.encode(TEXT_KEY, add_special_tokens=False).ids)
        tokenizer.enable_truncation(limits.attributes * limits.attribute_tokens)
        sizes, ids, types = [np.zeros(2, dtype=np.int64)], [], []
        for chunk in table.iter_slices(CHUNK):
            lists = _chunk_tokens(chunk, names, keys, text_key, tokenizer, limits)
            sizes.append(np.fromiter((len(i) for i, _ in lists), np.int64, len(lists)))
            ids.append(np.fromiter((t for i, _ in lists for t in i), np.int32))
            types.append(np.fromiter((t for _, k in lists for t in k), np.uint8))
        return cls(
            np.cumsum(np.concatenate(sizes)),
            np.concatenate([np.zeros(0, np.int32), *ids]),
            np.concatenate([np.zeros(0, np.uint8), *types]),
        )

    @classmethod
    def joined(cls, parts: list[ItemTokens]) -> ItemTokens:
        """The items of several tables as one, each numbered after those before it; item 0 stays padding."""
        sizes = [np.zeros(2, dtype=np.int64), *(np.diff(part.indptr)[1:] for part in parts)]
        return cls(
            np.cumsum(np.concatenate(sizes)),
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.types for part in parts]),
        )


def _chunk_tokens(
    chunk: pl.DataFrame,
    names: list[str],
    keys: list[list[int]],
    text_key: list[int],
    tokenizer: Tokenizer,
    limits: TokenLimits,
) -> list[tuple[list[int], list[int]]]:
    """Token ids and types of each item of a chunk."""
    result: list[tuple[list[int], list[int]]] = [([], []) for _ in range(chunk.height)]
    texts = [_strings(chunk, name) for name in names]
    bare = [all(not values[row] for values in texts) for row in range(chunk.height)]

    def add(key: list[int], values: list[str | None], rows: list[int], room: int) -> None:
        encoded = tokenizer.encode_batch_fast([values[row] or "" for row in rows], add_special_tokens=False)
        for row, encoding in zip(rows, encoded, strict=True):
            ids = (key + encoding.ids)[:room]
            result[row][0].extend(ids)
            result[row][1].extend([KEY if at < len(key) else VALUE for at in range(len(ids))])

    for key, values in zip(keys, texts, strict=True):
        rows = [row for row in range(chunk.height) if not bare[row] and values[row] is not None]
        add(key, values, rows, limits.attribute_tokens)
    if any(bare) and columns.TEXT in chunk.columns:
        fallback = _strings(chunk, columns.TEXT)
        rows = [row for row in range(chunk.height) if bare[row] and (fallback[row] or "").strip()]
        add(text_key, fallback, rows, limits.attributes * limits.attribute_tokens)
    return result


def _strings(chunk: pl.DataFrame, name: str) -> list[str | None]:
    return chunk[name].cast(pl.String).to_list()


@dataclass(frozen=True)
class TokenBatch:
    """B token sequences, right-padded to the longest, L.

    Attributes:
        ids: (B, L) int64 token ids, beginning with the first token.
        types: (B, L) int64 token types.
        items: (B, L) int64 place of the token's item: 0 for the first token, 1 for the newest item, and so on.
        lengths: (B,) int64 number of tokens without padding, at least 1.
    """

    ids: torch.Tensor
    types: torch.Tensor
    items: torch.Tensor
    lengths: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def mask(self) -> torch.Tensor:
        """(B, L) bool, True for tokens that are no padding."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(*(x.to(device) for x in (self.ids, self.types, self.items, self.lengths)))


def newest_first(items: npt.NDArray[Any], starts: Ints, stops: Ints, most: int) -> Ints:
    """(B, S) the last `most` items of `items[start:stop]`, newest first, padded with 0."""
    widths = np.minimum(stops - starts, most)
    steps = np.arange(int(widths.max(initial=0)))
    at = np.maximum(stops[:, None] - 1 - steps, 0)
    return np.where(steps < widths[:, None], items[at], 0).astype(np.int64)


def token_lengths(tokens: ItemTokens, recent: Ints, limits: TokenLimits) -> Ints:
    """(B,) number of tokens of each sequence of `recent` (B, S) items, newest first."""
    sizes = np.diff(tokens.indptr)[recent[:, : limits.items]]
    return np.minimum(1 + sizes.sum(1), limits.tokens)


def compose(tokens: ItemTokens, recent: Ints, limits: TokenLimits, special: SpecialTokens) -> TokenBatch:
    """The token sequences of `recent` (B, S) items, newest first and padded with 0.

    A first token, then the items' tokens, cut to the limits; nothing separates items. A sequence without any text is
    the first token alone. Padding has its own type and the place `limits.items` (Recformer section 3.2).
    """
    recent = recent[:, : limits.items]
    sizes = np.diff(tokens.indptr)[recent]
    offsets = 1 + np.cumsum(sizes, axis=1) - sizes
    kept = np.clip(limits.tokens - offsets, 0, sizes)
    lengths = 1 + kept.sum(1)
    width = int(lengths.max(initial=1))
    shape = (len(recent), width)
    ids = np.full(shape, special.pad, dtype=np.int64)
    types = np.full(shape, PADDING, dtype=np.int64)
    places = np.full(shape, limits.items, dtype=np.int64)
    ids[:, 0], types[:, 0], places[:, 0] = special.first, FIRST, 0
    flat = kept.ravel()
    within = np.arange(int(flat.sum())) - np.repeat(np.cumsum(flat) - flat, flat)
    source = np.repeat(tokens.indptr[recent].ravel(), flat) + within
    target = np.repeat((np.arange(len(recent))[:, None] * width + offsets).ravel(), flat) + within
    ids.ravel()[target] = tokens.ids[source]
    types.ravel()[target] = tokens.types[source]
    places.ravel()[target] = np.repeat(np.broadcast_to(np.arange(1, recent.shape[1] + 1), recent.shape).ravel(), flat)
    return TokenBatch(*(torch.from_numpy(x) for x in (ids, types, places, lengths)))
