"""From several teachers' scores to one target: consistency-weighted integration (paper 3.6, Eqs. 3-5 and 7).

Shapes: K teachers, B instances of a batch and as many in-batch items. Log-scores are minus infinity at masked columns.
"""

from __future__ import annotations

from typing import Literal

import torch

Normalisation = Literal["softmax", "minmax", "zscore"]

#: Smallest weighted score of Eq. (5) in a min-max target: its least item would otherwise have none, and KL(p || q) no
#: value.
MINMAX_FLOOR = 1e-8


def normalise(log_scores: torch.Tensor, method: Normalisation = "softmax") -> torch.Tensor:
    """Comparable scores s~ of each teacher (paper 3.6.1); 0 at masked columns.

    Args:
        log_scores: (K, B, B) log of Eq. (2), re-normalised over the columns that count.
        method: `softmax`: the scores themselves, which sum to 1. `minmax`: scores scaled to [0, 1] in each row.
            `zscore`: log-scores with mean 0 and standard deviation 1 in each row.
    """
    counted = ~torch.isneginf(log_scores)
    if method == "softmax":
        return log_scores.exp()
    if method == "minmax":
        scores = log_scores.exp()
        low = scores.masked_fill(~counted, torch.inf).amin(dim=-1, keepdim=True)
        span = scores.amax(dim=-1, keepdim=True) - low
        return torch.where(counted, (scores - low) / span.clamp_min(torch.finfo(scores.dtype).tiny), 0.0)
    values = torch.where(counted, log_scores, 0.0)
    n = counted.sum(dim=-1, keepdim=True)
    centred = torch.where(counted, values - values.sum(dim=-1, keepdim=True) / n, 0.0)
    deviation = (centred.square().sum(dim=-1, keepdim=True) / n).sqrt()
    return centred / deviation.clamp_min(torch.finfo(centred.dtype).tiny)


def inconsistency(normalised: torch.Tensor) -> torch.Tensor:
    """D_ik = sum over k' != k and j of (s~_ijk - s~_ijk')^2; (K, B) from (K, B, B).

    It is Eq. (2) of v1, and -conf of Eq. (4) summed over j.
    """
    return inconsistency_per_pair(normalised, sum_items=True)


def inconsistency_per_pair(normalised: torch.Tensor, *, sum_items: bool = False) -> torch.Tensor:
    """D_ijk = sum over k' != k of (s~_ijk - s~_ijk')^2: -conf of Eq. (4), by pair; (K, B, B) from (K, B, B)."""
    count = len(normalised)
    parts: list[list[torch.Tensor]] = [[] for _ in range(count)]
    for a in range(count):
        for b in range(a + 1, count):
            distance = (normalised[a] - normalised[b]).square()
            distance = distance.sum(dim=-1) if sum_items else distance
            parts[a].append(distance)
            parts[b].append(distance)
    zero = torch.zeros_like(normalised[0].sum(dim=-1) if sum_items else normalised[0])
    return torch.stack([torch.stack(part).sum(dim=0) if part else zero for part in parts])


def consistent_weights(
    disagreement: torch.Tensor, weights: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights w^ after dropping the least consistent teacher where teachers disagree (paper 3.6.2).

    Where every teacher's disagreement is below epsilon the default weights hold; elsewhere the teacher with the largest
    one is dropped, and its weight goes in equal parts to the others. Of two teachers neither is the odd one out, so
    with fewer than three the default weights always hold.

    Args:
        disagreement: (K, ...) D of `inconsistency` or `inconsistency_per_pair`.
        weights: (K,) default weights w, summing to 1 (Eq. 3).
        epsilon: threshold, in units of the squared normalised score.

    Returns:
        (K, ...) weights that sum to 1 over teachers, and (...) int64 the teacher that was dropped, -1 for none.
    """
    count = len(weights)
    shape = (count,) + (1,) * (disagreement.dim() - 1)
    base = weights.to(disagreement.dtype).view(shape).expand_as(disagreement)
    dropped = disagreement.new_full(disagreement.shape[1:], -1, dtype=torch.int64)
    if count < 3:
        return base, dropped
    largest, odd = disagreement.max(dim=0)
    dropped = torch.where(largest < epsilon, dropped, odd)
    is_odd = torch.arange(count, device=disagreement.device).view(shape) == dropped
    share = (base * is_odd).sum(dim=0) / (count - 1)
    return torch.where(is_odd, 0.0, base + share), dropped


def integrate(
    log_scores: torch.Tensor, normalised: torch.Tensor | None, weights: torch.Tensor, method: Normalisation = "softmax"
) -> torch.Tensor:
    """The log of the target q (Eqs. 5 and 7), (B, B), minus infinity at masked columns.

    z-scores have a sign, so that Eq. (7) cannot normalise their sum: there q is the softmax of the weighted z-scores.

    Args:
        log_scores: (K, B, B) as given to `normalise`.
        normalised: (K, B, B) its result; none is needed for `softmax`, whose scores are mixed in log space.
        weights: (K, B) or (K, B, B) from `consistent_weights`.
        method: the normalisation that was used.
    """
    if weights.dim() == 2:
        weights = weights[:, :, None]
    counted = ~torch.isneginf(log_scores[0])
    if method == "softmax":
        # In log space, so that the far tail of a sharp teacher does not underflow to a target of zero.
        log_mixed = (log_scores + weights.log()).logsumexp(dim=0)
        return log_mixed.masked_fill(~counted, -torch.inf).log_softmax(dim=-1)
    assert normalised is not None
    mixed = (weights * normalised).sum(dim=0)
    if method == "zscore":
        return mixed.masked_fill(~counted, -torch.inf).log_softmax(dim=-1)
    log_mixed = mixed.clamp_min(MINMAX_FLOOR).log().masked_fill(~counted, -torch.inf)
    return log_mixed - log_mixed.logsumexp(dim=-1, keepdim=True)
