"""RecGURU's three phases: reconstruction, encoder against critic, tuning on the target domain.

The target is the first domain, `a`, the source the second, `b`. One Adam holds everything; each phase begins with an
empty state and rates of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from ckd.baselines.common.histories import user_histories
from ckd.baselines.common.run import Run
from ckd.baselines.recguru import RecGURU, RecGURUConfig
from ckd.baselines.recguru_parts.layers import Critic
from ckd.baselines.recguru_parts.losses import critic_loss, gradient_penalty
from ckd.baselines.recguru_parts.pair import RecGURUPair, Side
from ckd.baselines.recguru_parts.sequences import FrequentNegatives, Sequences, end_with_mark
from ckd.data.batch import Batches
from ckd.data.domain import Domain
from ckd.distill.trainer import Trained
from ckd.errors import DataError
from ckd.evaluation.metrics import ranking_metrics
from ckd.evaluation.ranks import rank_targets
from ckd.nn.device import pick_device
from ckd.nn.uncompiled import Adam
from ckd.students.common.negatives import NegativeSampler

Phase = Literal["warmup", "adversarial", "tuning"]

#: Share of T that the encoder spends against the critic, and again in the tuning.
SHARE = 0.6

METRIC = "ndcg@10"

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lengths:
    """Epochs of each phase; in the second half of the tuning negatives are drawn by popularity."""

    warmup: int
    adversarial: int
    tuning: int

    @classmethod
    def of(cls, config: RecGURUConfig) -> Lengths:
        part = max(1, round(SHARE * config.epochs))
        return cls(config.warmup_epochs, part, part)

    @property
    def total(self) -> int:
        return self.warmup + self.adversarial + self.tuning

    def phase(self, epoch: int) -> tuple[Phase, int]:
        """The phase of an epoch, and the epoch's number within it."""
        if epoch < self.warmup:
            return "warmup", epoch
        if epoch < self.warmup + self.adversarial:
            return "adversarial", epoch - self.warmup
        return "tuning", epoch - self.warmup - self.adversarial


def noam_rate(step: int, warmup: int, d_model: int) -> float:
    """d^-0.5 * min(n^-0.5, n * w^-1.5) at step n from 1 (Vaswani et al., NeurIPS 2017, Eq. 3)."""
    return float(d_model**-0.5 * min(step**-0.5, step * warmup**-1.5))


class Corner:
    """One domain in training: its users' sequences, and negatives for them."""

    def __init__(self, domain: Domain, width: int, device: torch.device) -> None:
        self.domain, self.width, self.device = domain, width, device
        histories = user_histories(domain)
        self.users = histories.users.astype(np.int64)
        self.build = Batches(domain, histories, share_prefixes=False)
        self.uniform = NegativeSampler.of(domain).to(device)
        self.frequent = FrequentNegatives(domain, self.uniform).to(device)

    def __len__(self) -> int:
        return len(self.users)

    def sequences(self, rows: Ints) -> Sequences:
        """The training sequences of the users in these rows."""
        batch = self.build(rows)
        encoder = end_with_mark(batch.sequences, batch.lengths, self.width, self.domain.n_items + 1)
        return Sequences.for_training(encoder).to(self.device)

    def negatives(self, rows: Ints, n: int, frequent: bool = False) -> torch.Tensor:
        """(B, L, n) items that the users do not have."""
        users = torch.from_numpy(self.users[rows]).to(self.device)
        draw = self.frequent if frequent else self.uniform
        found: torch.Tensor = draw(users, self.width * n)
        return found.view(len(rows), self.width, n)

    def batches(self, seed: list[int], size: int) -> Iterator[Ints]:
        """Rows in shuffled batches, pass after pass, without end; a remainder is a batch of its own."""
        passes = 0
        while True:
            order = np.random.default_rng([*seed, passes]).permutation(len(self))
            yield from (order[start : start + size] for start in range(0, len(order), size))
            passes += 1


