"""GRU4Rec (Hidasi et al., ICLR 2016; with embeddings and full softmax): a recurrent network over a user's items."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ckd.data.batch import Batch
from ckd.data.domain import Domain
from ckd.nn.dropout import Dropout
from ckd.nn.recommender import ModelConfig, Recommender


class GRU4RecConfig(ModelConfig):
    """Sizes and dropout of the paper's section 4.1.4; one layer, as published."""

    embedding_size: int = Field(300, ge=1)
    hidden_size: int = Field(300, ge=1)
    n_layers: int = Field(1, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)


class GRU4Rec(Recommender):
    """GRU4Rec as RecBole ships it; parameter names are RecBole's.

    It is causal, so the prefixes of a sequence share one pass, but a recurrent state cannot restart within a row: it
    runs over the batch's sequences, not over packed rows.

    Args:
        config: sizes and dropout.
        n_items: number of items without padding.
    """

    Config = GRU4RecConfig

    def __init__(self, config: GRU4RecConfig, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.item_embedding = nn.Embedding(n_items + 1, config.embedding_size, padding_idx=0)
        self.emb_dropout = Dropout(config.dropout)
        self.gru_layers = nn.GRU(
            config.embedding_size, config.hidden_size, config.n_layers, bias=False, batch_first=True
        )
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        nn.init.xavier_normal_(self.item_embedding.weight)
        for weight in self.gru_layers.parameters():
            nn.init.xavier_uniform_(weight)

    @classmethod
    def create(cls, config: GRU4RecConfig, domain: Domain) -> Self:
        return cls(config, domain.n_items)

    def encode(self, batch: Batch) -> torch.Tensor:
        x_RLD = self.emb_dropout(self.item_embedding(batch.sequences))
        return self.dense(batch.take(self._recur(x_RLD, batch.sequences)))

    def _recur(self, x_RLD: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
        """(R, L, hidden) state after every item; whatever comes after a sequence's end is not defined."""
        # Sorting by length would fix an exported graph, and wait for a device.
        if torch.compiler.is_exporting():
            return self.gru_layers(x_RLD)[0]
        if x_RLD.device.type != "cpu":
            # Under autocast cuDNN would recur in float16, whatever it is told.
            with torch.autocast(x_RLD.device.type, enabled=False):
                return self.gru_layers(x_RLD.float())[0]
        packed = pack_padded_sequence(x_RLD, (sequences != 0).sum(1), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.gru_layers(packed)[0], batch_first=True)[0]

    def item_table(self) -> torch.Tensor:
        return self.item_embedding.weight


STUDENT = GRU4Rec
