"""Matrix factorisation, the student that HetComp (Kang et al., WWW 2023) was published with."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field
from torch import nn

from ckd.data.batch import Batch
from ckd.data.domain import Domain
from ckd.nn.recommender import ModelConfig, Recommender


class MFConfig(ModelConfig):
    """Vector size of the paper's section 4.1.4 (HetComp's own is 6); the spread of the initial weights is inferred."""

    embedding_size: int = Field(300, ge=1)
    initializer_range: float = Field(0.01, gt=0)


class MF(Recommender):
    """A vector for each user and item, scored by dot product; it knows users by their number alone.

    Args:
        config: vector size.
        n_users: number of users.
        n_items: number of items without padding.
    """

    Config = MFConfig
    reads_users = True
    pad_in_softmax = False

    def __init__(self, config: MFConfig, n_users: int, n_items: int) -> None:
        super().__init__()
        self.config = config
        self.user_emb = nn.Embedding(n_users, config.embedding_size)
        self.item_emb = nn.Embedding(n_items + 1, config.embedding_size)
        nn.init.normal_(self.user_emb.weight, std=config.initializer_range)
        nn.init.normal_(self.item_emb.weight, std=config.initializer_range)

    @classmethod
    def create(cls, config: MFConfig, domain: Domain) -> Self:
        return cls(config, domain.n_users, domain.n_items)

    def encode(self, batch: Batch) -> torch.Tensor:
        return self.user_emb(batch.users)

    def item_table(self) -> torch.Tensor:
        return self.item_emb.weight


MODEL = MF
