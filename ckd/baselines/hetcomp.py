"""HetComp (Kang et al., WWW 2023): a student taught by ranking lists along its teachers' training trajectories.

Users begin at every teacher's earliest checkpoint and move on as the student catches up; the target is a list made
from all teachers, and the loss asks first which items belong above the others, in the end in what order.

Inferred, where the published program reads files that nobody can make: the importance of a listed item
(`knowledge.importance`), the order of a user's observed items (the latest first), and which checkpoints make a
trajectory (`rankings.choose_checkpoints`). The student is trained by the distillation loss alone, as published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import nn

from ckd.baselines.common.histories import training_items, user_histories
from ckd.baselines.common.run import Run
from ckd.baselines.hetcomp_parts.knowledge import Curriculum, importance, target_lists
from ckd.baselines.hetcomp_parts.losses import clamp_scores, loss_by_rows, overall_loss, rank_loss
from ckd.baselines.hetcomp_parts.rankings import (
    LEAST,
    LENGTH,
    list_length,
    ranking_lists,
)
from ckd.data.batch import Batch, Batches, to_device
from ckd.data.domain import Domain
from ckd.distill.trainer import Trained
from ckd.errors import DataError
from ckd.evaluation.metrics import ranking_metrics
from ckd.evaluation.ranks import rank_targets
from ckd.nn.device import pick_device
from ckd.nn.recommender import ModelConfig, Recommender
from ckd.nn.uncompiled import Adam


class HetCompConfig(ModelConfig):
    """How the student is trained; defaults are the published program's."""

    length: int = Field(
        LENGTH, ge=LEAST, le=LENGTH, description="K, how much of the kept lists is used; of observed items a tenth"
    )
    checkpoints: int = Field(4, ge=1, description="V, checkpoints of each teacher's training")
    alpha: float = Field(1.05, gt=0, description="first threshold of an advance to the next checkpoint")
    period: int = Field(10, ge=1, description="p, epochs between updates of the target")
    overall_weight: float = Field(0.01, gt=0, description="of the loss while the curriculum lasts")
    rank_weight: float = Field(0.005, gt=0, description="of the loss afterwards")
    batch_size: int = Field(1024, ge=1, description="interactions in a batch, of which the distinct users are trained")
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    epochs: int = Field(1000, ge=1, description="most epochs")
    validate_every: int = Field(10, ge=1, description="epochs between validations")
    patience: int = Field(5, ge=1, description="validations without a better one before stopping")
    metric: Literal["recall@50", "ndcg@10"] = Field("recall@50", description="of validation, chooses the best epoch")


