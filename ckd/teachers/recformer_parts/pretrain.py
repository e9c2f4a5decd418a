"""Recformer's pre-training over several domains (Recformer section 3.3).

Two tasks in every step: a history finds its next item among the batch's (item-item contrast), and masked words of both
are predicted. Word embeddings are frozen, as published. A held-out share of the users decides which epoch is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint

from ckd.config import TrainConfig
from ckd.data.domain import Domain
from ckd.data.merge import merge_domains
from ckd.distill.best import Best
from ckd.distill.checkpoint import TrainState, load_checkpoint, save_checkpoint
from ckd.distill.trainer import TrainingDiverged
from ckd.errors import DataError
from ckd.nn.device import pick_device
from ckd.nn.weights import read_weights
from ckd.teachers.common.identity import continued, start_content
from ckd.teachers.common.settings import refuse_settings
from ckd.teachers.protocol import Report
from ckd.teachers.recformer import Recformer
from ckd.teachers.recformer_parts.config import RecformerPretrainConfig
from ckd.teachers.recformer_parts.files import LAST, load_pretraining_model, read_start, write_recformer
from ckd.teachers.recformer_parts.losses import IGNORED, contrastive_loss, cosine_logits, masked_token_loss
from ckd.teachers.recformer_parts.mask import mask_words
from ckd.teachers.recformer_parts.tokenise import Ints, ItemTokens, TokenBatch, compose, newest_first, word_starts
from ckd.teachers.recformer_parts.training import linear_schedule, seed_torch, write_log

#: Share of users held out, and the most of them.
HELD_OUT, MOST_HELD_OUT = 0.05, 1024


@dataclass(frozen=True)
class Users:
    """The training parts of users with at least two training items.

    Attributes:
        items: flat items, oldest first.
        starts: (n,) first position of each user.
        counts: (n,) training items of each user, at least 2.
    """

    items: npt.NDArray[np.int32]
    starts: Ints
    counts: Ints

    def __len__(self) -> int:
        return len(self.starts)

    @classmethod
    def of(cls, domain: Domain) -> Users:
        counts = np.bincount(domain.user_of[domain.training_part], minlength=domain.n_users)
        return cls(domain.items, domain.indptr[:-1][counts >= 2], counts[counts >= 2])

    def take(self, rows: Ints) -> Users:
        return Users(self.items, self.starts[rows], self.counts[rows])

    def pairs(self, most: int, generator: np.random.Generator) -> tuple[Ints, Ints]:
        """(n, S) histories, newest first, and (n, 1) targets: each user's target is drawn from the second half."""
        low = np.maximum(1, (self.counts - 1) // 2)
        stops = self.starts + generator.integers(low, self.counts)
        return newest_first(self.items, self.starts, stops, most), self.items[stops].astype(np.int64)[:, None]


class Pretraining:
    """One pre-training run: data, model, optimizer and state.

    Args:
        domains: source domains.
        config: sizes, start and weights of the tasks.
        train: `batch_size` pairs in a step, which are each other's negatives; at most `epochs`; it stops after
            `patience` validations without a better accuracy.
        folder: where checkpoints, log and the result go. A run that was cut off goes on after its last whole epoch.

    Raises:
        ConfigError: no domain, one given twice, or a training setting that pre-training does not have.
        DataError: too few users with two training items, or `folder` holds another run.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        config: RecformerPretrainConfig,
        train: TrainConfig,
        seed: int,
        folder: Path,
        report: Report,
    ) -> None:
        refuse_settings(train, "ce", "checkpoint_steps", "ema", "layout", what="Recformer")
        self.config, self.train, self.seed, self.folder, self.report = config, train, seed, folder, report
        self.batch_size = train.batch_size or Recformer.PRETRAIN_DEFAULTS["batch_size"]
        self.epochs = train.epochs or Recformer.PRETRAIN_DEFAULTS["epochs"]
        self.users, self.held_out = _split(Users.of(merge_domains(domains)), seed)
        self.steps = math.ceil(len(self.users) / self.batch_size)
        self.lr = linear_schedule(train.lr, config.warmup_steps, self.epochs * self.steps)
        torch.manual_seed(seed)
        self.start = read_start(config)
        tokens = [ItemTokens.of(domain.item_table, self.start.tokenizer, config.limits) for domain in domains]
        self.model = load_pretraining_model(self.start).to(pick_device(train.device)).eval()
        # Pools with the network that is trained here.
        self.teacher = Recformer(config, self.start, ItemTokens.joined(tokens))
        self.teacher.longformer = self.model.longformer
        self.model.longformer.embeddings.word_embeddings.requires_grad_(False)
        self.word_starts = word_starts(self.start.tokenizer)
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            lr=train.lr,
            weight_decay=train.weight_decay,
            fused=True,
        )
        self.origin = {
            "domains": {domain.name: domain.fingerprint for domain in domains},
            "seed": seed,
            "train": train.identity(),
        }
        identity = {"teacher": "recformer", "config": config.model_dump(mode="json"), **self.origin}
        identity |= {"order": [domain.name for domain in domains], **start_content(config.start)}
        self.identity = continued(identity, folder / LAST, added=("order", "start"))
        self.state = TrainState()
        self.best = Best(folder)

    def run(self) -> None:
        """Train to the last epoch or to the end of patience, and write the best epoch's model.

        Raises:
            TrainingDiverged: the loss is not a number any more.
        """
        last = self.folder / LAST
        if last.exists():
            self.state = load_checkpoint(last, self.model, self.optimizer, self.identity)
            self.best.settle(self.state.best_epoch)
        while not self.state.finished:
            row = self._train_epoch()
            self._finish_epoch(row)
        self.model.load_state_dict(read_weights(self.best.weights))
        write_recformer(self.folder, "pre-trained", self.model, self.start, self.config, {"origin": self.origin})

    def _train_epoch(self) -> dict[str, float]:
        """One pass over all users, each with one pair drawn for this epoch; the mean losses."""
        epoch = self.state.epoch
        generator = np.random.default_rng([self.seed, epoch])
        seed_torch(self.seed, epoch)
        histories, targets = self.users.pairs(self.config.max_items, generator)
        order = generator.permutation(len(self.users))
        sums = np.zeros(3)
        self.model.train()
        for step in range(self.steps):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr(epoch * self.steps + step)
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            self.optimizer.zero_grad(set_to_none=True)
            losses = [self._contrast(histories[rows], targets[rows])]
            losses += [self._predict_words(side[rows], generator) for side in (histories, targets)]
            if not math.isfinite(sum(losses)):
                raise TrainingDiverged(f"loss {losses} at epoch {epoch}, step {step} of pre-training. Lower train.lr.")
            if self.train.clip_norm is not None:
                clip_grad_norm_(self.model.parameters(), self.train.clip_norm)
            self.optimizer.step()
            sums += np.array(losses) * len(rows)
            note = f"epoch {epoch} · contrast {losses[0]:.4f} · words {losses[1]:.4f} {losses[2]:.4f}"
            self.report(epoch * self.steps + step + 1, self.epochs * self.steps, "step", note)
        self.model.eval()
        names = ("contrast", "history_words", "target_words")
        return dict(zip(names, (sums / len(self.users)).tolist(), strict=True))

    def _contrast(self, histories: Ints, targets: Ints) -> float:
        """Gradients of the contrastive loss, and its value."""
        loss = contrastive_loss(self._vectors(histories), self._vectors(targets), self.config.temperature)
        torch.autograd.backward(loss)
        return float(loss.detach())

    def _vectors(self, recent: Ints) -> torch.Tensor:
        """(B, D) with gradient. Of several passes, each is computed again when its gradient is due: the loss needs
        the vectors of the whole batch at once, but not their graphs."""
        passes = list(self.teacher.passes(recent))
        parts = []
        with self._autocast():
            for rows in passes:
                tokens = self.teacher.compose(recent[rows])
                # From tensors among the arguments torch tells the device whose random numbers have to come again.
                given = (tokens.ids, tokens.types, tokens.items, tokens.lengths)
                parts.append(
                    self._pool(*given) if len(passes) == 1 else checkpoint(self._pool, *given, use_reentrant=False)
                )
        back = np.argsort(np.concatenate(passes), kind="stable")
        return torch.cat(parts).float()[torch.from_numpy(back).to(self.teacher.device)]

    def _pool(self, *tokens: torch.Tensor) -> torch.Tensor:
        """(B, D) vectors of what a `TokenBatch` is made of."""
        return self.model.longformer.pooled(TokenBatch(*tokens))

    def _predict_words(self, recent: Ints, generator: np.random.Generator) -> float:
        """Gradients of the weighted masked-token loss, a mean over the batch's masked tokens; the unweighted value."""
        if not self.config.mlm_weight:
            return 0.0
        special, drawn = self.start.shape.special, []
        for rows in self.teacher.passes(recent):
            tokens = compose(self.teacher.tokens, recent[rows], self.config.limits, special)
            drawn.append(mask_words(tokens, self.word_starts, special.mask, self.config.mlm_probability, generator))
        count = max(1, sum(int((labels != IGNORED).sum()) for _, labels in drawn))
        losses = []
        for tokens, labels in drawn:
            with self._autocast():
                hidden = self.model.longformer(tokens.to(self.teacher.device))
                loss = masked_token_loss(self.model.lm_head, hidden, labels.to(self.teacher.device)) / count
            torch.autograd.backward(self.config.mlm_weight * loss)
            losses.append(loss.detach())
        # Read once: each reading waits for the device.
        return sum(torch.stack(losses).tolist())

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.teacher.device.type, torch.bfloat16, enabled=self.train.precision == "bf16")

    def _finish_epoch(self, losses: dict[str, float]) -> None:
        """Validate where it is due, keep the best, log and save."""
        state = self.state
        row: dict[str, Any] = {"epoch": state.epoch, **losses, "lr": self.optimizer.param_groups[0]["lr"]}
        state.epoch += 1
        last_epoch = state.epoch == self.epochs
        if last_epoch or state.epoch % self.train.validate_every == 0:
            row["accuracy"] = self.accuracy()
            state.rows.append(row)
            state.stale += 1
            if row["accuracy"] > state.best:
                state.best, state.best_epoch, state.stale = row["accuracy"], state.epoch, 0
                self.best.save(self.model, {**row, "epoch": state.epoch}, self.identity)
        state.finished = last_epoch or state.stale == self.train.patience
        save_checkpoint(self.folder / LAST, self.model, self.optimizer, state, self.identity)
        self.best.settle(state.best_epoch)
        write_log(self.folder, state.rows)

    def accuracy(self) -> float:
        """Share of held-out histories whose best target among a batch's is their own item."""
        histories, targets = self.held_out.pairs(self.config.max_items, np.random.default_rng([self.seed, 0]))
        correct = 0
        for low in range(0, len(self.held_out), self.batch_size):
            rows = slice(low, low + self.batch_size)
            own = torch.from_numpy(targets[rows, 0])
            first, second = self.teacher.vectors(histories[rows]), self.teacher.vectors(targets[rows])
            found = cosine_logits(first, second, self.config.temperature).argmax(1).cpu()
            correct += int((own[found] == own).sum())
        return correct / len(self.held_out)


def _split(users: Users, seed: int) -> tuple[Users, Users]:
    """Users to train on, and users held out."""
    if len(users) < 4:
        raise DataError(f"pre-training needs four users with two training items, the domains have {len(users)}.")
    order = np.random.default_rng(seed).permutation(len(users))
    count = min(MOST_HELD_OUT, max(2, round(HELD_OUT * len(users))))
    return users.take(np.sort(order[count:])), users.take(np.sort(order[:count]))
