"""Reads from scored plans how hard the teachers find each training instance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ckd.data.domain import Domain
from ckd.distill.difficulty import TeacherScores
from ckd.distill.teacher_statistics import measure_teachers
from ckd.pipelines.plan import load_plan
from ckd.pipelines.progress import Progress, silent
from ckd.pipelines.score_binding import open_scores
from ckd.pipelines.workspace import domain_folder
from ckd.store.reader import zip_readers


def teacher_difficulty(
    work: Path,
    domain_name: str,
    teachers: Sequence[str],
    plan_id: str | None = None,
    scores: str | None = None,
    progress: Progress = silent,
) -> TeacherScores:
    """What the difficulty measures `teacher_loss` and `teacher_disagreement` sort by; given to `make_plan`.

    Args:
        work: root of the workspace.
        domain_name: a prepared domain.
        teachers: runs that have scored the plan.
        plan_id: the plan that was scored, one that visits every instance; none: the only one.
        scores: folder or URI below which the stores lie, in place of the work folder.
        progress: told of batches.

    Raises:
        DataError: no such domain or teacher.
        StoreError: no such plan or scores, or the plan leaves instances out.
    """
    domain = Domain.load(domain_folder(work, domain_name))
    plan = load_plan(work, domain, plan_id)
    # Sorted, so that the order in which teachers are named changes no plan.
    readers = [open_scores(work, domain, plan, name, scores=scores) for name in sorted(set(teachers))]
    bindings = [reader.manifest.header.binding.as_dict() for reader in readers]
    source = hashlib.blake2b(json.dumps(bindings, sort_keys=True).encode(), digest_size=16).hexdigest()
    stream = zip_readers(readers).stream
    return measure_teachers(plan, domain, stream, source, lambda done, total: progress(done, total, "batches"))
