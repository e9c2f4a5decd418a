"""What a student is distilled from: stored scores, with weights, temperatures and epsilon resolved to numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ckd.config import DistillConfig
from ckd.data.batch import Batches
from ckd.data.domain import Domain
from ckd.distill.masks import in_batch_mask
from ckd.distill.objective import Distillation
from ckd.distill.plan import Plan
from ckd.distill.target import CatalogueRows, TargetBuilder, measure_epsilon
from ckd.errors import ConfigError, StoreError
from ckd.pipelines.calibration import temperature_of
from ckd.pipelines.finetune_teacher import load_result
from ckd.store.reader import ScoreReader, ZippedReaders, ZippedVectors, zip_readers

#: Batches whose scores are looked at to find epsilon from its quantile.
EPSILON_SAMPLE = 16

#: Of each of them, the most user-item pairs over the catalogue.
EPSILON_PAIRS = 1 << 20

Sample = Iterator[tuple[Sequence[torch.Tensor], torch.Tensor]]


def distillation_from(
    work: Path,
    domain: Domain,
    plan: Plan,
    readers: dict[str, ScoreReader],
    config: DistillConfig,
    device: str = "auto",
) -> Distillation:
    """The scores and how they become targets.

    Args:
        readers: by teacher's run.
        device: where a teacher is calibrated, if that is asked for and was not done before.

    Raises:
        ConfigError: a teacher without the weight or temperature that is given for others.
        DataError: a teacher that cannot be calibrated.
        StoreError: scores over all items from a store that holds in-batch ones, or of another catalogue.
    """
    stored = {name: reader.temperature for name, reader in readers.items()}
    wanted = {name: temperature_of(work, domain, name, config, tau, device) for name, tau in stored.items()}
    builder = TargetBuilder(
        config,
        list(readers),
        [_weight(work, domain, name, config) for name in readers],
        [stored[name] / wanted[name] for name in readers],
        epsilon=config.epsilon or 0.0,
    )
    scores: ZippedReaders
    tables: list[torch.Tensor] = []
    if config.scope == "all":
        scores = vectors = ZippedVectors(list(readers.values()))
        tables = _tables(vectors, domain)
        sample = _catalogue_sample(domain, plan, vectors, tables, builder)
    else:
        scores = zip_readers(list(readers.values()))
        sample = _sample(domain, plan, scores)
    if config.epsilon is None and len(readers) > 2 and config.consistency != "off":
        builder.epsilon = measure_epsilon(builder, sample, config.epsilon_quantile)
    return Distillation(scores, builder, config.weight, config.direction, tables, wanted)


def _weight(work: Path, domain: Domain, teacher: str, config: DistillConfig) -> float:
    """The default weight w_k (paper 3.6): the teacher's empirical strength on the validation targets."""
    if config.weights == "uniform":
        return 1.0
    if config.weights == "validation":
        return float(load_result(work, domain, teacher)["metrics"]["valid"]["ndcg@10"])
    if teacher not in config.weights:
        raise ConfigError(f"distill.weights: no weight for teacher {teacher!r}; given: {sorted(config.weights)}.")
    return config.weights[teacher]


def _tables(vectors: ZippedVectors, domain: Domain) -> list[torch.Tensor]:
    """Each teacher's (n_items + 1, d) item vectors."""
    for reader, items in zip(vectors.readers, vectors.items, strict=True):
        if len(items) != domain.n_items + 1:
            raise StoreError(
                f"{reader.location.text}: holds vectors of {len(items) - 1} items, {domain.name} has "
                f"{domain.n_items}. Score this domain, or distil in batch."
            )
    return [torch.from_numpy(items) for items in vectors.items]


def _sample(domain: Domain, plan: Plan, scores: ZippedReaders) -> Sample:
    """Scores and masks of batches spread evenly over the plan."""
    batches = Batches(domain, domain.instances("train"))
    for batch_id, arrays in _spread(plan, scores):
        batch = batches(plan.batch(batch_id))
        mask = torch.from_numpy(in_batch_mask(batch.users.numpy(), batch.targets.numpy()))
        yield [torch.from_numpy(a) for a in arrays], mask


def _catalogue_sample(
    domain: Domain, plan: Plan, scores: ZippedVectors, tables: list[torch.Tensor], builder: TargetBuilder
) -> Sample:
    """The same over the whole catalogue, block by block; where pairs are counted, of instances spread evenly."""
    instances = domain.instances("train")
    most = max(1, EPSILON_PAIRS // len(tables[0])) if builder.config.consistency == "pair" else None
    for batch_id, arrays in _spread(plan, scores):
        ids = plan.batch(batch_id)
        users, targets = (torch.from_numpy(a[ids].astype(np.int64)) for a in (instances.users, instances.targets))
        chosen = torch.from_numpy(np.linspace(0, len(ids) - 1, min(len(ids), most or len(ids))).astype(np.int64))
        vectors = [torch.from_numpy(a)[chosen] for a in arrays]
        rows = CatalogueRows(builder, vectors, tables, users[chosen], targets[chosen], users, targets)
        for start in range(0, len(rows), rows.step):
            yield rows.scores(slice(start, start + rows.step))


def _spread(plan: Plan, scores: ZippedReaders) -> Iterator[tuple[int, Sequence[np.ndarray]]]:
    """What is stored of batches spread evenly over the plan."""
    chosen = np.unique(np.linspace(0, plan.n_batches - 1, EPSILON_SAMPLE).astype(np.int64))
    yield from scores.stream(chosen.tolist())
