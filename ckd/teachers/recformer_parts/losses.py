"""Recformer's scores and losses (Recformer sections 3.3 and 3.4), as functions of tensors.

Shapes: B sequences, n items, D hidden size, L tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

#: Label of a token that is not to be predicted.
IGNORED = -100


def cosine_logits(vectors: torch.Tensor, items: torch.Tensor, temperature: float) -> torch.Tensor:
    """(B, n) cosine over temperature of `vectors` (B, D) with `items` (n, D), or (B, n, D) of each row's own."""
    vectors, items = F.normalize(vectors, dim=-1), F.normalize(items, dim=-1)
    logits = vectors @ items.T if items.dim() == 2 else torch.einsum("bd,bnd->bn", vectors, items)
    return logits / temperature


def next_item_loss(
    vectors: torch.Tensor,
    table: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    negatives: torch.Tensor | None = None,
) -> torch.Tensor:
    """(B,) cross-entropy of fine-tuning, one value for each sequence.

    Args:
        vectors: (B, D) sequences.
        table: (n, D) items; no gradient flows into it as long as it requires none.
        labels: (B,) rows of the table.
        temperature: tau.
        negatives: (B, k) rows of the table to compare with; none: all of them. A negative may equal the label.
    """
    if negatives is None:
        return F.cross_entropy(cosine_logits(vectors, table, temperature), labels, reduction="none")
    candidates = torch.cat([labels[:, None], negatives], dim=1)
    logits = cosine_logits(vectors, table[candidates], temperature)
    return F.cross_entropy(logits, torch.zeros_like(labels), reduction="none")


def contrastive_loss(histories: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Scalar item-item contrastive loss of pre-training: each history (B, D) finds its own target (B, D) in the batch.

    One direction, from the history to the targets, as published.
    """
    logits = cosine_logits(histories, targets, temperature)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def masked_token_loss(head: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Scalar sum of cross-entropies over the masked tokens; zero where there is none.

    The published code takes a mean that is NaN for a batch without masked tokens. This is the sum, to be divided by
    `max(1, number of masked tokens)`. The head (D to V) only sees the tokens it must predict.

    Args:
        head: the masked-token head.
        hidden: (B, L, D) hidden states of the masked input.
        labels: (B, L) token ids, `IGNORED` where nothing is predicted.
    """
    chosen = labels != IGNORED
    return F.cross_entropy(head(hidden[chosen]), labels[chosen], reduction="sum")
