"""Losses that compare the scores of a positive and a negative item, as the base models publish them."""

from __future__ import annotations

import torch


def bpr_loss(positive: torch.Tensor, negative: torch.Tensor, eps: float = 1e-10) -> torch.Tensor:
    """Mean of -log(eps + sigmoid(positive - negative)) (Rendle et al., UAI 2009, with RecBole's guard).

    Args:
        positive: (B,) scores of positive items.
        negative: (B,) scores of negative ones.
        eps: keeps the logarithm finite.
    """
    return -torch.log(eps + torch.sigmoid(positive - negative)).mean()


def pairwise_bce(positive: torch.Tensor, negative: torch.Tensor, eps: float = 1e-24) -> torch.Tensor:
    """Mean of -log(sigmoid(positive) + eps) - log(1 - sigmoid(negative) + eps) (as FMLP-Rec trains).

    Args:
        positive: (B,) scores of positive items.
        negative: (B,) scores of negative ones.
        eps: keeps the logarithms finite.
    """
    gain = torch.log(torch.sigmoid(positive) + eps) + torch.log(1 - torch.sigmoid(negative) + eps)
    return -gain.mean()