class RecGURUTrainer:
    """Trains RecGURU on a target and a source domain.

    Args:
        model: what serves the target domain afterwards; its weights are drawn anew.
        target: the domain that is ranked.
        source: the domain that the encoder is shared with.
        config: sizes and schedule.
        folder: where checkpoints and the log go.
        identity: configuration and fingerprints of the run; a checkpoint of another run is refused.
        seed: of weights, batches, negatives and dropout.
        device: `auto`, or torch's name of one.
        on_epoch: called with each finished log row.

    Raises:
        DataError: a domain has no user with a training part.
        ConfigError: no such device.
    """

    def __init__(
        self,
        model: RecGURU,
        target: Domain,
        source: Domain,
        config: RecGURUConfig,
        folder: Path,
        identity: dict[str, Any],
        seed: int = 0,
        device: str = "auto",
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.device = pick_device(device)
        self.config, self.seed, self.target = config, seed, target
        self.on_epoch = on_epoch or (lambda _: None)
        torch.manual_seed(seed)
        self.pair = RecGURUPair(config, target.n_items + 1, source.n_items + 1, model.width)
        self.critic = Critic(config.d_model, config.critic_dropout)
        self.everything = nn.ModuleDict({"pair": self.pair, "critic": self.critic}).to(self.device)
        self.model = model.share(self.pair, "a").to(self.device)
        self.corners: dict[Side, Corner] = {
            "a": Corner(target, model.width, self.device),
            "b": Corner(source, model.width, self.device),
        }
        for corner in self.corners.values():
            if not len(corner):
                raise DataError(f"{corner.domain.name}: no user has a training part to learn from.")
        self.overlap = _overlap(self.corners["a"], self.corners["b"])
        self.lengths = Lengths.of(config)
        self.steps = -(-len(self.corners["a"]) // config.batch_size)
        self.optimizer = Adam([{"params": [*self.pair.parameters()]}, {"params": [*self.critic.parameters()]}])
        self.run = Run(folder, identity, METRIC, config.patience)

    def fit(self) -> Trained:
        """Train until early stopping of the tuning or its last epoch, from the last checkpoint where there is one.

        Raises:
            TrainingDiverged: names the step and the last good checkpoint.
            DataError: the folder holds another run.
        """
        torch.manual_seed(self.seed)
        self.run.resume(self.everything, self.optimizer)
        state = self.run.state
        while not state.finished:
            phase, number = self.lengths.phase(state.epoch)
            self._enter(phase, fresh=number == 0)
            row = self._train_epoch(phase, number)
            last = state.epoch + 1 >= self.lengths.total
            if phase == "tuning" and (last or (number + 1) % self.config.validate_every == 0):
                ranks = rank_targets(self.model, self.target, "valid", device=self.device)
                self.run.note_metrics(row, ranking_metrics(ranks.rank), self.model)
            self.run.finish_epoch(row, last)
            self.run.save(self.everything, self.optimizer)
            self.on_epoch(row)
        return self.run.result(self.model)

    def _enter(self, phase: Phase, fresh: bool) -> None:
        """Set the phase's rates; a phase that begins has no memory of gradients before it."""
        if fresh:
            self.optimizer.state.clear()
        c = self.config
        lr, betas, eps = {
            "warmup": (0.0, (0.9, 0.98), 1e-9),
            "adversarial": (c.adversarial_lr, (0.5, 0.9), 1e-8),
            "tuning": (c.lr, (0.9, 0.98), 1e-8),
        }[phase]
        for group in self.optimizer.param_groups:
            group |= {"lr": lr, "betas": betas, "eps": eps}

    def _train_epoch(self, phase: Phase, number: int) -> dict[str, Any]:
        began = time.perf_counter()
        self.everything.train()
        size = self.config.batch_size
        epoch = self.run.state.epoch
        rows_a = self.corners["a"].batches([self.seed, epoch, 0], size)
        rows_b = self.corners["b"].batches([self.seed, epoch, 1], size)
        sums: dict[str, float] = {}
        for step in range(self.steps):
            if phase == "warmup":
                self._set_rate(noam_rate(number * self.steps + step + 1, self.config.noam_steps, self.config.d_model))
                parts = self._reconstructions(next(rows_a), next(rows_b))
            elif phase == "adversarial":
                for _ in range(self.config.critic_steps):
                    self._step(self._critic_parts(next(rows_a), next(rows_b)), step)
                parts = self._generator_parts(next(rows_a), next(rows_b))
            else:
                parts = self._tuning_parts(next(rows_a), frequent=2 * number >= self.lengths.tuning)
            for name, value in self._step(parts, step).items():
                sums[name] = sums.get(name, 0.0) + value
        return {
            "epoch": epoch,
            "phase": phase,
            **{name: value / self.steps for name, value in sums.items()},
            "seconds": round(time.perf_counter() - began, 3),
        }

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _step(self, parts: dict[str, torch.Tensor], step: int) -> dict[str, float]:
        """Descend the sum of the parts; parameters that it does not depend on stay."""
        values = torch.stack(list(parts.values()))
        loss = values.sum()
        # Read at once: each reading waits for the device.
        total, *each = torch.cat([loss[None], values]).detach().tolist()
        self.run.require_sound(total, step, "Lower lr or adversarial_lr.")
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return dict(zip(parts, each, strict=True))

    def _reconstructions(self, rows_a: Ints, rows_b: Ints) -> dict[str, torch.Tensor]:
        rows: dict[Side, Ints] = {"a": rows_a, "b": rows_b}
        return {f"recon_{side}": self._reconstruction(side, rows[side]) for side in rows}

    def _reconstruction(self, side: Side, rows: Ints) -> torch.Tensor:
        corner = self.corners[side]
        negatives = corner.negatives(rows, self.config.recon_negatives)
        return self.pair.reconstruction_loss(side, corner.sequences(rows), negatives)

    def _users(self, side: Side, rows: Ints) -> torch.Tensor:
        return self.pair.users(side, self.corners[side].sequences(rows).encoder)

    def _critic_parts(self, rows_a: Ints, rows_b: Ints) -> dict[str, torch.Tensor]:
        """What the critic descends; the encoder gets no gradient."""
        with torch.no_grad():
            users_a, users_b = self._users("a", rows_a), self._users("b", rows_b)
        n = min(len(users_a), len(users_b))
        mixing = torch.rand(n, 1, device=self.device)
        penalty = gradient_penalty(self.critic, users_a[:n], users_b[:n], mixing)
        return {
            "critic": critic_loss(self.critic(users_a), self.critic(users_b)),
            "penalty": self.config.penalty_weight * penalty,
        }

    def _generator_parts(self, rows_a: Ints, rows_b: Ints) -> dict[str, torch.Tensor]:
        """What everything but the critic descends."""
        self.critic.requires_grad_(False)
        parts = self._reconstructions(rows_a, rows_b)
        users_a, users_b = self._users("a", rows_a), self._users("b", rows_b)
        parts["adversarial"] = -critic_loss(self.critic(users_a), self.critic(users_b))
        self.critic.requires_grad_(True)
        if len(self.overlap) and self.config.overlap_weight:
            at = torch.randint(len(self.overlap), (min(self.config.batch_size, len(self.overlap)),)).numpy()
            both = [self._users(side, self.overlap[at, i]) for i, side in enumerate(self.corners)]
            parts["overlap"] = self.config.overlap_weight * F.mse_loss(both[0], both[1])
        return parts

    def _tuning_parts(self, rows: Ints, frequent: bool) -> dict[str, torch.Tensor]:
        """Recommendation and reconstruction on the target domain alone."""
        corner = self.corners["a"]
        negatives = corner.negatives(rows, self.config.bpr_negatives, frequent)
        loss = self.pair.recommendation_loss("a", corner.sequences(rows), negatives)
        return {"recommendation": loss, "recon_a": self._reconstruction("a", rows)}


def _overlap(first: Corner, second: Corner) -> Ints:
    """(n, 2) rows in both corners of the users whose raw id is the same."""
    rows = {raw: row for row, raw in enumerate(second.domain.user_ids[second.users])}
    names = enumerate(first.domain.user_ids[first.users])
    pairs = [(row, rows[raw]) for row, raw in names if raw in rows]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)
