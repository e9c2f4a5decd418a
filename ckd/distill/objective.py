"""What one step minimises: the student's own loss, and the divergence from its teachers (paper Eqs. 6 to 10)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from ckd.data.batch import Batch
from ckd.distill.losses import (
    CatalogueTarget,
    Direction,
    DistillationTarget,
    InBatchTarget,
    distillation_loss,
    full_softmax_loss,
    in_batch_cross_entropy,
    log_inclusion,
    masked_log_softmax,
    unfactored_divergence,
)
from ckd.distill.parallel import Share
from ckd.distill.target import CatalogueRows, Target, TargetBuilder, TargetCache
from ckd.nn.recommender import Recommender

Floats = npt.NDArray[np.floating]


class ScoreSource(Protocol):
    """Streams the stored scores of several teachers in the order that training asks for."""

    def stream(self, batch_ids: Iterable[int], *, dtype: None) -> Iterable[tuple[int, Sequence[Floats]]]:
        """Batch id and one (B, B) array of log-scores for each teacher, in the type that they are stored in.

        To distil over the catalogue: (B, d) user vectors over the stored temperature.
        """
        ...


@dataclass(frozen=True)
class Distillation:
    """What a distilled student learns from.

    Attributes:
        scores: the stored scores.
        target: how they become a target.
        weight: lambda of Eq. (10).
        direction: which way round the divergence is.
        tables: to distil over the catalogue, each teacher's (n_items + 1, d) item vectors.
        temperatures: by teacher, the tau that `target` brings its scores to; for the record.
    """

    scores: ScoreSource
    target: TargetBuilder
    weight: float
    direction: Direction = "student"
    tables: Sequence[torch.Tensor] = ()
    temperatures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One batch ready for training: this process's rows of it, against the items of all rows.

    Attributes:
        batch_id: its number in the plan.
        share: which rows, of how many.
        batch: those rows.
        users: (B,) the users of the whole batch.
        items: (B,) its targets, which are its columns.
        mask: (rows, B) True where the column counts for the row, where a loss needs it.
        scores: each teacher's stored scores of the rows, or its vectors.
    """

    batch_id: int
    share: Share
    batch: Batch
    users: torch.Tensor
    items: torch.Tensor
    mask: torch.Tensor | None
    scores: Sequence[torch.Tensor]


