"""Recformer's two-stage fine-tuning (Recformer section 3.4, Algorithm 1).

Stage one encodes the item table anew at the start of every epoch and keeps the best weights together with the table
they were validated with. Stage two goes on from there with that table frozen. The table never receives gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from ckd.config import TrainConfig
from ckd.data.domain import Domain
from ckd.distill.best import Best
from ckd.distill.checkpoint import TrainState, load_checkpoint, save_checkpoint
from ckd.distill.trainer import TrainingDiverged
from ckd.errors import DataError
from ckd.evaluation.metrics import ranking_metrics
from ckd.evaluation.ranks import rank_targets
from ckd.nn.device import pick_device
from ckd.nn.weights import read_weights
from ckd.teachers.common.identity import continued, start_content
from ckd.teachers.common.settings import refuse_settings
from ckd.teachers.protocol import FinetuneResult, Keep, Report
from ckd.teachers.recformer_parts.config import RecformerConfig
from ckd.teachers.recformer_parts.files import LAST
from ckd.teachers.recformer_parts.losses import next_item_loss
from ckd.teachers.recformer_parts.tokenise import Ints, newest_first
from ckd.teachers.recformer_parts.training import linear_schedule, seed_torch, write_log

if TYPE_CHECKING:
    from ckd.teachers.recformer import Recformer


class Finetuning:
    """One fine-tuning run; `run` leaves `teacher` with the best weights of both stages and their item table.

    `train.epochs` bounds each stage. `train.patience` validations without a better NDCG@10 end stage one,
    `patience_two` of the teacher's configuration stage two. The learning rate rises, then falls linearly over the
    steps of both stages together.

    Args:
        folder: where checkpoints and log go. A run that was cut off goes on after its last whole epoch.
        keep: told of each epoch, validated or not.

    Raises:
        ConfigError: a training setting that this teacher does not have.
        DataError: no training or no validation target, or `folder` holds another run.
    """

    def __init__(
        self,
        teacher: Recformer,
        domain: Domain,
        train: TrainConfig,
        seed: int,
        folder: Path,
        report: Report,
        keep: Keep | None = None,
    ) -> None:
        refuse_settings(train, "ce", "checkpoint_steps", "ema", "layout", what="Recformer")
        assert isinstance(teacher.config, RecformerConfig)
        self.config = teacher.config
        if not len(domain.instances("valid")):
            raise DataError(f"{domain.name}: no validation target with a history to stop by.")
        self.teacher, self.domain, self.train, self.seed = teacher, domain, train, seed
        self.folder, self.report = folder, report
        self.best = Best(folder)
        self.keep = keep or (lambda _: None)
        self.epochs = train.epochs or teacher.TRAIN_DEFAULTS["epochs"]
        batch_size = train.batch_size or teacher.TRAIN_DEFAULTS["batch_size"]
        self.draws = Draws(domain, self.config.max_items, batch_size, seed)
        self.lr = linear_schedule(train.lr, self.config.warmup_steps, 2 * self.epochs * self.draws.steps)
        teacher.to(pick_device(train.device))
        self.optimizer = torch.optim.AdamW(
            teacher.longformer.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True
        )
        identity = {
            "teacher": "recformer",
            "config": self.config.model_dump(mode="json"),
            "train": train.identity(),
            "domain": domain.fingerprint,
            "seed": seed,
            **start_content(self.config.start),
        }
        self.identity = continued(identity, folder / LAST, added=("start",))
        # `sums` tells the stage, and the epochs that it has taken.
        self.state = TrainState(sums={"stage": 1, "epochs": 0})

    def run(self) -> FinetuneResult:
        """Train through both stages.

        Raises:
            TrainingDiverged: the loss is not a number any more.
        """
        last = self.folder / LAST
        if last.exists():
            self._make_room()
            self.state = load_checkpoint(last, self.teacher, self.optimizer, self.identity)
            self.best.settle(self.state.best_epoch)
        while not self.state.finished:
            if self.state.sums["stage"] == 1:
                self.teacher.set_table(None)
                self.teacher.set_table(self.teacher.encode_catalogue())
            loss = self._train_epoch()
            self._finish_epoch(loss)
        self._restore()
        return FinetuneResult(self.state.best, self.state.epoch, self.state.rows)

    def _train_epoch(self) -> float:
        """One pass over all users, each with one position drawn for this epoch; the mean loss."""
        epoch, teacher = self.state.epoch, self.teacher
        assert teacher.item_embedding is not None
        table = F.normalize(teacher.item_embedding.weight, dim=1)
        seed_torch(self.seed, epoch)
        teacher.train()
        total, done = 0.0, 0
        for step, (recent, labels, negatives) in enumerate(self.draws(epoch, self.config.negatives)):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr(epoch * self.draws.steps + step)
            self.optimizer.zero_grad(set_to_none=True)
            total += self._backward(table, recent, labels, negatives)
            done += len(recent)
            if not math.isfinite(total):
                raise TrainingDiverged(f"loss {total} at epoch {epoch}, step {step} of fine-tuning. Lower train.lr.")
            if self.train.clip_norm is not None:
                clip_grad_norm_(teacher.parameters(), self.train.clip_norm)
            self.optimizer.step()
            note = f"stage {self.state.sums['stage']} · epoch {epoch} · loss {total / done:.4f}"
            self.report(step + 1, self.draws.steps, "step", note)
        teacher.eval()
        return total / done

    def _backward(self, table: torch.Tensor, recent: Ints, labels: Ints, negatives: Ints | None) -> float:
        """Gradients of a batch's mean loss, by passes over histories of similar length; the summed loss."""
        teacher, device, losses = self.teacher, table.device, []
        for rows in teacher.passes(recent):
            with torch.autocast(device.type, torch.bfloat16, enabled=self.train.precision == "bf16"):
                vectors = teacher.longformer.pooled(teacher.compose(recent[rows]))
            others = None if negatives is None else torch.from_numpy(negatives[rows]).to(device)
            label = torch.from_numpy(labels[rows]).to(device)
            loss = next_item_loss(vectors.float(), table, label, teacher.temperature, others).sum()
            torch.autograd.backward(loss / len(recent))
            losses.append(loss.detach())
        # Read once: each reading waits for the device.
        return sum(torch.stack(losses).tolist())

    def _finish_epoch(self, loss: float) -> None:
        """Validate where it is due, keep the best, move on to the next stage or the end, and save."""
        state, sums = self.state, self.state.sums
        row: dict[str, Any] = {"epoch": state.epoch, "stage": sums["stage"], "loss": loss}
        row["lr"] = self.optimizer.param_groups[0]["lr"]
        state.epoch += 1
        sums["epochs"] += 1
        last_epoch = sums["epochs"] == self.epochs
        if last_epoch or sums["epochs"] % self.train.validate_every == 0:
            row["ndcg@10"] = self._validate()
            state.rows.append(row)
        self.keep({"epoch": row["epoch"], "valid_ndcg@10": row.get("ndcg@10")})
        patience = self.train.patience if sums["stage"] == 1 else self.config.patience_two
        if last_epoch or state.stale == patience:
            self._restore()
            state.finished = sums["stage"] == 2
            state.stale = 0
            state.sums = {"stage": 2, "epochs": 0}
        save_checkpoint(self.folder / LAST, self.teacher, self.optimizer, state, self.identity)
        self.best.settle(state.best_epoch)
        write_log(self.folder, state.rows)

    def _validate(self) -> float:
        """NDCG@10 on the validation targets; the best weights and their table are written down."""
        state = self.state
        ndcg = ranking_metrics(rank_targets(self.teacher, self.domain, "valid").rank)["ndcg@10"]
        state.stale += 1
        if ndcg > state.best:
            state.best, state.best_epoch, state.stale = ndcg, state.epoch, 0
            self.best.save(self.teacher, {"epoch": state.epoch, "valid_ndcg@10": ndcg}, self.identity)
        return ndcg

    def _restore(self) -> None:
        """Take back the best weights so far and the table they were validated with."""
        self._make_room()
        self.teacher.load_state_dict(read_weights(self.best.weights))

    def _make_room(self) -> None:
        """A table of the right shape, for a state dict to fill."""
        size = self.teacher.start.shape.hidden_size
        self.teacher.set_table(torch.empty(self.domain.n_items, size, device=self.teacher.device))


