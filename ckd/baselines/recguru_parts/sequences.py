"""RecGURU's sequences: left-padded items and an end mark for the encoder, the same items shifted for the decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import nn

from ckd.data.domain import Domain
from ckd.students.common.negatives import NegativeSampler

#: Popularity to this power is what frequent negatives are drawn by.
POWER = 0.75

#: Rounds of drawing again what the user has, before uniform negatives take the rest.
ROUNDS = 8


@dataclass(frozen=True)
class Sequences:
    """B sequences of length L.

    Attributes:
        encoder: (B, L) the last L - 1 items and the end mark, left-padded with 0.
        inputs: (B, L) what the decoders read, each the item before the one to predict.
        outputs: (B, L) what they predict, 0 where nothing.
    """

    encoder: torch.Tensor
    inputs: torch.Tensor
    outputs: torch.Tensor

    @classmethod
    def for_training(cls, encoder: torch.Tensor) -> Self:
        """Predict every item of the sequence, the first from nothing."""
        blank = torch.zeros_like(encoder[:, :2])
        inputs = torch.cat([blank, encoder[:, :-2]], dim=1)
        return cls(encoder, inputs, torch.cat([blank, encoder[:, 1:-1]], dim=1))

    def to(self, device: torch.device) -> Self:
        """The same on `device`."""
        return type(self)(self.encoder.to(device), self.inputs.to(device), self.outputs.to(device))


def end_with_mark(histories: torch.Tensor, lengths: torch.Tensor, width: int, mark: int) -> torch.Tensor:
    """(B, width) the last `width` - 1 items of each history and the mark, left-padded with 0.

    Args:
        histories: (B, L) items, right-padded.
        lengths: (B,) from 1.
        mark: the number of the end mark.
    """
    at = torch.arange(width - 1, device=histories.device) - (width - 1) + lengths[:, None]
    items = histories.gather(1, at.clamp(0, histories.shape[1] - 1)) * (at >= 0)
    return torch.cat([items, torch.full_like(items[:, :1], mark)], dim=1)


class FrequentNegatives(nn.Module):
    """Draws items by popularity^0.75 from those that a user does not have in the training part.

    What a user has is drawn again, a few times; uniform negatives take what is left over.

    Args:
        domain: whose training part is meant.
        uniform: the domain's uniform sampler.
    """

    pairs: torch.Tensor
    bounds: torch.Tensor

    def __init__(self, domain: Domain, uniform: NegativeSampler) -> None:
        super().__init__()
        self.uniform = uniform
        part = domain.training_part
        pairs = np.unique(domain.user_of[part].astype(np.int64) * (domain.n_items + 1) + domain.items[part])
        bounds = np.cumsum(domain.popularity[1:].astype(np.float64) ** POWER)
        self.n_items = domain.n_items
        self.register_buffer("pairs", torch.from_numpy(pairs), persistent=False)
        self.register_buffer("bounds", torch.from_numpy(bounds), persistent=False)

    def forward(self, users: torch.Tensor, n: int = 1) -> torch.Tensor:
        """(B, n) int64 items for `users` (B,), drawn from torch's default generator."""
        found = self._draw(len(users), n, users.device)
        for _ in range(ROUNDS):
            taken = self._taken(users, found)
            if not bool(taken.any()):
                return found
            found = torch.where(taken, self._draw(len(users), n, users.device), found)
        return torch.where(self._taken(users, found), self.uniform(users, n), found)

    def _draw(self, rows: int, n: int, device: torch.device) -> torch.Tensor:
        draws = torch.rand(rows, n, dtype=torch.float64, device=device) * self.bounds[-1]
        return torch.searchsorted(self.bounds, draws, right=True).clamp_max(self.n_items - 1) + 1

    def _taken(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        keys = users[:, None] * (self.n_items + 1) + items
        at = torch.searchsorted(self.pairs, keys).clamp_max(len(self.pairs) - 1)
        return self.pairs[at] == keys