class Objective:
    """Losses of a model's steps.

    Args:
        model: the student, on its device.
        ce: candidates of the cross-entropy, where the model has no loss of its own.
        target_share: (n_items + 1,) float64 share of each item among the targets of the training part.
        distillation: none leaves the student's own loss alone.
        cached: bytes of targets that are kept for batches that come again.
    """

    def __init__(
        self,
        model: Recommender,
        ce: Literal["full", "in-batch", "in-batch-logq"],
        target_share: torch.Tensor,
        distillation: Distillation | None,
        cached: int,
    ) -> None:
        self.model = model
        self.ce = ce
        self.device = target_share.device
        self.target_share = target_share
        self.distillation = distillation if distillation and distillation.weight > 0 else None
        self.tables = [table.to(self.device) for table in self.distillation.tables] if self.distillation else []
        self.targets = TargetCache(cached)

    def needs_mask(self, batch_id: int) -> bool:
        """Whether a step has to say which columns count for which rows: a target that is kept knows by itself."""
        makes_target = self.distillation is not None and not self.tables and batch_id not in self.targets
        return self.ce != "full" or makes_target

    def target(self, step: Step) -> Target | CatalogueRows | None:
        """The batch's target, a function of plan and stored scores: a batch that is met again has it already.

        Over the catalogue it is only described here, and made block by block by the loss.
        """
        if self.distillation is None:
            return None
        if self.tables:
            rows = step.batch.users, step.batch.targets
            return CatalogueRows(self.distillation.target, step.scores, self.tables, *rows, step.users, step.items)
        found = self.targets.get(step.batch_id)
        if found is None:
            assert step.mask is not None
            found = self.distillation.target(step.scores, step.mask)
            self.targets.put(step.batch_id, found)
        return found

    def loss(
        self, step: Step, encoded: torch.Tensor, table: torch.Tensor | None, target: Target | CatalogueRows | None
    ) -> dict[str, torch.Tensor]:
        """L = CE + lambda * KL (Eq. 10) and its parts; CE is the base model's own loss where it has one.

        Among the parts is the share of instances (or pairs) for which each teacher was dropped.
        """
        parts = self._losses(step, encoded, table, self._distill(step, target))
        if self.distillation is not None and target is not None:
            # After the losses: over the catalogue, what was dropped is known when they have been computed.
            names = self.distillation.target.teachers
            parts |= {f"dropped_{name}": share for name, share in zip(names, target.dropped, strict=True)}
        return parts

    def _losses(
        self, step: Step, encoded: torch.Tensor, table: torch.Tensor | None, distill: DistillationTarget | None
    ) -> dict[str, torch.Tensor]:
        own = self.model.base_loss(step.batch, encoded, table)
        if own is None and self.ce == "full" and table is not None:
            loss, ce, kd = full_softmax_loss(
                encoded,
                table,
                step.batch.targets,
                scale=self.model.logit_scale,
                pad_in_softmax=self.model.pad_in_softmax,
                distill=distill,
            )
            return {"loss": loss, "ce": ce, **({"kd": kd} if distill else {})}
        if own is None and self.ce == "full":
            first = 0 if self.model.pad_in_softmax else 1
            scores = self.model.score_items(encoded).float() * self.model.logit_scale
            own = F.cross_entropy(scores[:, first:], step.batch.targets - first)
        in_batch = isinstance(distill, InBatchTarget)
        logits = self._in_batch_logits(step.items, encoded, table) if own is None or in_batch else None
        if own is None:
            assert logits is not None
            assert step.mask is not None
            log_drawn = log_inclusion(self.target_share[step.items]) if self.ce == "in-batch-logq" else None
            first = step.share.rows.start
            own = in_batch_cross_entropy(logits, step.mask, log_drawn=log_drawn, first=first)
        if distill is None:
            return {"loss": own, "ce": own}
        if isinstance(distill, CatalogueTarget):
            weighted, kd = self._catalogue_divergence(encoded, table, distill)
            return {"loss": own + weighted, "ce": own, "kd": kd}
        assert logits is not None
        log_p = masked_log_softmax(logits, distill.mask)
        kd = distillation_loss(log_p, distill.log_q, direction=distill.direction)
        return {"loss": own + distill.weight * kd, "ce": own, "kd": kd}

    def _distill(self, step: Step, target: Target | CatalogueRows | None) -> DistillationTarget | None:
        if self.distillation is None or target is None:
            return None
        weight, direction = self.distillation.weight, self.distillation.direction
        if isinstance(target, CatalogueRows):
            return CatalogueTarget(target.block, target.step, weight, direction)
        return InBatchTarget(target.log_q, target.mask, weight, direction, step.items)

    def _catalogue_divergence(
        self, encoded: torch.Tensor, table: torch.Tensor | None, distill: CatalogueTarget
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """lambda * KL and KL over all items, beside a CE that is taken elsewhere."""
        model = self.model
        if model.factored:
            table = model.item_table() if table is None else table
            loss, _, kd = full_softmax_loss(encoded, table, None, scale=model.logit_scale, distill=distill)
            return loss, kd
        side = model.item_side(torch.arange(len(self.tables[0]), device=self.device))
        kd = unfactored_divergence(lambda block: model.score_side(block, side) * model.logit_scale, encoded, distill)
        return distill.weight * kd, kd

    def _in_batch_logits(self, items: torch.Tensor, encoded: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        """(rows, B) scores of the batch's target items (B,), times the model's logit scale."""
        logits = self.model.score_items(encoded, items) if table is None else encoded @ table[items].T
        return logits if self.model.logit_scale == 1.0 else logits * self.model.logit_scale