class HetCompTrainer:
    """Trains any student by its teachers' ranking lists.

    Args:
        student: what is trained.
        domain: where its users are.
        teachers: for each teacher its checkpoints' lists (n_users, K), earliest first, as `ranking_lists` makes them.
        config: optimisation and curriculum.
        folder: where checkpoints and the log go.
        identity: configuration and fingerprints of the run; a checkpoint of another run is refused.
        seed: of the batches, and of whatever the student draws while training.
        device: `auto`, or torch's name of one.
        on_epoch: called with each finished log row.

    Raises:
        DataError: a list that does not fit the domain, or teachers without any.
        ConfigError: no such device.
    """

    def __init__(
        self,
        student: Recommender,
        domain: Domain,
        teachers: Sequence[Sequence[npt.NDArray[np.int32]]],
        config: HetCompConfig,
        folder: Path,
        identity: dict[str, Any],
        seed: int = 0,
        device: str = "auto",
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.device = pick_device(device)
        self.student = student.to(self.device)
        self.domain, self.config, self.seed = domain, config, seed
        self.on_epoch = on_epoch or (lambda _: None)
        self.training = training_items(domain)
        self.length = list_length(domain, config.length, self.training)
        self.teachers = [[self._fit_list(lists, t, v) for v, lists in enumerate(c)] for t, c in enumerate(teachers)]
        if not self.teachers or not all(self.teachers):
            raise DataError("HetComp needs ranking lists of at least one teacher, and one checkpoint of each.")
        self.importances = [importance(lists, domain.n_items) for lists in self.teachers]
        self.curriculum = Curriculum(self.teachers, config.alpha, config.period)
        histories = user_histories(domain)
        self.batches = Batches(domain, histories, share_prefixes=student.causal)
        self.row_of = np.full(domain.n_users, -1)
        self.row_of[histories.users] = np.arange(len(histories))
        self.observed = _padded([items[: self.length // 10] for items in self.training], self.length // 10)
        self.optimizer = Adam(self.student.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.everything = nn.ModuleDict({"student": self.student, "curriculum": self.curriculum})
        self.run = Run(folder, identity, config.metric, config.patience)

    def fit(self) -> Trained:
        """Train until early stopping or the last epoch, from the last checkpoint where there is one.

        Raises:
            TrainingDiverged: names the step and the last good checkpoint.
            DataError: the folder holds another run.
        """
        torch.manual_seed(self.seed)
        self.run.resume(self.everything, self.optimizer)
        state, c = self.run.state, self.config
        target = self._target()
        while not state.finished:
            epoch = state.epoch
            if epoch and epoch % c.period == 0 and not self.curriculum.finished:
                self.curriculum.update(ranking_lists(self.student, self.domain), epoch)
                target = self._target()
            row = self._train_epoch(epoch, target)
            last = epoch + 1 >= c.epochs
            validated = last or (epoch + 1) % c.validate_every == 0
            if validated:
                ranks = rank_targets(self.student, self.domain, "valid", device=self.device)
                self.run.note_metrics(row, ranking_metrics(ranks.rank), self.student)
            self.run.finish_epoch(row, last)
            if validated:
                self.run.save(self.everything, self.optimizer)
            self.on_epoch(row)
        return self.run.result(self.student)

    def _train_epoch(self, epoch: int, target: npt.NDArray[np.int32]) -> dict[str, Any]:
        """One pass over the interactions of the training part; returns the log row."""
        began = time.perf_counter()
        ordered = self.curriculum.finished
        loss_of, weight = (
            (rank_loss, self.config.rank_weight) if ordered else (overall_loss, self.config.overall_weight)
        )
        self.student.train()
        total, count = 0.0, 0
        for step, users in enumerate(self._user_batches(epoch)):
            batch = self.batches(self.row_of[users]).to(self.device)
            observed, listed = (
                to_device(torch.from_numpy(lists[users].astype(np.int64) - 1), self.device)
                for lists in (self.observed, target)
            )
            loss = weight * self._loss(loss_of, batch, users, observed, listed)
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self.optimizer.step()
            value = float(loss.detach())
            self.run.require_sound(value / len(users), step, "Lower lr.")
            total, count = total + value, count + len(users)
        return {
            "epoch": epoch,
            "phase": "rank" if ordered else "overall",
            "level": float(self.curriculum.level.float().mean()),
            "loss": total / count,
            "seconds": round(time.perf_counter() - began, 3),
        }

    def _user_batches(self, epoch: int) -> Iterator[npt.NDArray[np.int32]]:
        """The distinct users, sorted, of each batch of shuffled training interactions."""
        owners = self.domain.user_of[self.domain.training_part]
        owners = owners[np.random.default_rng([self.seed, epoch]).permutation(len(owners))]
        for start in range(0, len(owners), self.config.batch_size):
            yield np.unique(owners[start : start + self.config.batch_size])

    def _loss(
        self,
        loss_of: Callable[..., torch.Tensor],
        batch: Batch,
        users: npt.NDArray[np.int32],
        observed: torch.Tensor,
        listed: torch.Tensor,
    ) -> torch.Tensor:
        """The sum of a loss over a batch's users; column 0 of the scores is item 1."""

        n_items = self.domain.n_items
        places, bounds = self.training.cells(users, n_items, first=1)
        own = to_device(torch.from_numpy(places), self.device)

        def of_rows(scores: torch.Tensor, rows: slice) -> torch.Tensor:
            start, stop, _ = rows.indices(len(users))
            # (r, n_items) which items each user has.
            mask = torch.zeros(scores.shape, dtype=torch.bool, device=self.device)
            mask.view(-1).index_fill_(0, own[bounds[start] : bounds[stop]] - start * n_items, True)
            return loss_of(clamp_scores(scores), observed[rows], listed[rows], mask)

        encoded, table = self.student(batch)
        if not self.student.factored:
            return of_rows(self.student.score_items(encoded)[:, 1:].float(), slice(None))
        table = self.student.item_table() if table is None else table
        return loss_by_rows(of_rows, encoded, table[1:])

    def _target(self) -> npt.NDArray[np.int32]:
        """(n_users, K) what the teachers recommend where each user is."""
        level = self.curriculum.level.numpy()
        return target_lists(self.teachers, self.importances, level, self.training, self.domain.n_items)

    def _fit_list(self, lists: npt.NDArray[np.int32], teacher: int, checkpoint: int) -> npt.NDArray[np.int32]:
        """The first K items of each list, checked."""
        where = f"teacher {teacher}, checkpoint {checkpoint}: ranking lists"
        n_users, n_items = self.domain.n_users, self.domain.n_items
        if lists.ndim != 2 or len(lists) != n_users or lists.shape[1] < self.length:
            raise DataError(
                f"{where} of shape {lists.shape}, {self.domain.name} needs ({n_users}, {self.length}) or more. "
                "Make them again."
            )
        cut = lists[:, : self.length]
        with_history = np.array([len(items) > 0 for items in self.training])
        listed = cut[with_history]
        if listed.size and (listed.min() < 1 or listed.max() > n_items):
            raise DataError(f"{where} hold items from {listed.min()} to {listed.max()}, not from 1 to {n_items}.")
        return np.where(with_history[:, None], cut, 0).astype(np.int32)


def _padded(rows: Sequence[npt.NDArray[np.int32]], width: int) -> npt.NDArray[np.int32]:
    """(n, width) with zeros behind the end of each row."""
    found = np.zeros((len(rows), width), dtype=np.int32)
    for row, items in zip(found, rows, strict=True):
        row[: len(items)] = items
    return found
