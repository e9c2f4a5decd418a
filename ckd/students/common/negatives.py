"""Negative items for the losses that compare a positive with sampled ones."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import nn

from ckd.data.domain import Domain


class NegativeSampler(nn.Module):
    """Draws items uniformly from those that a user does not have in the training part.

    One draw a negative and no rejection: a number below the count of allowed items is mapped to the allowed item of
    that rank. A user who has every item gets any. Nothing of this is a weight; checkpoints leave it out.

    Args:
        users: (m,) users of the interactions to avoid, from 0; may repeat.
        items: (m,) their items, from 1.
        n_users: number of users.
        n_items: number of items, padding not counted.
    """

    gaps: torch.Tensor
    starts: torch.Tensor

    def __init__(self, users: torch.Tensor, items: torch.Tensor, n_users: int, n_items: int) -> None:
        super().__init__()
        self.n_items = n_items
        pairs = torch.unique(users.long() * (n_items + 1) + items.long())
        owners = pairs.div(n_items + 1, rounding_mode="floor")
        counts = torch.bincount(owners, minlength=n_users)
        counts_full = counts >= n_items
        kept = ~counts_full[owners]
        pairs, owners = pairs[kept], owners[kept]
        counts = counts.masked_fill(counts_full, 0)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        rank = torch.arange(len(pairs)) - starts[owners]
        # Of each positive, how many allowed items lie below it; the owner in front keeps the whole in order.
        self.register_buffer("gaps", pairs - 1 - rank, persistent=False)
        self.register_buffer("starts", starts, persistent=False)

    @classmethod
    def of(cls, domain: Domain) -> Self:
        """The sampler of a domain's training part."""
        part = np.flatnonzero(domain.training_part)
        users, items = torch.from_numpy(domain.user_of[part]), torch.from_numpy(domain.items[part])
        return cls(users, items, domain.n_users, domain.n_items)

    def forward(self, users: torch.Tensor, n: int = 1) -> torch.Tensor:
        """(B, n) int64 items for `users` (B,), drawn from torch's default generator."""
        first, last = self.starts[users, None], self.starts[users + 1, None]
        allowed = self.n_items - (last - first)
        draws = torch.rand(len(users), n, dtype=torch.float64, device=users.device)
        rank = torch.minimum((draws * allowed).long(), allowed - 1)
        below = torch.searchsorted(self.gaps, users[:, None] * (self.n_items + 1) + rank, right=True) - first
        return rank + 1 + below
