"""Tiny language models, saved as folders that transformers reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    LongformerConfig,
    LongformerForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
)
from transformers.utils import logging

#: Wide initial weights, so that a random model tells texts apart.
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.3,
}

Backbone = Callable[..., Path]


def build(kind: str, folder: Path, toy: Path, **changes: Any) -> None:
    """Save a random model of `kind` and a tokenizer: characters for BERT, the toy one for the others."""
    sizes = {**SIZES, **changes}
    torch.manual_seed(3)
    logging.disable_progress_bar()
    tokenizer: Any
    if kind in ("bert", "distilbert", "electra"):
        letters = "abcdefghijklmnopqrstuvwxyz0123456789,.-&'"
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        tokenizer = BertTokenizer(vocab={word: at for at, word in enumerate(words)})
        sizes |= {"vocab_size": len(words), "pad_token_id": 0}
    else:
        tokenizer = RobertaTokenizer(vocab=str(toy / "vocab.json"), merges=str(toy / "merges.txt"))
        sizes |= {"vocab_size": len(tokenizer), "pad_token_id": 1}
    if kind == "bert":
        model: Any = BertForMaskedLM(BertConfig(**{"max_position_embeddings": 40, **sizes}))
    elif kind == "electra":
        model = ElectraForMaskedLM(ElectraConfig(**{"embedding_size": 16, "max_position_embeddings": 40, **sizes}))
    elif kind == "roberta":
        model = RobertaForMaskedLM(RobertaConfig(**{"max_position_embeddings": 42, "type_vocab_size": 1, **sizes}))
    elif kind == "longformer":
        longformer = {"max_position_embeddings": 66, "attention_window": 8, "type_vocab_size": 1}
        model = LongformerForMaskedLM(LongformerConfig(**{**longformer, **sizes}))
    else:
        model = DistilBertForMaskedLM(DistilBertConfig(vocab_size=sizes["vocab_size"], dim=16, n_heads=2, n_layers=2))
    for parameter in model.parameters():
        # Biases and LayerNorms too: at zero and one, they would hide mistakes.
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory, golden_dir: Path) -> Backbone:
    """Folder of a tiny `bert`, `electra`, `roberta`, `longformer` or `distilbert`, with changed sizes where given."""
    built: dict[str, Path] = {}

    def of(kind: str, **changes: Any) -> Path:
        key = repr((kind, sorted(changes.items())))
        if key not in built:
            built[key] = tmp_path_factory.mktemp(kind)
            with torch.random.fork_rng():
                build(kind, built[key], golden_dir / "recformer_toy_tokenizer", **changes)
        return built[key]

    return of
