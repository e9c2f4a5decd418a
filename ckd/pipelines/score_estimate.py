"""What stage one would compute and write, said before it is begun."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ckd.config import RunConfig
from ckd.data.batch import Batches
from ckd.data.domain import Domain
from ckd.distill.plan import Plan
from ckd.errors import ConfigError
from ckd.nn.device import pick_device
from ckd.pipelines.finetune_teacher import load_teacher
from ckd.pipelines.plan import estimate, load_plan
from ckd.pipelines.teacher_vectors import outstanding, vectors_folder
from ckd.pipelines.workspace import domain_folder
from ckd.store.codecs import CODECS
from ckd.teachers.protocol import Teacher

#: Instances that are encoded to estimate the time, in so many runs of neighbours, and items.
PROBE, RUNS, PROBE_ITEMS = 2048, 8, 512


@dataclass(frozen=True)
class ScoreEstimate:
    """What scoring would take.

    Attributes:
        instances, items: of the domain; a teacher encodes each of them once, whatever the plan.
        encoded: how many of both are encoded already.
        forwards: the teacher's forward passes over the others.
        batches, rows: matrices and their rows.
        bytes: on disk with the chosen codec.
        seconds: of those forwards and of all matrices, by the rates of a short probe.
    """

    instances: int
    items: int
    encoded: int
    forwards: int
    batches: int
    rows: int
    bytes: int
    seconds: float


def estimate_scoring(
    work: Path, domain_name: str, teacher_run: str, config: RunConfig, plan_id: str | None = None
) -> ScoreEstimate:
    """What `teacher_score` would compute and write; nothing is written.

    Raises:
        DataError, StoreError: as `teacher_score`.
        ConfigError: unknown codec, or one of which it is not known how much it writes.
    """
    CODECS.get(config.score.codec)
    domain = Domain.load(domain_folder(work, domain_name))
    plan = load_plan(work, domain, plan_id)
    teacher, fingerprint, _ = load_teacher(work, domain, teacher_run)
    left = outstanding(vectors_folder(work, fingerprint, domain), domain, config.score.encode_batch)
    dim, per_instance, per_item = _probe_teacher(teacher, domain, config)
    sizes = estimate(plan, domain.n_items, dim)
    if config.score.codec not in sizes.bytes:
        raise ConfigError(
            f"score.codec={config.score.codec!r}: how much this codec writes is not known beforehand. "
            f"Known of {', '.join(sizes.bytes)}; score without the estimate."
        )
    instances = len(domain.instances("train"))
    return ScoreEstimate(
        instances=instances,
        items=domain.n_items,
        encoded=instances - left.instances + domain.n_items - left.items,
        forwards=left.passes,
        batches=sizes.batches,
        rows=sizes.rows,
        bytes=sizes.bytes[config.score.codec],
        seconds=left.instances * per_instance
        + left.items * per_item
        + sizes.scores * _probe_matrix(plan, dim, config.score.codec),
    )


def _probe_teacher(teacher: Teacher, domain: Domain, config: RunConfig) -> tuple[int, float, float]:
    """Length of the teacher's vectors, and seconds an instance and an item."""
    device = pick_device(config.train.device)
    if isinstance(teacher, nn.Module):
        teacher.to(device)
    instances = domain.instances("train")
    # Runs of neighbours, evenly spread: histories are short and long as in the whole, and prefixes of a user share a
    # pass as they will.
    length = -(-min(PROBE, len(instances)) // RUNS)
    firsts = np.linspace(0, len(instances) - length, RUNS).astype(np.int64)
    ids = np.unique(firsts[:, None] + np.arange(length))
    numbers = np.unique(np.linspace(1, domain.n_items, min(PROBE_ITEMS, domain.n_items)).astype(np.int64))
    batches = Batches(domain, instances, share_prefixes=bool(getattr(teacher, "causal", False)))
    # The first pass of any process is slow, and what a teacher keeps between passes is made in it.
    dim = teacher.encode_instances(batches(ids[:2]).to(device)).cpu().shape[1]
    size = config.score.encode_batch
    began = time.perf_counter()
    for at in range(0, len(ids), size):
        teacher.encode_instances(batches(ids[at : at + size]).to(device)).cpu()
    middle = time.perf_counter()
    teacher.encode_items(torch.from_numpy(numbers).to(device)).cpu()
    return dim, (middle - began) / len(ids), (time.perf_counter() - middle) / len(numbers)


def _probe_matrix(plan: Plan, dim: int, codec: str) -> float:
    """Seconds for one score of a matrix, computed and packed but not written."""
    chosen = CODECS.get(codec)
    if chosen.layout == "vectors":
        return 0.0
    n = int(plan.sizes.max())
    users, items = F.normalize(torch.randn(2, n, dim, generator=torch.Generator().manual_seed(0)), dim=2)
    began = time.perf_counter()
    for _ in range(2):
        log_scores = (users @ items.T / 0.07).log_softmax(dim=1).numpy()
        if chosen.layout == "payload":
            chosen.encode(log_scores)
        else:
            log_scores.astype(np.float16)
    return (time.perf_counter() - began) / (2 * n * n)
