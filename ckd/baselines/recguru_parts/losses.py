"""RecGURU's losses (Li et al., WSDM 2022): reconstruction, recommendation, and the critic's.

Shapes: B sequences, N negatives, D model size.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ckd.baselines.recguru_parts.layers import Critic


def products(decoded: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """(..., N) scores of item vectors (..., N, D) for decoded (..., D)."""
    return (vectors @ decoded[..., None])[..., 0]


def sampled_softmax_loss(logits: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the first column.

    Args:
        logits: (n, 1 + N) of the true item and its negatives, at the n positions that predict something.
    """
    return -F.log_softmax(logits, dim=-1)[:, 0].mean()


def mean_bpr_loss(positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Mean of -log sigmoid(positive - mean negative).

    Args:
        positive: (n,) scores at the n positions that predict something.
        negative: (n, N) scores.
    """
    return -F.logsigmoid(positive - negative.mean(-1)).mean()


def critic_loss(score_a: torch.Tensor, score_b: torch.Tensor) -> torch.Tensor:
    """E[D(b)] - E[D(a)], which the critic descends and the encoder ascends.

    Args:
        score_a: (B,) the critic's scores of the first domain's user vectors.
        score_b: (B',) of the second's.
    """
    return score_b.mean() - score_a.mean()


def gradient_penalty(
    critic: Critic, users_a: torch.Tensor, users_b: torch.Tensor, mixing: torch.Tensor
) -> torch.Tensor:
    """E[(||grad D(x)|| - 1)^2] at points between the user vectors (Gulrajani et al., NeurIPS 2017), without a weight.

    Args:
        users_a, users_b: (B, D) user vectors of the domains.
        mixing: (B, 1) in [0, 1], the share of `users_a`.
    """
    with torch.enable_grad():
        mixed = (mixing * users_a + (1 - mixing) * users_b).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    return (gradient.norm(dim=1) - 1).square().mean()
