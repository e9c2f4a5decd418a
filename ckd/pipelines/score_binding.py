"""Binds score stores to the domain, plan and teacher that they were made for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ckd.data.domain import Domain
from ckd.distill.plan import Plan
from ckd.pipelines.finetune_teacher import load_result, teacher_fingerprint
from ckd.pipelines.workspace import scores_folder, teacher_folder
from ckd.store.binding import BatchIndex, Binding, Members
from ckd.store.reader import ScoreReader


def index_of(plan: Plan) -> BatchIndex:
    """What the store must know of every batch: its hash, and that it scores its instances against their own targets."""
    sizes = plan.sizes.astype(np.int32)
    return BatchIndex(hashes=plan.hashes, rows=sizes, cols=sizes)


def members_of(plan: Plan, domain: Domain) -> Members:
    """Instance ids and target items of a batch."""
    targets = domain.instances("train").targets

    def members(batch_id: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int32]]:
        ids = plan.batch(batch_id)
        return ids, targets[ids]

    return members


def store_location(work: Path, domain: str, plan: Plan, teacher_run: str, scores: str | None = None) -> str:
    """Where a teacher's scores of a plan lie: below the work folder, or below `scores`, a folder or URI."""
    if scores is None:
        return str(scores_folder(work, domain, plan.id) / teacher_run)
    place, mark, query = scores.partition("?")
    return f"{place.rstrip('/')}/{domain}/{plan.id}/{teacher_run}{mark}{query}"


def binding_of(work: Path, domain: Domain, plan: Plan, teacher_run: str) -> Binding:
    """What a teacher's scores of a plan must have been made for; any temperature and codec.

    Raises:
        DataError: there is no such teacher.
    """
    load_result(work, domain, teacher_run)
    return Binding(
        domain=domain.fingerprint,
        plan=plan.fingerprint,
        teacher=teacher_fingerprint(teacher_folder(work, domain.name, teacher_run)),
    )


def open_scores(
    work: Path,
    domain: Domain,
    plan: Plan,
    teacher_run: str,
    allow_mismatch: bool = False,
    scores: str | None = None,
    location: str | None = None,
) -> ScoreReader:
    """A reader of a teacher's scores, proven to be of this domain, plan and teacher.

    Args:
        scores: folder or URI below which the stores lie.
        location: the store itself, where it lies somewhere else.

    Raises:
        DataError: there is no such teacher.
        StoreError: there are no scores, or they were made for something else; both values are named.
    """
    return ScoreReader(
        location or store_location(work, domain.name, plan, teacher_run, scores),
        binding_of(work, domain, plan, teacher_run),
        index_of(plan),
        allow_mismatch=allow_mismatch,
        members=members_of(plan, domain),
    )
