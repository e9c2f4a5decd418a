"""SASRec (Kang and McAuley, ICDM 2018): self-attention over a user's items, scored by dot product."""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

from ckd.data.batch import Batch
from ckd.data.domain import Domain
from ckd.nn.dropout import Dropout
from ckd.nn.recommender import Recommender
from ckd.nn.transformer import TransformerEncoder, hidden_states, initialise
from ckd.students.common.transformer_config import TransformerConfig


class SASRecConfig(TransformerConfig):
    """Sizes and dropout; nothing else."""


class SASRec(Recommender):
    """SASRec as RecBole ships it; parameter names are RecBole's.

    Args:
        config: sizes and dropout.
        n_items: number of items without padding.
        max_length: longest history, in items.
    """

    Config = SASRecConfig

    def __init__(self, config: SASRecConfig, n_items: int, max_length: int) -> None:
        super().__init__()
        self.config = config
        c = config
        self.item_embedding = nn.Embedding(n_items + 1, c.hidden_size, padding_idx=0)
        self.position_embedding = nn.Embedding(max_length, c.hidden_size)
        self.trm_encoder = TransformerEncoder(c)
        self.LayerNorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.dropout = Dropout(c.hidden_dropout)
        initialise(self, c.initializer_range)

    @classmethod
    def create(cls, config: SASRecConfig, domain: Domain) -> Self:
        return cls(config, domain.n_items, domain.history_cap)

    def encode(self, batch: Batch) -> torch.Tensor:
        packed = batch.packed
        return packed.take(hidden_states(self, self.item_embedding(packed.items), packed))

    def item_table(self) -> torch.Tensor:
        return self.item_embedding.weight


STUDENT = SASRec
