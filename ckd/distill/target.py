"""Turns the stored scores of several teachers into one training target for a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

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
from ckd.distill.masks import catalogue_mask
from ckd.errors import ConfigError
from ckd.nn.chunks import block_rows, products


@dataclass(frozen=True)
class Target:
    """The target of one batch.

    Attributes:
        log_q: (B, B) log-distribution over the in-batch items, minus infinity at masked columns; (r, N) over all.
        dropped: (K,) float, share of the instances (or pairs) for which each teacher was dropped.
    """

    log_q: torch.Tensor
    dropped: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        """Like `log_q`, True where the column counts for the row."""
        return self.log_q > -torch.inf


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
        """The target from each teacher's stored (B, B) log-scores and the batch's (B, B) column mask.

        Or from (r, N) scores over the catalogue, at the stored temperature and up to a constant in each row.
        """
        stacked = self._comparable(log_scores, mask)
        self.weights = weights = self.weights.to(mask.device)
        count, method = len(stacked), self.config.normalisation
        if count == 1 and method == "softmax":
            return Target(stacked[0], mask.new_zeros(1, dtype=torch.float32))
        judged = self.config.consistency != "off" and count > 2
        normalised = normalise(stacked, method) if judged or method != "softmax" else None
        if judged:
            assert normalised is not None
            measure = inconsistency if self.config.consistency == "instance" else inconsistency_per_pair
            chosen, which = consistent_weights(measure(normalised), weights, self.epsilon)
            judging = torch.ones_like(which, dtype=torch.bool) if which.dim() == 1 else mask
            dropped = torch.stack([((which == k) & judging).sum() / judging.sum() for k in range(count)])
        else:
            dropped = mask.new_zeros(count, dtype=torch.float32)
            chosen = weights[:, None].expand(count, stacked.shape[1])
        return Target(integrate(stacked, normalised, chosen, method), dropped)

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


class CatalogueRows:
    """The targets of a batch over the whole catalogue (the paper's "w/o IN"), made for a block of rows at a time.

    Nothing is kept but how often teachers were dropped, so that memory does not grow with the B * N scores.

    Args:
        builder: how scores become a target.
        vectors: of each teacher, (r, d) user vectors over its stored temperature.
        tables: of each teacher, (N, d) item vectors, row 0 padding.
        row_users: (r,) user of each row.
        row_targets: (r,) item of each row.
        users: (B,) user of each instance of the batch.
        targets: (B,) item of each instance of the batch.
    """

    def __init__(
        self,
        builder: TargetBuilder,
        vectors: Sequence[torch.Tensor],
        tables: Sequence[torch.Tensor],
        row_users: torch.Tensor,
        row_targets: torch.Tensor,
        users: torch.Tensor,
        targets: torch.Tensor,
    ) -> None:
        self.builder = builder
        self.vectors = vectors
        self.tables = tables
        self.row_users = row_users
        self.row_targets = row_targets
        self.users = users
        self.targets = targets
        self._dropped = torch.zeros(len(tables), device=users.device)
        self._counted = torch.zeros((), device=users.device)

    def __len__(self) -> int:
        return len(self.row_users)

    @property
    def step(self) -> int:
        """Rows whose matrices (scores, masked, normalised and weighted scores of each teacher) are held at a time."""
        return block_rows(len(self.tables[0]) * 4 * (len(self.tables) + 1), self.tables[0].device)

    @property
    def dropped(self) -> torch.Tensor:
        """(K,) share of the instances (or pairs) so far for which each teacher was dropped."""
        return self._dropped / self._counted

    def scores(self, rows: slice) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Each teacher's (r, N) scores at its stored temperature, up to a constant in each row, and the (r, N) mask."""
        mask = catalogue_mask(
            self.row_users[rows], self.row_targets[rows], self.users, self.targets, len(self.tables[0])
        )
        return [products(users[rows], table) for users, table in zip(self.vectors, self.tables, strict=True)], mask

    @torch.no_grad()
    def block(self, rows: slice) -> Callable[[slice], tuple[torch.Tensor, torch.Tensor]]:
        """The target of a slice of the rows: what gives (r, N) log q and the (r, N) mask for a slice of these."""
        with torch.autocast(self.users.device.type, enabled=False):
            scores, mask = self.scores(rows)
        return partial(self._target, scores, mask)

    @torch.no_grad()
    def _target(
        self, scores: Sequence[torch.Tensor], mask: torch.Tensor, rows: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mask = mask[rows]
        with torch.autocast(self.users.device.type, enabled=False):
            target = self.builder([of[rows] for of in scores], mask)
        count = mask.sum() if self.builder.config.consistency == "pair" else len(mask)
        self._dropped += target.dropped.to(self._dropped.device) * count
        self._counted += count
        return target.log_q, mask


def measure_epsilon(
    builder: TargetBuilder, sample: Iterable[tuple[Sequence[torch.Tensor], torch.Tensor]], quantile: float
) -> float:
    """The threshold below which the given share of a sample's instances (or pairs) lies.

    The paper gives no value for epsilon. The scale of D depends on domain, temperature and batch size, so that a share
    of instances carries over between domains where a number would not.
    """
    values = torch.cat([builder.disagreement(scores, mask).flatten() for scores, mask in sample])
    return float(np.quantile(values.cpu().double().numpy(), quantile))
