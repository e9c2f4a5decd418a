"""The training loop, for every student and for every teacher that is trained by cross-entropy.

Top-down: `fit` walks the planned epochs; each takes its steps, validates, logs and saves. Several processes may do so
together (`ckd.distill.parallel`): each computes some rows of every batch, and the first one writes and reports.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ckd.config import TrainConfig
from ckd.data.atomic import discard_partials, replace_file, write_json
from ckd.data.batch import Batches, to_device
from ckd.data.domain import Domain
from ckd.distill.averaging import Average
from ckd.distill.best import Best
from ckd.distill.checkpoint import TrainState, generator_state, load_checkpoint, save_checkpoint
from ckd.distill.events import Events, require_tensorboard
from ckd.distill.feed import Ahead
from ckd.distill.masks import in_batch_mask
from ckd.distill.objective import Distillation, Floats, Objective, Step
from ckd.distill.parallel import ALONE, Parallel
from ckd.distill.plan import FULL, Plan, batch_hash
from ckd.errors import CkdError, DataError, StoreError
from ckd.evaluation.metrics import ranking_metrics
from ckd.evaluation.ranks import rank_targets
from ckd.nn.device import choose_gpu, pick_device
from ckd.nn.memory import hold_freed_memory, keep_few_kernels
from ckd.nn.recommender import Recommender
from ckd.nn.uncompiled import Adam
from ckd.nn.weights import put_weights, read_weights

OnStep = Callable[[int, int, int, dict[str, Any]], None]

#: Bytes of targets that are kept for the batches of later epochs.
TARGET_MEMORY = 1 << 30

#: A cross-entropy beyond this has exploded: the log of any catalogue's size is far below. KL knows no such bound.
EXPLODED = 1e5


@dataclass(frozen=True)
class Trained:
    """The outcome of a run: best epoch, its validation metrics, and the log rows."""

    best_epoch: int
    metrics: dict[str, float]
    rows: list[dict[str, Any]]


class TrainingDiverged(CkdError):
    """The loss is not a number any more, or has exploded."""


class Trainer:
    """Trains one model along one plan.

    Args:
        model: what is trained; its parameters that require a gradient.
        domain: where the instances are.
        plan: which batches in which order.
        config: optimisation settings.
        folder: where checkpoints and the log go.
        identity: configuration and fingerprints of the run; a checkpoint of another run is refused.
        distillation: none trains the base model through the same loop.
        seed: of dropout and whatever else the model draws while training.
        on_step: called with (epoch, step, steps in the epoch, the log row so far).
        on_epoch: called with each finished log row.
        keep: the same, before the checkpoint that counts the epoch: after a kill, what it has kept lacks nothing.
        parallel: this process among those that train the model together.

    Raises:
        ConfigError: no such device, or TensorBoard is asked for and missing.
    """

    def __init__(
        self,
        model: Recommender,
        domain: Domain,
        plan: Plan,
        config: TrainConfig,
        folder: Path,
        identity: dict[str, Any],
        distillation: Distillation | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
        keep: Callable[[dict[str, Any]], None] | None = None,
        parallel: Parallel = ALONE,
    ) -> None:
        require_tensorboard(config)
        self.parallel = parallel
        self.device = pick_device(parallel.device or config.device)
        self.model = model.to(self.device)
        self.domain = domain
        self.plan = plan
        self.config = config
        self.folder = folder
        self.best = Best(folder)
        self.identity = identity
        self.on_step = on_step if on_step and parallel.first else lambda *_: None
        self.on_epoch = on_epoch if on_epoch and parallel.first else lambda _: None
        self.keep = keep if keep and parallel.first else lambda _: None
        self.events = Events(folder / "events" if config.tensorboard and parallel.first else None)
        self.batches = Batches(domain, domain.instances("train"), share_prefixes=model.causal)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = Adam(
            self.trained,
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.average = Average(self.trained, config.ema) if config.ema is not None else None
        self.state = TrainState()
        self.seed = seed
        drawn = torch.from_numpy(np.bincount(self.batches.instances.targets, minlength=domain.n_items + 1)).double()
        self.objective = Objective(
            self.model,
            config.ce,
            (drawn / drawn.sum()).to(self.device),
            distillation,
            # Batches that are composed afresh every epoch never come again.
            cached=0 if plan.config.pool == "fresh" else TARGET_MEMORY,
        )

    def fit(self) -> Trained:
        """Train until early stopping or the last planned epoch, from the last checkpoint where there is one.

        Raises:
            TrainingDiverged: names the step, the batch and the last good checkpoint.
            DataError: the folder holds another run.
        """
        hold_freed_memory()
        keep_few_kernels()
        torch.manual_seed(self.parallel.seed(self.seed))
        self._resume()
        epochs = min(self.config.epochs or self.plan.epochs, self.plan.epochs)
        try:
            while not self.state.finished:
                self._train_epoch()
                self._finish_epoch(last=self.state.epoch + 1 >= epochs)
        finally:
            self.events.close()
        put_weights(self.model, read_weights(self.best.weights), str(self.best.weights))
        best = next(row for row in self.state.rows if row["epoch"] == self.state.best_epoch)
        metrics = {k.removeprefix("valid_"): v for k, v in best.items() if k.startswith("valid_")}
        return Trained(self.state.best_epoch, metrics, self.state.rows)

    @property
    def last(self) -> Path:
        return self.folder / "last.safetensors"

    def _resume(self) -> None:
        """Take up the last checkpoint, where there is one, in all processes alike."""
        if self.parallel.first:
            discard_partials(self.folder)
        if self.last.exists():
            self.state = load_checkpoint(
                self.last, self.model, self.optimizer, self.identity, self.parallel.rank, self.average
            )
            # Whoever was killed between the checkpoint and what follows from it left these behind.
            self._write_state()
            self._settle_best()
        places = self.parallel.gather((self.state.epoch, self.state.step, json.dumps(self.identity, default=str)))
        if any(place != places[0] for place in places):
            raise DataError(
                f"{self.folder}: processes {[place[:2] for place in places]} are at different epochs and steps, or of "
                "different runs. Give all the same work folder and settings."
            )
        # Machines of different kinds may have drawn different weights.
        self.parallel.copy_first(self.model.parameters())
        if self.average is not None:
            self.parallel.copy_first(self.average.tensors().values())

    def _train_epoch(self) -> None:
        """Take the remaining steps of the current epoch."""
        state = self.state
        _, order = self.plan.schedule_of(state.epoch)
        self.model.train()
        feed = Ahead(self._raw_steps(order[state.step :]), self._prepare)
        began = time.perf_counter()
        for step in feed:
            values = self._accumulate(self._step(step), step)
            now = time.perf_counter()
            self._add("seconds", now - began)
            self._add("waited", feed.take_waited())
            began = now
            state.step += 1
            self.events.add(self._steps_taken(), values)
            self.on_step(state.epoch, state.step, len(order), self._log_row())
            if self.config.checkpoint_steps and state.step % self.config.checkpoint_steps == 0:
                self._require_finite_weights()
                self._save_last()

    def _raw_steps(self, order: npt.NDArray[np.integer]) -> Iterable[tuple[int, Sequence[Floats]]]:
        """Batch ids in order, with the stored scores of those whose target is not kept from an earlier epoch."""
        ids = [int(batch_id) for batch_id in order]
        choose_gpu(self.device)
        distillation, known = self.objective.distillation, self.objective.targets
        if distillation is None:
            yield from ((batch_id, ()) for batch_id in ids)
            return
        unread = iter(distillation.scores.stream([i for i in ids if i not in known], dtype=None))
        for batch_id in ids:
            yield (batch_id, ()) if batch_id in known else next(unread)

    def _prepare(self, raw: tuple[int, Sequence[Floats]]) -> Step:
        """Runs in the background thread: tensors on the device, and the mask where a loss needs one."""
        batch_id, scores = raw
        ids = self.plan.batch(batch_id)
        # The store's reader compares its hash with the plan's; this ties both to the instances that are trained on.
        if (found := batch_hash(ids)) != int(self.plan.hashes[batch_id]):
            raise StoreError(
                f"plan {self.plan.id}: batch {batch_id} has instances of hash {found:016x}, the plan says "
                f"{int(self.plan.hashes[batch_id]):016x}. Run `ckd plan` again."
            )
        share = self.parallel.share(len(ids))
        users, targets = self.batches.instances.users[ids], self.batches.instances.targets[ids]
        batch = self.batches(ids[share.rows]).to(self.device)
        whole = len(batch) == len(ids)
        everybody, items = batch.users, batch.targets
        if not whole:
            both = (torch.from_numpy(values.astype(np.int64)) for values in (users, targets))
            everybody, items = (to_device(values, self.device) for values in both)
        mask = None
        if self.objective.needs_mask(batch_id):
            mask = to_device(torch.from_numpy(in_batch_mask(users, targets)[share.rows]), self.device)
        tensors = [to_device(torch.from_numpy(s[share.rows]), self.device) for s in scores]
        return Step(batch_id, share, batch, everybody, items, mask, tensors)

    def _step(self, step: Step) -> dict[str, torch.Tensor]:
        """Forward, backward and update; returns the parts of the loss."""
        target = self.objective.target(step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            encoded, table = self.model(step.batch)
            parts = self.objective.loss(step, encoded, table, target)
        self.optimizer.zero_grad(set_to_none=True)
        weight = step.share.weight
        # Weighed here: given a gradient to begin with, backward() would load torch's compiler.
        torch.autograd.backward(parts["loss"] * weight)
        parts = self.parallel.sum_gradients(self.trained, parts, weight)
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        return parts

    def _accumulate(self, parts: dict[str, torch.Tensor], step: Step) -> dict[str, float]:
        """Add the parts of the loss to the epoch's; their values. They are read at once: a reading waits for a GPU."""
        stacked = torch.stack([value.detach().float().to(self.device) for value in parts.values()])
        values = dict(zip(parts, stacked.tolist(), strict=True))
        if not math.isfinite(values["loss"]) or values["ce"] > EXPLODED:
            raise self._diverged(
                f"loss {values['loss']} at epoch {self.state.epoch}, step {self.state.step}, batch {step.batch_id} "
                f"(cross-entropy {values['ce']})"
            )
        self._add("instances", step.share.size)
        for name, value in values.items():
            self._add(name, value * step.share.size)
        return values

    def _diverged(self, what: str) -> TrainingDiverged:
        kept = self.last if self.last.exists() else "none"
        return TrainingDiverged(f"{what}; last good checkpoint: {kept}. Lower train.lr or set train.clip_norm.")

    def _add(self, name: str, value: float) -> None:
        self.state.sums[name] = self.state.sums.get(name, 0.0) + value

    def _finish_epoch(self, last: bool) -> None:
        """Validate, log, keep the best model, decide whether to go on, save."""
        state = self.state
        self._require_finite_weights()
        row = self._log_row()
        with self.average.in_place() if self.average is not None else nullcontext():
            if state.epoch % self.config.validate_every == 0 or last:
                row = self._validate_epoch(row)
            self.keep(row)
        self.events.add(self._steps_taken(), {k: v for k, v in row.items() if k not in state.sums})
        state.rows.append(row)
        state.epoch, state.step, state.sums = state.epoch + 1, 0, {}
        state.finished = last or state.stale >= self.config.patience
        self._save_last()
        self._settle_best()
        self.on_epoch(row)

    def _validate_epoch(self, row: dict[str, Any]) -> dict[str, Any]:
        """The log row with validation metrics; the model is kept where it is the best so far."""
        state = self.state
        row = row | {f"valid_{name}": value for name, value in self.validate().items()}
        # Decided once: by the first process's metrics.
        row = self.parallel.from_first(row)
        if row["valid_ndcg@10"] > state.best:
            state.best, state.best_epoch, state.stale = row["valid_ndcg@10"], state.epoch, 0
            self._save_best(row)
        elif row["stage"] == FULL:
            # A curriculum stage leaves data out: only full epochs tell whether training has converged.
            state.stale += 1
        return row

    def validate(self) -> dict[str, float]:
        """Recall and NDCG on the validation targets, every item ranked."""
        self.model.eval()
        ranks = rank_targets(self.model, self.domain, "valid", device=self.device, parallel=self.parallel)
        return ranking_metrics(ranks.rank)

    def _log_row(self) -> dict[str, Any]:
        sums = dict(self.state.sums)
        instances, seconds, waited = sums.pop("instances"), sums.pop("seconds"), sums.pop("waited")
        stage, _ = self.plan.schedule_of(self.state.epoch)
        return {
            "epoch": self.state.epoch,
            "stage": stage,
            "instances": int(instances),
            **{name: value / instances for name, value in sorted(sums.items())},
            "seconds": round(seconds, 3),
            "instances_per_second": round(instances / seconds, 1),
            "waiting_share": round(waited / seconds, 5),
        }

    def _save_best(self, row: dict[str, Any]) -> None:
        if self.parallel.first:
            self.best.save(self.model, row, self.identity)

    def _settle_best(self) -> None:
        if self.parallel.first:
            self.best.settle(self.state.best_epoch)

    def _save_last(self) -> None:
        self.events.flush()
        others = self.parallel.gather(generator_state(self.model))[1:]
        if self.parallel.first:
            save_checkpoint(self.last, self.model, self.optimizer, self.state, self.identity, others, self.average)
            self._write_state()

    def _steps_taken(self) -> int:
        """Steps since the run began, in all epochs."""
        return int(self.plan.tables.epoch_indptr[self.state.epoch]) + self.state.step

    def _require_finite_weights(self) -> None:
        """A finite loss may still leave weights that are not: a checkpoint of them would be no good one."""
        for name, weight in self.model.named_parameters():
            if not bool(torch.isfinite(weight).all()):
                raise self._diverged(f"{name} is not finite after step {self.state.step} of epoch {self.state.epoch}")

    def _write_state(self) -> None:
        """What people and `ckd` read without opening the checkpoint."""
        if not self.parallel.first:
            return
        write_json(self.folder / "last.json", asdict(self.state))
        if not self.state.rows:
            return
        names = list(dict.fromkeys(name for row in self.state.rows for name in row))
        with replace_file(self.folder / "log.csv") as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(self.state.rows)


def with_defaults(train: TrainConfig, defaults: dict[str, Any]) -> TrainConfig:
    """The training settings with a model's own defaults wherever the user has said nothing."""
    said = {name: getattr(train, name) for name in train.model_fields_set}
    return TrainConfig(**{**defaults, **said})
