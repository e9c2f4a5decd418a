"""Fine-tunes a teacher on its target domain (paper 4.1.2: every PRM is first tuned on the target)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ckd.baselines.hetcomp_parts.kept import RankingRecorder, drop_begun, kept_epochs, kept_every
from ckd.config import PlanConfig, RunConfig, TrainConfig, parse
from ckd.data.atomic import write_json
from ckd.data.described import nearest, read_json
from ckd.data.domain import Domain
from ckd.data.run_folder import only_process
from ckd.distill import live
from ckd.distill.checkpoint import require_same_run
from ckd.distill.events import require_tensorboard
from ckd.distill.plan import build_plan
from ckd.distill.trainer import Trained, Trainer, with_defaults
from ckd.errors import ConfigError, DataError
from ckd.evaluation.metrics import ranking_metrics
from ckd.evaluation.ranks import rank_targets
from ckd.nn.device import pick_device
from ckd.nn.recommender import Recommender
from ckd.pipelines.progress import Progress, silent
from ckd.pipelines.workspace import (
    claim_name,
    content_hash,
    domain_folder,
    named_features,
    require_files,
    student_folder,
    teacher_folder,
    versions,
)
from ckd.teachers import TEACHERS
from ckd.teachers.common.identity import as_found, continued
from ckd.teachers.protocol import SelfFinetuning, Teacher

RESULT = "result.json"
#: What a saved teacher is loaded from.
SAVED = ("model.safetensors", "teacher.json")
RESTART = "Give --restart to make it again."
#: The teacher that ready-made vectors become where no other name is given.
VECTORS = "vectors"


@dataclass(frozen=True)
class FinetunedTeacher:
    """A teacher ready to score.

    Attributes:
        folder: where it lies.
        metrics: Recall, NDCG and MRR by split.
        fingerprint: hash over its weights and configuration.
        reused: it was there already, made from the same inputs.
        rankings: epochs whose ranking lists are kept, for HetComp.
    """

    folder: Path
    metrics: dict[str, dict[str, float]]
    fingerprint: str
    reused: bool
    rankings: tuple[int, ...] = ()


def finetune_teacher(
    work: Path,
    domain_name: str,
    teacher_name: str,
    config: RunConfig,
    run: str | None = None,
    progress: Progress = silent,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    keep_rankings: int | None = None,
    restart: bool = False,
) -> FinetunedTeacher:
    """Fine-tune the teacher and keep its best epoch by validation NDCG@10.

    A finished run of the same configuration on the same domain is returned as it is; an unfinished one goes on.

    Args:
        keep_rankings: keep the users' ranking lists of every so many epochs, and of the best, in the teacher's folder
            for HetComp; none: keep none. The teacher is the same. Of one that does not tell its epochs only the
            finished teacher's lists are kept.
        restart: discard what is in the run's folder.

    Raises:
        ConfigError: unknown teacher or key, or a student's name for the run.
        DataError: the run's folder holds something else, or began without keeping the lists that are asked for.
    """
    domain = Domain.load(domain_folder(work, domain_name))
    teacher_class = TEACHERS.get(teacher_name)
    model_config = parse(teacher_class.Config, config.teacher, "teacher")
    train = with_defaults(config.train, getattr(teacher_class, "TRAIN_DEFAULTS", {}))
    pick_device(train.device)
    require_tensorboard(train)
    folder = teacher_folder(work, domain_name, run or teacher_name)
    identity = {
        "teacher": teacher_name,
        "config": model_config.model_dump(mode="json"),
        "train": train.identity(),
        "domain": domain.fingerprint,
        "features": named_features(domain, model_config.model_dump()),
        "start": _start_fingerprint(model_config),
        "seed": config.seed,
    }
    claim_name(folder, student_folder(work, domain_name, folder.name), "student")
    if not restart:
        identity = continued(identity, folder / "last.safetensors")
        done = _finished(folder, identity, keep_rankings)
        if done is not None:
            return done
    torch.manual_seed(config.seed)
    model = teacher_class.create(model_config, domain)
    _require_trainable(model, teacher_name)
    keep = RankingRecorder(model, domain, folder, keep_rankings) if keep_rankings is not None else None
    with only_process(folder, restart):
        if keep is None:
            drop_begun(folder)
        else:
            keep.begin()
        if isinstance(model, SelfFinetuning):
            best_epoch, quality = _self_finetune(model, domain, train, config.seed, folder, progress, keep)
        else:
            trained = _finetune(model, domain, train, config.seed, folder, identity, progress, on_epoch, keep)
            best_epoch, quality = trained.best_epoch, trained.metrics["ndcg@10"]
        model.save(folder)
        if keep is not None:
            keep.finish(teacher_fingerprint(folder), best_epoch, quality)
        metrics = {}
        for split in ("valid", "test"):
            ranks = rank_targets(model, domain, split, device=pick_device(train.device))
            metrics[split] = ranking_metrics(ranks.rank)
        write_json(folder / RESULT, {"identity": identity, "metrics": metrics, "versions": versions()})
    return FinetunedTeacher(folder, metrics, teacher_fingerprint(folder), reused=False, rankings=kept_epochs(folder))


def teacher_fingerprint(folder: Path) -> str:
    """Hash over the content of a saved teacher: its weights and what `load` reads beside them.

    Raises:
        DataError: a file of them has been taken away.
    """
    require_files(folder, SAVED, "Fine-tune the teacher again, with --restart.")
    return content_hash(*(folder / name for name in SAVED))


def _start_fingerprint(config: Any) -> str | None:
    """What the weights that fine-tuning starts from are, wherever they lie."""
    start: Path | None = getattr(config, "start", None)
    there = start is not None and all((start / name).exists() for name in SAVED)
    return teacher_fingerprint(start) if start is not None and there else None


def load_teacher(work: Path, domain: Domain, run: str) -> tuple[Teacher, str, dict[str, Any]]:
    """A fine-tuned teacher, its fingerprint, and its result (identity and metrics).

    Raises:
        DataError: as `load_result`, or files of it are missing, damaged or of something else.
    """
    result = load_result(work, domain, run)
    folder = teacher_folder(work, domain.name, run)
    fingerprint = teacher_fingerprint(folder)
    return TEACHERS.get(result["identity"]["teacher"]).load(folder, domain), fingerprint, result


def load_result(work: Path, domain: Domain, run: str) -> dict[str, Any]:
    """Identity, metrics and versions of a fine-tuned teacher.

    Raises:
        DataError: no such teacher, or it was fine-tuned on other content.
    """
    folder = teacher_folder(work, domain.name, run)
    missing = f"Run `ckd finetune-teacher --domain {domain.name}` first.{nearest(folder, RESULT)}"
    if run == VECTORS:
        missing = "Name the files of vectors that it is to be made of: --user-vectors and --item-vectors."
    result = read_json(folder / RESULT, RESTART, missing)
    if result["identity"]["domain"] != domain.fingerprint:
        raise DataError(
            f"{folder}: fine-tuned on content {result['identity']['domain']}, the domain is now {domain.fingerprint}. "
            "Fine-tune it again."
        )
    return result


def _finished(folder: Path, identity: dict[str, Any], keep_rankings: int | None) -> FinetunedTeacher | None:
    if not (folder / RESULT).exists():
        return None
    result = read_json(folder / RESULT, RESTART)
    require_files(folder, SAVED, RESTART)
    require_same_run(folder, result["identity"], as_found(identity, result["identity"]))
    every = kept_every(folder)
    if keep_rankings not in (None, every):
        how = "no ranking lists were kept" if every is None else f"ranking lists were kept every {every} epochs"
        raise DataError(
            f"{folder}: a finished teacher of which {how}, not every {keep_rankings}. Give another --run: the same "
            "settings and seed give the same teacher."
        )
    return FinetunedTeacher(
        folder, result["metrics"], teacher_fingerprint(folder), reused=True, rankings=kept_epochs(folder)
    )


def _require_trainable(model: object, teacher: str) -> None:
    if not isinstance(model, SelfFinetuning | Recommender):
        raise ConfigError(
            f"teacher {teacher!r} cannot be fine-tuned: its class is no Recommender and has no finetune()."
        )


def _self_finetune(
    model: SelfFinetuning,
    domain: Domain,
    train: TrainConfig,
    seed: int,
    folder: Path,
    progress: Progress,
    keep: RankingRecorder | None,
) -> tuple[int, float]:
    """The teacher's own fine-tuning; returns its NDCG@10 and, where lists are kept, the best epoch."""
    if keep is None:
        return 0, model.finetune(domain, train, seed, folder, progress).metric
    tells: dict[str, Any] = {"keep": keep} if "keep" in inspect.signature(model.finetune).parameters else {}
    result = model.finetune(domain, train, seed, folder, progress, **tells)
    best = max(result.rows, key=lambda row: row["ndcg@10"], default={"epoch": 0})
    return int(best["epoch"]), result.metric


def _finetune(
    model: Recommender,
    domain: Domain,
    train: TrainConfig,
    seed: int,
    folder: Path,
    identity: dict[str, Any],
    progress: Progress,
    on_epoch: Callable[[dict[str, Any]], None] | None,
    keep: RankingRecorder | None,
) -> Trained:
    """Cross-entropy over the catalogue, batches composed afresh every epoch."""
    plan_config = PlanConfig(
        batch_size=train.batch_size or PlanConfig().batch_size,
        layout=train.layout,
        difficulty="none",
        buckets=1,
        pool="fresh",
        epochs=train.epochs or PlanConfig().epochs,
    )
    trainer = Trainer(
        model,
        domain,
        build_plan(domain, plan_config, seed),
        train,
        folder,
        identity,
        seed=seed,
        on_step=lambda epoch, step, steps, row: progress(step, steps, "step", live.note(row)),
        on_epoch=on_epoch,
        keep=keep,
    )
    return trainer.fit()
