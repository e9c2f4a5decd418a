"""Reads from a scored plan how hard the teachers find each training instance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ckd.config import PlanConfig
from ckd.data.domain import Domain
from ckd.distill.difficulty import TeacherScores, needs_teachers
from ckd.distill.teacher_statistics import measure_teachers
from ckd.errors import ConfigError
from ckd.pipelines.plan import load_plan, plan_ids
from ckd.pipelines.progress import Progress, silent
from ckd.pipelines.score_binding import open_scores
from ckd.pipelines.train_student import scored_teachers
from ckd.pipelines.workspace import domain_folder
from ckd.store.reader import zip_readers


def scores_for_plan(
    work: Path,
    domain_name: str,
    config: PlanConfig,
    scored_plan: str | None = None,
    teachers: Sequence[str] | None = None,
    scores: str | None = None,
    progress: Progress = silent,
) -> TeacherScores | None:
    """What the plan's difficulty measure needs to know of the teachers: `make_plan`'s `teacher_scores`.

    Args:
        config: of the plan to be made.
        scored_plan: the plan whose scores are read.
        teachers: runs; none: all that have scored it.
        scores: folder or URI below which the stores lie, in place of the work folder.

    Returns:
        None where the measure needs nothing of teachers.

    Raises:
        ConfigError: the measure needs a scored plan and none is named, or the reverse; or too few teachers.
        DataError, StoreError: as `teacher_difficulty`.
    """
    measure = config.difficulty
    if not needs_teachers(measure):
        given = {"--scored-plan": scored_plan, "--teachers": teachers, "--scores": scores}
        named = [option for option, value in given.items() if value is not None]
        if named:
            raise ConfigError(
                f"{' and '.join(named)}: plan.difficulty={measure} asks nothing of teachers. "
                "Leave it out, or set plan.difficulty=teacher_loss."
            )
        return None
    domain = Domain.load(domain_folder(work, domain_name))
    if scored_plan is None:
        known = ", ".join(plan_ids(work, domain_name)) or "none, so make one with plan.difficulty=none and score it"
        raise ConfigError(
            f"plan.difficulty={measure}: needs teachers' scores of another plan. Name it with --scored-plan; plans of "
            f"{domain_name}: {known}."
        )
    load_plan(work, domain, scored_plan)
    chosen = sorted(set(teachers)) if teachers else scored_teachers(work, domain_name, scored_plan, scores)
    if measure == "teacher_disagreement" and len(chosen) < 2:
        raise ConfigError(
            f"plan.difficulty={measure}: takes two teachers that have scored plan {scored_plan}, "
            f"there is {chosen[0]} alone. Score it with another, or set plan.difficulty=teacher_loss."
        )
    return teacher_difficulty(work, domain_name, chosen, scored_plan, scores, progress)


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
