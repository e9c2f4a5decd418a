"""Small domains and encoders, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import transformers
from safetensors.torch import save_file

from ckd.data.domain import Domain, leave_one_out


def make_domain(raw_ids: list[str], texts: list[str] | None = None, **extra: list[object]) -> Domain:
    """A domain of one user who saw every item once."""
    n = len(raw_ids)
    indptr = np.array([0, n], dtype=np.int64)
    table = {"item": range(1, n + 1), "raw_id": raw_ids, "text": texts or [f"item number {i}" for i in range(n)]}
    return Domain(
        name="toy",
        indptr=indptr,
        items=np.arange(1, n + 1, dtype=np.int32),
        split=leave_one_out(indptr),
        item_table=pl.DataFrame({**table, **extra}),
        user_ids=pl.Series("raw_id", ["u0"]),
    )


@pytest.fixture
def save_domain(tmp_path: Path) -> Callable[..., Domain]:
    """Saves a domain of items with the given texts below a work folder (default: the test's own)."""

    def save(texts: list[str], name: str = "toy", work: Path = tmp_path, **extra: list[object]) -> Domain:
        raw_ids = [f"i{k}" for k in range(len(texts))]
        return make_domain(raw_ids, texts, **extra).save(work / "domains" / name)

    return save


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    """Six items, saved below a work folder."""
    return make_domain([f"i{k}" for k in range(6)]).save(tmp_path / "work" / "domains" / "toy")


WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "red",
    "green",
    "blue",
    "saw",
    "drill",
    "glue",
    "of",
    "item",
    "number",
]


def write_word_tokenizer(folder: Path) -> None:
    """A tokenizer of whole words, for models of any architecture."""
    (folder / "vocab.txt").write_text("\n".join([*WORDS, *map(str, range(10))]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a randomly initialised BERT of 16 dimensions and 32 positions."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    write_word_tokenizer(folder)
    config = transformers.BertConfig(
        vocab_size=24,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    save_file(transformers.BertModel(config).state_dict(), folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    return folder
