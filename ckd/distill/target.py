"""Turns the stored scores of several teachers into one training target for a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ckd.config import DistillConfig
from ckd.distill.consistency import (
    consistent_weights,
    inconsistency,
    inconsistency_per_pair,
    integrate,
    normalise,
)
from ckd.distill.losses import renormalise
from ckd.errors import ConfigError


@dataclass(frozen=True)
class Target:
    """The target of one batch.

    Attributes:
        log_q: (B, B) log-distribution over the in-batch items, minus infinity at masked columns.
        dropped: (K,) float, share of the instances (or pairs) for which each teacher was dropped.
    """

    log_q: torch.Tensor
    dropped: torch.Tensor


class TargetCache:
    """Targets of batches by id, up to a number of bytes; the first ones met are kept, since every epoch meets all.

    Args:
        capacity: bytes.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: dict[int, Target] = {}

    def __contains__(self, batch_id: int) -> bool:
        return batch_id in self._held

    def get(self, batch_id: int) -> Target | None:
        return self._held.get(batch_id)

    def put(self, batch_id: int, target: Target) -> None:
        """Keep the target if there is room."""
        size = target.log_q.nbytes
        if size <= self.capacity:
            self.capacity -= size
            self._held[batch_id] = target


class TargetBuilder:
    """Builds targets as the configuration says.

    Args:
        config: the run's distillation settings.
        teachers: names of the teachers, in the order of the scores.
        weights: (K,) default teacher weights; they are normalised to sum to 1 (Eq. 3).
        factors: tau / tau' of each teacher: stored temperature over the one to train at.
        epsilon: threshold of the inconsistency; see `measure_epsilon`.
    """

    def __init__(
        self,
        config: DistillConfig,
        teachers: Sequence[str],
        weights: Sequence[float],
        factors: Sequence[float],
        epsilon: float,
    ) -> None:
        self.config = config
        self.teachers = list(teachers)
        total = sum(weights)
        if total <= 0:
            raise ConfigError(f"distill.weights: {list(weights)} sum to {total}; at least one must be positive.")
        self.weights = torch.tensor([w / total for w in weights], dtype=torch.float32)
        self.factors = list(factors)
        self.epsilon = epsilon

    @torch.no_grad()
    def __call__(self, log_scores: Sequence[torch.Tensor], mask: torch.Tensor) -> Target:
        """The target from each teacher's stored (B, B) log-scores and the batch's (B, B) column mask."""
        stacked = self._comparable(log_scores, mask)
        weights = self.weights.to(mask.device)
        count = len(stacked)
        normalised = normalise(stacked, self.config.normalisation)
        if self.config.consistency == "off" or count < 3:
            dropped = torch.zeros(count)
            chosen = weights[:, None].expand(count, stacked.shape[1])
        else:
            measure = inconsistency if self.config.consistency == "instance" else inconsistency_per_pair
            chosen, which = consistent_weights(measure(normalised), weights, self.epsilon)
            which = which if which.dim() == 1 else which[mask]
            dropped = torch.stack([(which == k).float().mean() for k in range(count)])
        return Target(integrate(stacked, normalised, chosen, self.config.normalisation), dropped)

    def _comparable(self, log_scores: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [renormalise(scores, mask, factor) for scores, factor in zip(log_scores, self.factors, strict=True)]
        )

    @torch.no_grad()
    def disagreement(self, log_scores: Sequence[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
        """The largest D over teachers of each instance, (B,), or of each counted pair."""
        normalised = normalise(self._comparable(log_scores, mask), self.config.normalisation)
        if self.config.consistency == "pair":
            return inconsistency_per_pair(normalised).amax(dim=0)[mask]
        return inconsistency(normalised).amax(dim=0)


def measure_epsilon(
    builder: TargetBuilder, sample: Iterable[tuple[Sequence[torch.Tensor], torch.Tensor]], quantile: float
) -> float:
    """The threshold below which the given share of a sample's instances (or pairs) lies.

    The paper gives no value for epsilon. The scale of D depends on domain, temperature and batch size, so that a share
    of instances carries over between domains where a number would not.
    """
    values = torch.cat([builder.disagreement(scores, mask).flatten() for scores, mask in sample])
    return float(np.quantile(values.cpu().double().numpy(), quantile))
