"""Full-ranking evaluation of a student or teacher, and the paired comparison of two runs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ckd.data.atomic import write_json
from ckd.data.domain import Domain, Split
from ckd.errors import DataError
from ckd.evaluation.metrics import ranking_metrics
from ckd.evaluation.ranks import Ranks, load_ranks, rank_targets, save_ranks
from ckd.evaluation.significance import Comparison, compare
from ckd.nn.device import pick_device
from ckd.nn.recommender import Recommender
from ckd.pipelines.finetune_teacher import RESULT, load_teacher
from ckd.pipelines.train_student import STUDENT_FILE, load_student
from ckd.pipelines.workspace import (
    content_hash,
    domain_folder,
    student_folder,
    students_folder,
    teacher_folder,
    teachers_folder,
)
from ckd.teachers.protocol import Teacher


@dataclass(frozen=True)
class Evaluated:
    """Ranks of one run, what they amount to, and how they compare.

    Attributes:
        metrics: Recall and NDCG at the cutoffs, and MRR.
        ranks: per-user ranks, as saved.
        path: the Parquet file that holds them.
        comparisons: by metric, this run against the other one; empty without another.
    """

    metrics: dict[str, float]
    ranks: Ranks
    path: Path
    comparisons: dict[str, Comparison]


def evaluate(
    work: Path,
    domain_name: str,
    run: str,
    split: Split = "test",
    against: str | None = None,
    mask_history: bool = False,
    device: str = "auto",
) -> Evaluated:
    """Rank every item for every user of the split and save the ranks beside the run.

    Args:
        run: a student's or a teacher's run.
        against: another run, compared user by user.
        mask_history: rank only items the user has not had; the published tables do not.

    Raises:
        DataError: no such run, or the two runs do not cover the same users.
    """
    domain = Domain.load(domain_folder(work, domain_name))
    for name in (run, against or run):
        run_folder(work, domain_name, name)
    ranks, path = _ranks(work, domain, run, split, mask_history, device)
    comparisons = {}
    if against is not None:
        other, _ = _ranks(work, domain, against, split, mask_history, device)
        comparisons = compare(ranks, other)
    return Evaluated(ranking_metrics(ranks.rank), ranks, path, comparisons)


def _ranks(work: Path, domain: Domain, run: str, split: Split, mask_history: bool, device: str) -> tuple[Ranks, Path]:
    """The run's ranks: read where they were made from the same weights, else made and saved."""
    folder = run_folder(work, domain.name, run)
    model: Recommender | Teacher
    if (folder / RESULT).exists():
        model, name, _ = load_teacher(work, domain, run)
    else:
        model, _ = load_student(work, domain, run)
        name = content_hash(folder / "best.safetensors")
    path = folder / f"ranks-{split}{'-masked' if mask_history else ''}.parquet"
    with suppress(DataError):  # none yet, damaged, or of another domain: made anew
        found = load_ranks(path, domain)
        if found.model == name:
            return found, path
    ranks = rank_targets(model, domain, split, mask_history=mask_history, device=pick_device(device), model=name)
    save_ranks(ranks, path)
    write_json(path.with_suffix(".json"), {"metrics": ranking_metrics(ranks.rank), "weights": name})
    return ranks, path


def run_folder(work: Path, domain: str, run: str) -> Path:
    """The folder of a student's or teacher's run.

    Raises:
        DataError: there is none of that name, naming those that exist.
    """
    student, teacher = student_folder(work, domain, run), teacher_folder(work, domain, run)
    if (student / STUDENT_FILE).exists():
        return student
    if (teacher / RESULT).exists():
        return teacher
    places = ((students_folder(work, domain), STUDENT_FILE), (teachers_folder(work, domain), RESULT))
    known = sorted(path.parent.name for folder, file in places for path in folder.glob(f"*/{file}"))
    raise DataError(f"{student}: no such run. Runs of {domain}: {', '.join(known) or 'none'}.")
