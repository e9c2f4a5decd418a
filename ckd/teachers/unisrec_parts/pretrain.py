"""Pre-training of UniSRec over several domains (Hou et al., KDD 2022, section 2.2).

Each batch mixes instances of all domains. Two tasks: the next item's text among the batch's others (sequence-item),
and another view of the same history among the batch's others (sequence-sequence).
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ckd.config import TrainConfig
from ckd.data.atomic import replace_file
from ckd.data.batch import Batch, Batches, to_device
from ckd.data.domain import Domain
from ckd.data.features import ItemFeatures, list_features, load_features
from ckd.data.merge import merge_domains, merge_features, same_encoder
from ckd.distill.checkpoint import TrainState, load_checkpoint, save_checkpoint
from ckd.distill.feed import Ahead
from ckd.distill.trainer import TrainingDiverged
from ckd.errors import DataError
from ckd.nn.device import choose_gpu, pick_device
from ckd.nn.uncompiled import Adam
from ckd.nn.unit import unit
from ckd.teachers.common.identity import continued
from ckd.teachers.common.settings import refuse_settings
from ckd.teachers.protocol import Report
from ckd.teachers.unisrec import UniSRec
from ckd.teachers.unisrec_parts.augment import drop_items, drop_words
from ckd.teachers.unisrec_parts.config import UniSRecPretrainConfig
from ckd.teachers.unisrec_parts.contrast import in_batch_contrast


@dataclass(frozen=True)
class Views:
    """A batch, its augmented view, and where their items lie among the distinct ones.

    Attributes:
        batch, view: the histories as they are and as augmented; instance i of one is instance i of the other.
        items: (U,) int64 distinct items of both and of the targets; those of the dropped texts follow all others.
        batch_places, view_places: shape of the packed items, index into `items`.
        target_places: (B,) index into `items`.
    """

    batch: Batch
    view: Batch
    items: torch.Tensor
    batch_places: torch.Tensor
    view_places: torch.Tensor
    target_places: torch.Tensor

    @classmethod
    def of(cls, batch: Batch, view: Batch) -> Views:
        parts = (batch.packed.items, view.packed.items, batch.targets)
        items, places = torch.unique(torch.cat([part.flatten() for part in parts]), return_inverse=True)
        split = torch.split(places, [part.numel() for part in parts])
        return cls(batch, view, items, *(p.view(part.shape) for p, part in zip(split, parts, strict=True)))

    def to(self, device: torch.device) -> Views:
        tensors = (self.items, self.batch_places, self.view_places, self.target_places)
        return Views(self.batch.to(device), self.view.to(device), *(to_device(t, device) for t in tensors))


def pretraining_losses(model: UniSRec, views: Views, sequence_weight: float) -> dict[str, torch.Tensor]:
    """The sequence-item loss, the sequence-sequence loss, and their weighted sum (Eqs. 7 to 9).

    The adaptor runs once over the distinct items, and both tasks share its result. A weight of 0 saves the second task,
    which is half of the work.
    """
    vectors = model.vectors(views.items)
    batch, view = views.batch, views.view
    anchors = model.contextualise(F.embedding(views.batch_places, vectors), batch.packed)
    positives = unit(F.embedding(views.target_places, vectors))
    item = in_batch_contrast(anchors, positives, batch.targets, model.temperature)
    if sequence_weight == 0.0:
        return {"item": item, "loss": item}
    others = model.contextualise(F.embedding(views.view_places, vectors), view.packed)
    sequence = in_batch_contrast(anchors, others, batch.targets, model.temperature)
    return {"item": item, "sequence": sequence, "loss": item + sequence_weight * sequence}


class Pretraining:
    """One pre-training run: data, model, optimizer and state.

    Args:
        domains: source domains, saved, each with the features that the configuration names.
        config: sizes and augmentation.
        train: optimisation settings; `epochs` and `batch_size` are UniSRec's where none are given.
        seed: of initialisation, order, augmentation and dropout.
        folder: where checkpoints, log and the result go.
        progress: told of every step.

    Raises:
        ConfigError: no domain, or one given twice, or a training setting that this does nothing with.
        DataError: a domain lacks a feature, its two features do not fit, or `folder` holds another run.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        config: UniSRecPretrainConfig,
        train: TrainConfig,
        seed: int,
        folder: Path,
        progress: Report,
    ) -> None:
        refuse_settings(train, "ce", "layout", "ema", "patience", "validate_every", what="UniSRec's pre-training")
        self.config, self.train, self.seed, self.folder, self.progress = config, train, seed, folder, progress
        self.batch_size = train.batch_size or UniSRec.PRETRAIN_DEFAULTS["batch_size"]
        self.epochs = train.epochs or UniSRec.PRETRAIN_DEFAULTS["epochs"]
        self.device = pick_device(train.device)
        merged = merge_domains(domains)
        self.instances = merged.instances("train")
        if len(self.instances) < 2:
            raise DataError(f"domains {merged.name}: {len(self.instances)} training instances; a contrast needs two.")
        self.batches = Batches(merged, self.instances)
        texts = [load_features(domain, config.feature) for domain in domains]
        tables = [merge_features(texts)]
        self.word_drop = config.item_drop_share < 1.0 and config.sequence_weight > 0.0
        if self.word_drop:
            dropped = [_dropped_features(*each, config) for each in zip(domains, texts, strict=True)]
            tables.append(merge_features(dropped))
        self.offset = merged.n_items + 1
        stacked = torch.from_numpy(np.concatenate([table.vectors for table in tables]))
        torch.manual_seed(seed)
        self.model = UniSRec(config, stacked, len(stacked) - 1, merged.history_cap).to(self.device).train()
        self.optimizer = Adam(self.model.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=True)
        self.origin = {
            "domains": {domain.name: domain.fingerprint for domain in domains},
            "features": {table.name: table.fingerprint for table in tables},
            "encoder": tables[0].source["encoder"],
            "seed": seed,
            "train": train.identity("checkpoint_steps"),
        }
        identity = {"teacher": "unisrec", "config": config.model_dump(mode="json"), **self.origin}
        identity["order"] = [domain.name for domain in domains]
        self.identity = continued(identity, self.last, added=("order",))
        self.state = TrainState()

    @property
    def last(self) -> Path:
        return self.folder / "last.safetensors"

    def run(self) -> None:
        """Train from the last checkpoint, where there is one, to the last epoch, and write the teacher."""
        if self.last.exists():
            self.state = load_checkpoint(self.last, self.model, self.optimizer, self.identity)
        while self.state.epoch < self.epochs:
            self._train_epoch()
            self._finish_epoch()
        self.model.save_pretrained(self.folder, self.origin)

    def _train_epoch(self) -> None:
        """Take the remaining steps of the current epoch."""
        state = self.state
        chunks = self._chunks(state.epoch)
        began = time.perf_counter()
        for views in Ahead(enumerate(chunks[state.step :], start=state.step), self._prepare):
            losses = self._step(views)
            now = time.perf_counter()
            self._add("seconds", now - began)
            began = now
            size = len(views.batch)
            self._add("instances", size)
            for name, value in losses.items():
                self._add(name, value * size)
            state.step += 1
            rate = state.sums["instances"] / state.sums["seconds"]
            note = f"epoch {state.epoch} · loss {losses['loss']:.4f} · {rate:,.0f} inst/s"
            self.progress(state.epoch * len(chunks) + state.step, self.epochs * len(chunks), "step", note)
            if self.train.checkpoint_steps and state.step % self.train.checkpoint_steps == 0:
                self._save()

    def _chunks(self, epoch: int) -> list[np.ndarray]:
        """The instance ids of each step of an epoch; a last one of a single instance joins the one before."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.instances))
        bounds = list(range(self.batch_size, len(order) - 1, self.batch_size))
        return np.split(order, bounds)

    def _prepare(self, step: tuple[int, np.ndarray]) -> Views:
        """Runs in the background thread: the batch, its view, and the distinct items of both, on the device."""
        number, ids = step
        choose_gpu(self.device)
        batch = self.batches(ids)
        draws = np.random.default_rng([self.seed, self.state.epoch, number])
        return Views.of(batch, self._augment(batch, draws)).to(self.device)

    def _augment(self, batch: Batch, draws: np.random.Generator) -> Batch:
        """One view of the batch: items dropped, or words of items' texts."""
        histories, lengths = batch.histories().numpy(), batch.lengths.numpy()
        drop_whole_items = draws.random() < self.config.item_drop_share
        drop = draws.random(histories.shape) < self.config.drop_ratio
        if drop_whole_items or not self.word_drop:
            histories, lengths = drop_items(histories, lengths, ~drop)
        else:
            histories = drop_words(histories, lengths, drop, self.offset)
        return Batch.from_histories(torch.from_numpy(histories), torch.from_numpy(lengths), batch.targets, batch.users)

    def _step(self, views: Views) -> dict[str, float]:
        """Forward, backward and update; returns the losses."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.train.precision == "bf16"):
            losses = pretraining_losses(self.model, views, self.config.sequence_weight)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([losses["loss"]])
        if self.train.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.train.clip_norm)
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not math.isfinite(values["loss"]):
            kept = self.last if self.last.exists() else "none"
            raise TrainingDiverged(
                f"loss {values['loss']} at epoch {self.state.epoch}, step {self.state.step} of pre-training; last good "
                f"checkpoint: {kept}. Lower train.lr or set train.clip_norm."
            )
        self.optimizer.step()
        return values

    def _add(self, name: str, value: float) -> None:
        self.state.sums[name] = self.state.sums.get(name, 0.0) + value

    def _finish_epoch(self) -> None:
        """Log and save."""
        state = self.state
        sums = dict(state.sums)
        instances, seconds = sums.pop("instances"), sums.pop("seconds")
        row: dict[str, Any] = {"epoch": state.epoch, "instances": int(instances)}
        row |= {name: value / instances for name, value in sorted(sums.items())}
        row |= {"seconds": round(seconds, 3), "instances_per_second": round(instances / seconds, 1)}
        state.rows.append(row)
        state.epoch, state.step, state.sums = state.epoch + 1, 0, {}
        self._save()
        with replace_file(self.folder / "log.csv") as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(state.rows)

    def _save(self) -> None:
        save_checkpoint(self.last, self.model, self.optimizer, self.state, self.identity)


def _dropped_features(domain: Domain, text: ItemFeatures, config: UniSRecPretrainConfig) -> ItemFeatures:
    """The vectors of the texts with words dropped; refused where they are no view of `text`, as far as that is known.

    Raises:
        DataError: there are none, or they are of another size, encoder or share of words.
    """
    again = f"`ckd encode-items --domain {domain.name} -o features.word_drop={config.drop_ratio}`"
    if domain.folder is not None and config.dropped_feature not in list_features(domain.folder):
        raise DataError(
            f"{domain.folder}: no feature {config.dropped_feature!r}, which the word-drop view reads. Make it with "
            f"{again}, or set teacher.item_drop_share=1."
        )
    dropped = load_features(domain, config.dropped_feature)
    where = f"feature {dropped.name!r} of domain {domain.name!r}"
    if dropped.dim != text.dim:
        raise DataError(
            f"{where}: vectors of size {dropped.dim}, feature {text.name!r} has {text.dim}. "
            f"Encode both with one encoder, this one with {again}."
        )
    there, here = dropped.source.get("encoder"), text.source.get("encoder")
    if there and here and not same_encoder(there, here):
        raise DataError(
            f"{where}: comes from another encoder than feature {text.name!r}. "
            f"Encode both with one encoder, this one with {again}."
        )
    # An encoded feature that says nothing of words has dropped none; an imported one may have.
    share = dropped.source.get("word_drop", 0.0 if there else config.drop_ratio)
    if share != config.drop_ratio:
        raise DataError(
            f"{where}: a share of {share} of the words was dropped, teacher.drop_ratio is {config.drop_ratio}. "
            f"Make it with {again}, or set teacher.drop_ratio={share}."
        )
    return dropped


__all__ = ["Pretraining", "Views", "pretraining_losses"]