class Draws:
    """The training samples of an epoch: for every user one position, uniform over the user's training items.

    The first item of a user counts too, as published: its history is empty, a sequence of the first token alone.
    """

    def __init__(self, domain: Domain, max_items: int, batch_size: int, seed: int) -> None:
        self.domain, self.batch_size, self.seed = domain, batch_size, seed
        self.most = min(max_items, domain.history_cap)
        self.positions = np.flatnonzero(domain.split == 0)
        if not len(self.positions):
            raise DataError(f"{domain.name}: no training target to fine-tune on.")
        self.users, self.first, self.counts = np.unique(
            domain.user_of[self.positions], return_index=True, return_counts=True
        )
        self.steps = math.ceil(len(self.users) / batch_size)

    def __call__(self, epoch: int, negatives: int | None) -> Iterator[tuple[Ints, Ints, Ints | None]]:
        """For each batch (B, S) items newest first, (B,) labels and (B, k) negatives, both as rows of the table."""
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.users))
        chosen = self.positions[self.first + generator.integers(self.counts)][order]
        starts = self.domain.indptr[self.users[order]]
        for low in range(0, len(order), self.batch_size):
            stops = chosen[low : low + self.batch_size]
            recent = newest_first(self.domain.items, starts[low : low + self.batch_size], stops, self.most)
            others = generator.integers(self.domain.n_items, size=(len(stops), negatives)) if negatives else None
            yield recent, self.domain.items[stops].astype(np.int64) - 1, others
