"""Stage one: a fine-tuned teacher's in-batch scores of every planned batch (paper 3.5.2, Eq. 2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from ckd.config import RunConfig, ScoreConfig
from ckd.data.batch import Batches
from ckd.data.domain import Domain
from ckd.distill.plan import Plan
from ckd.nn.device import pick_device
from ckd.pipelines.calibration import asks_for_calibration, calibrated_temperature
from ckd.pipelines.finetune_teacher import VECTORS, finetune_teacher, load_teacher
from ckd.pipelines.plan import load_plan
from ckd.pipelines.progress import Progress, silent
from ckd.pipelines.score_binding import index_of, store_location
from ckd.pipelines.teacher_vectors import TeacherVectors, encode_teacher, gather, vectors_folder
from ckd.pipelines.workspace import domain_folder
from ckd.store.binding import Binding
from ckd.store.codecs import CODECS
from ckd.store.manifest import Manifest
from ckd.store.vectors import write_vector_store
from ckd.store.workers import run_workers
from ckd.store.writer import write_store

#: (rows, cols) log-scores of a batch.
Rescore = Callable[[int], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Scored:
    """A finished store.

    Attributes:
        location: its folder or URI.
        manifest: what it holds.
        encoded: instances and items that were encoded now; 0 where the vectors were there already.
        seconds: how long it took.
    """

    location: str
    manifest: Manifest
    encoded: int
    seconds: float


def teacher_score(
    work: Path,
    domain_name: str,
    teacher_run: str,
    config: RunConfig,
    plan_id: str | None = None,
    scores: str | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> Scored:
    """Score every batch of the plan; whatever is there and sound is kept, so that an interrupted run goes on.

    Args:
        teacher_run: a fine-tuned teacher of the domain.
        plan_id: which plan; none: the only one.
        scores: folder or URI below which the store lies, in place of the work folder.
        workers: processes that share the matrices. Processes started by hand share the encoding as well.

    Raises:
        ConfigError: unknown codec.
        DataError: no such domain or teacher.
        StoreError: no such plan, or the store holds scores of something else.
    """
    began = time.perf_counter()
    CODECS.get(config.score.codec)
    domain = Domain.load(domain_folder(work, domain_name))
    plan = load_plan(work, domain, plan_id)
    job = _prepare(work, domain, plan, teacher_run, config, scores, progress)
    if asks_for_calibration(config.distill, teacher_run):
        # Stage two then needs nothing of the teacher but its scores.
        calibrated_temperature(work, domain, teacher_run, config.train.device)
    if workers == 1:
        manifest = _write(job, progress)
    else:
        manifest = run_workers(workers, _work, work, domain_name, plan.id, teacher_run, config, scores)
    return Scored(job.location, manifest, job.vectors.encoded, time.perf_counter() - began)


@dataclass(frozen=True)
class _Job:
    domain: Domain
    plan: Plan
    binding: Binding
    vectors: TeacherVectors
    config: ScoreConfig
    location: str


def _prepare(
    work: Path,
    domain: Domain,
    plan: Plan,
    teacher_run: str,
    config: RunConfig,
    scores: str | None,
    progress: Progress,
) -> _Job:
    """The teacher's vectors, encoded where they are not there yet, and what the scores will be bound to."""
    teacher, fingerprint, _ = load_teacher(work, domain, teacher_run)
    binding = Binding(
        domain=domain.fingerprint,
        plan=plan.fingerprint,
        teacher=fingerprint,
        temperature=config.score.temperature or teacher.temperature,
        similarity=teacher.similarity,
    )
    device = pick_device(config.train.device)
    folder = vectors_folder(work, fingerprint, domain)
    vectors = encode_teacher(folder, teacher, domain, device, config.score.encode_batch, progress)
    return _Job(
        domain, plan, binding, vectors, config.score, store_location(work, domain.name, plan, teacher_run, scores)
    )


def _work(
    work: Path, domain_name: str, plan_id: str, teacher_run: str, config: RunConfig, scores: str | None
) -> Manifest:
    """One of several workers, in a process of its own."""
    torch.set_num_threads(1)
    domain = Domain.load(domain_folder(work, domain_name))
    plan = load_plan(work, domain, plan_id)
    return _write(_prepare(work, domain, plan, teacher_run, config, scores, silent), silent)


def _write(job: _Job, progress: Progress) -> Manifest:
    index, config, vectors = index_of(job.plan), job.config, job.vectors
    targets = job.domain.instances("train").targets
    if CODECS.get(config.codec).layout == "vectors":
        return write_vector_store(
            job.location,
            job.binding,
            index,
            lambda ids: gather(vectors.instances, np.arange(ids.start, ids.stop)),
            targets,
            np.concatenate(vectors.items),
            report=progress,
        )
    temperature = job.binding.temperature
    assert temperature is not None

    def score(batch_ids: range) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        for batch_id in batch_ids:
            ids = job.plan.batch(batch_id)
            yield batch_id, vectors.log_scores(ids, targets[ids], temperature)

    return write_store(
        job.location, job.binding, index, config.codec, score, shard_batches=config.shard_batches, report=progress
    )


def adopt_vectors(
    work: Path, domain_name: str, config: RunConfig, user_vectors: Path, item_vectors: Path, run: str | None = None
) -> str:
    """Make a teacher of vectors that any other model has written; returns its run. See `ckd.teachers.vectors`.

    Raises:
        DataError: the files do not cover the domain, or the run is another teacher's.
    """
    own = {**config.teacher, "user_vectors": user_vectors, "item_vectors": item_vectors}
    run = run or VECTORS
    finetune_teacher(work, domain_name, "vectors", config.model_copy(update={"teacher": own}), run=run)
    return run


def rescorer(
    work: Path, domain: Domain, plan: Plan, teacher_run: str, temperature: float, device: str = "auto"
) -> Rescore:
    """Scores batches with the teacher itself, nothing taken from what was encoded before: for `ckd store verify`."""
    teacher, _, _ = load_teacher(work, domain, teacher_run)
    chosen = pick_device(device)
    if isinstance(teacher, nn.Module):
        teacher.to(chosen)
    instances = domain.instances("train")
    batches = Batches(domain, instances, share_prefixes=bool(getattr(teacher, "causal", False)))

    def rescore(batch_id: int) -> npt.NDArray[np.float32]:
        batch = batches(plan.batch(batch_id)).to(chosen)
        users, items = teacher.encode_instances(batch), teacher.encode_items(batch.targets)
        if teacher.similarity == "cosine":
            users, items = F.normalize(users, dim=1), F.normalize(items, dim=1)
        log_scores: npt.NDArray[np.float32] = (users @ items.T / temperature).log_softmax(dim=1).float().cpu().numpy()
        return log_scores

    return rescore
