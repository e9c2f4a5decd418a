"""Pre-training of UniM²Rec over several domains. The tasks are ours; see `ckd.teachers.unim2rec`.

A batch mixes users of all domains. Two tasks: the next item's content among that of the batch's other targets, by
cosine over the temperature; and for the targets that have both, text and image of one item among those of the others.
The epoch with the best validation NDCG@10, over the items of all domains together, is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from ckd.config import PlanConfig, TrainConfig
from ckd.data.batch import Batch
from ckd.data.domain import Domain
from ckd.data.features import load_features
from ckd.data.merge import merge_domains, merge_features
from ckd.distill import live
from ckd.distill.losses import in_batch_cross_entropy
from ckd.distill.masks import in_batch_mask_torch
from ckd.distill.plan import build_plan
from ckd.distill.trainer import Trainer, with_defaults
from ckd.nn.unit import unit
from ckd.teachers.common.identity import continued
from ckd.teachers.common.settings import refuse_settings
from ckd.teachers.protocol import Report
from ckd.teachers.unim2rec import NAME, UniM2Rec
from ckd.teachers.unim2rec_parts.config import UniM2RecPretrainConfig


class PretrainingModel(UniM2Rec):
    """UniM²Rec with the losses of pre-training; weights are the same.

    Only the distinct items of a batch are adapted, once, whatever the number of items in all domains.
    """

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, D) user vectors, and (1 + M, B, D) the targets: fused, and in each modality, zero where it is missing.

        User vectors are of length one, targets as adapted.
        """
        packed = batch.packed
        items, places = torch.unique(torch.cat([packed.items.flatten(), batch.targets]), return_inverse=True)
        # Item 0 fills the ends of packed rows, which nothing attends to; like an item without any modality it has none.
        content = self.content(items)
        history, targets = torch.split(places, [packed.items.numel(), len(batch)])
        users = self.contextualise(F.embedding(history.view_as(packed.items), content.fused), packed)
        return users, torch.stack([F.embedding(targets, part) for part in (content.fused, *content.parts)])

    def base_loss(self, batch: Batch, encoded: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
        """Sequence-item contrast plus weighted alignment, from what `forward` returned."""
        assert isinstance(self.config, UniM2RecPretrainConfig)
        assert table is not None
        fused, *parts = table
        logits = encoded @ unit(fused).T * self.logit_scale
        loss = in_batch_cross_entropy(logits, in_batch_mask_torch(batch.users, batch.targets))
        if self.config.alignment_weight == 0.0 or len(parts) < 2:
            return loss
        text, image = parts
        return loss + self.config.alignment_weight * alignment_loss(text, image, batch.targets, self.temperature)


def alignment_loss(text: torch.Tensor, image: torch.Tensor, items: torch.Tensor, temperature: float) -> torch.Tensor:
    """Contrast of each item's text with all images, and of its image with all texts: mean over both and over items.

    Items that lack one of the two take no part, neither as positives nor as negatives; an item counts once. With no
    item of both, the loss is zero.

    Args:
        text, image: (B, D) adapted vectors of any length, zero where missing.
        items: (B,) the item of each row.
        temperature: tau.
    """
    both = text.any(dim=1) & image.any(dim=1)
    _, numbers = torch.unique(items, return_inverse=True)
    rows = torch.arange(len(items), device=items.device)
    first = torch.full_like(rows, len(items)).scatter_reduce_(0, numbers, rows, "amin")[numbers] == rows
    rows = rows[both & first]
    if not len(rows):
        return (text.sum() + image.sum()) * 0.0
    logits = unit(text[rows]) @ unit(image[rows]).T / temperature
    own = torch.arange(len(rows), device=rows.device)
    return 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))


def pretrain(
    domains: Sequence[Domain],
    config: UniM2RecPretrainConfig,
    train: TrainConfig,
    seed: int,
    folder: Path,
    progress: Report,
) -> None:
    """Pre-train, going on from a checkpoint in `folder` where there is one, and write the start into `folder`.

    Args:
        domains: source domains, saved, each with the features that the configuration names.
        config: sizes and the weight of alignment.
        train: optimisation settings; what they leave open is `UniM2Rec.PRETRAIN_DEFAULTS`.
        seed: of initialisation, batches and dropout.
        folder: where checkpoints, log and the result go.
        progress: told of every step.

    Raises:
        ConfigError: no domain, or one given twice.
        DataError: a domain lacks a feature, sizes of a feature differ, or `folder` holds another run.
    """
    # Its batches are of whole users, and the loss is its own.
    refuse_settings(train, "ce", "layout", what="UniM²Rec's pre-training")
    train = with_defaults(train, UniM2Rec.PRETRAIN_DEFAULTS)
    merged = merge_domains(domains)
    features = {
        modality: merge_features([load_features(domain, name) for domain in domains])
        for modality, name in config.features.items()
    }
    assert train.batch_size is not None
    assert train.epochs is not None
    plan_config = PlanConfig(
        batch_size=train.batch_size, difficulty="none", buckets=1, pool="fresh", epochs=train.epochs
    )
    torch.manual_seed(seed)
    model = PretrainingModel(config, features, merged.history_cap)
    origin = {
        "domains": {domain.name: domain.fingerprint for domain in domains},
        "features": {modality: found.fingerprint for modality, found in features.items()},
        "seed": seed,
        "train": train.identity("checkpoint_steps"),
    }
    identity = {"teacher": NAME, "config": config.model_dump(mode="json"), **origin}
    identity["order"] = [domain.name for domain in domains]
    trainer = Trainer(
        model,
        merged,
        build_plan(merged, plan_config, seed),
        train,
        folder,
        continued(identity, folder / "last.safetensors", added=("order",)),
        seed=seed,
        on_step=lambda epoch, step, steps, row: progress(step, steps, "step", live.note(row)),
    )
    trainer.fit()
    # Not among what a checkpoint is compared by: one from before this was noted goes on.
    encoders = {modality: found.source["encoder"] for modality, found in features.items()}
    model.save_pretrained(folder, {**origin, "encoders": encoders})
