"""Vectors that a model reads and never trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class FrozenTable(nn.Module):
    """A lookup table that is no parameter and stays out of checkpoints.

    A state dict may still bring its `weight`, as published checkpoints do: it then replaces the table's.

    Args:
        vectors: (n, d).
    """

    weight: torch.Tensor

    def __init__(self, vectors: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", vectors, persistent=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """(..., d) the vectors of `rows` (...)."""
        return F.embedding(rows, self.weight)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        found = state_dict.get(f"{prefix}weight")
        if found is None:
            return
        if found.shape != self.weight.shape:
            errors = args[-1]
            errors.append(f"size mismatch for {prefix}weight: {tuple(found.shape)} for {tuple(self.weight.shape)}.")
        else:
            # Not in place: the table may share its memory with the feature on disk.
            self.weight = found.detach().to(self.weight, copy=True)
