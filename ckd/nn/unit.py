"""Rows of length one, for cosines."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def single(vectors: torch.Tensor) -> torch.Tensor:
    """In float32 at least: a cosine over a small temperature wants every digit."""
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Rows of length one, in float32 at least; zeros stay zero."""
    return F.normalize(single(vectors), dim=-1)
