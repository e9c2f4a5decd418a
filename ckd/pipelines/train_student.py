"""Stage two: trains a student along the plan, with the stored scores of its teachers or without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ckd.baselines import model_class
from ckd.config import RunConfig, TrainConfig, parse
from ckd.data.atomic import write_json
from ckd.data.described import nearest, read_json
from ckd.data.domain import Domain
from ckd.data.run_folder import only_process
from ckd.distill.checkpoint import require_same_run
from ckd.distill.events import require_tensorboard
from ckd.distill.parallel import ALONE, Parallel
from ckd.distill.plan import Plan
from ckd.distill.trainer import OnStep, Trained, Trainer, with_defaults
from ckd.errors import ConfigError, DataError, StoreError
from ckd.nn.device import pick_device
from ckd.nn.recommender import Recommender
from ckd.nn.weights import put_weights, read_weights
from ckd.pipelines.distillation import distillation_from
from ckd.pipelines.finetune_teacher import RESULT
from ckd.pipelines.plan import load_plan
from ckd.pipelines.score_binding import open_scores, store_location
from ckd.pipelines.workspace import (
    claim_name,
    domain_folder,
    require_files,
    student_folder,
    teacher_folder,
    teachers_folder,
    versions,
)
from ckd.store.location import Location
from ckd.store.manifest import MANIFEST
from ckd.students import STUDENTS

#: Describes a student's checkpoint, beside it.
STUDENT_FILE = "student.json"
RESTART = "Give --restart to train again."


@dataclass(frozen=True)
class TrainedStudent:
    """A student and how its training went.

    Attributes:
        folder: where it lies.
        trained: best epoch, validation metrics and log rows.
        reused: it was there already, trained from the same inputs.
        mismatches: by teacher, what scores that were made for something else were made for.
        weights: w_k by teacher; of the base model none.
    """

    folder: Path
    trained: Trained
    reused: bool
    mismatches: dict[str, str]
    weights: dict[str, float]


def train_student(
    work: Path,
    domain_name: str,
    student_name: str,
    config: RunConfig,
    teachers: Sequence[str] = (),
    plan_id: str | None = None,
    run: str | None = None,
    scores: str | None = None,
    allow_mismatch: bool = False,
    restart: bool = False,
    on_step: OnStep | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    parallel: Parallel = ALONE,
) -> TrainedStudent:
    """Train a student and keep its best epoch by validation NDCG@10.

    A finished run of the same inputs is returned as it is; an unfinished one goes on where its last checkpoint is.

    Args:
        teachers: runs whose scores are distilled; none trains the base model.
        plan_id: which plan; none: the only one of the domain.
        run: name of the run; none: the student's name, with its teachers'.
        scores: folder or URI below which the stores lie, in place of the work folder.
        allow_mismatch: train on scores made for something else; stamped into the checkpoint.
        restart: discard an unfinished or different run of this name.
        on_step, on_epoch: as `Trainer`'s.
        parallel: this process among those that train the student together; all must call this alike. How many they are
            is not part of the run's identity: one that was interrupted may go on with another number.

    Raises:
        ConfigError: unknown student, teacher weight or key, more epochs than planned, a teacher's name for the run, or
            TensorBoard asked for and missing.
        DataError, StoreError: inputs are missing, damaged or do not belong together.
    """
    domain = Domain.load(domain_folder(work, domain_name))
    plan = load_plan(work, domain, plan_id)
    student_class = STUDENTS.get(student_name)
    model_config = parse(student_class.Config, config.student, "student")
    train = with_defaults(config.train, student_class.TRAIN_DEFAULTS)
    pick_device(parallel.device or train.device)
    require_tensorboard(train)
    folder = new_student_folder(work, domain_name, run or "-".join([student_name, *teachers]))
    require_planned(config.train, plan)
    readers = {name: open_scores(work, domain, plan, name, allow_mismatch, scores) for name in teachers}
    identity = {
        "student": student_name,
        "config": model_config.model_dump(mode="json"),
        "train": train.identity(),
        "domain": domain.fingerprint,
        "plan": plan.fingerprint,
        "seed": config.seed,
        "distill": config.distill.model_dump(mode="json", by_alias=True) if readers else None,
        "teachers": {name: reader.manifest.header.binding.as_dict() for name, reader in readers.items()},
        "mismatches": {name: reader.mismatch for name, reader in readers.items() if reader.mismatch},
    }
    done = None if restart else finished_run(folder, identity)
    if done is not None:
        return _trained(folder, done, read_json(folder / STUDENT_FILE, RESTART), reused=True)
    distillation = None
    if readers:
        device = parallel.device or train.device
        distillation = distillation_from(work, domain, plan, readers, config.distill, device)
    torch.manual_seed(config.seed)
    model: Recommender = student_class.create(model_config, domain)
    described: dict[str, Any] = {
        "identity": identity,
        "n_items": domain.n_items,
        "history_cap": domain.history_cap,
        "parameters": sum(p.numel() for p in model.parameters()),
        "epsilon": distillation.target.epsilon if distillation else None,
        # In this order: that of a file's keys is the alphabet's.
        "teachers": list(readers),
        "teacher_weights": distillation.target.weights.tolist() if distillation else None,
        "temperatures": distillation.temperatures if distillation else None,
        "processes": parallel.size,
        "versions": versions(),
    }
    with only_process(folder, restart) if parallel.first else nullcontext():
        if parallel.first:
            write_json(folder / STUDENT_FILE, described)
        parallel.gather(None)  # nobody looks for a checkpoint before a run to be discarded is gone
        trainer = Trainer(
            model,
            domain,
            plan,
            train,
            folder,
            identity,
            distillation=distillation,
            seed=config.seed,
            on_step=on_step,
            on_epoch=on_epoch,
            parallel=parallel,
        )
        return _trained(folder, trainer.fit(), described, reused=False)


def _trained(folder: Path, trained: Trained, described: dict[str, Any], reused: bool) -> TrainedStudent:
    """The result as a run's description has it; one from before teachers were listed there names no weights."""
    weights = dict(zip(described.get("teachers", ()), described["teacher_weights"] or (), strict=False))
    return TrainedStudent(folder, trained, reused, described["identity"]["mismatches"], weights)


def new_student_folder(work: Path, domain_name: str, run: str) -> Path:
    """Where a student's run lies that is to be begun, or to go on.

    Raises:
        ConfigError: it cannot be a name, or is a teacher's.
    """
    folder = student_folder(work, domain_name, run)
    claim_name(folder, teacher_folder(work, domain_name, run), "teacher")
    return folder


def require_planned(train: TrainConfig, plan: Plan) -> None:
    """Raises ConfigError for more epochs than the plan has."""
    if train.epochs is not None and train.epochs > plan.epochs:
        raise ConfigError(
            f"train.epochs={train.epochs}: plan {plan.id} has {plan.epochs}. Give no more, or plan more with "
            "plan.epochs."
        )


def finished_run(folder: Path, identity: dict[str, Any]) -> Trained | None:
    """How the finished run in `folder` went; None where it has to go on, or to begin.

    Raises:
        DataError: the folder holds another run.
    """
    if (folder / STUDENT_FILE).exists():
        require_same_run(folder / STUDENT_FILE, read_json(folder / STUDENT_FILE, RESTART).get("identity", {}), identity)
    if not (folder / "last.json").exists():
        return None
    state = read_json(folder / "last.json", RESTART)
    if not state["finished"]:
        return None
    require_files(folder, ["best.safetensors"], RESTART)
    best = read_json(folder / "best.json", RESTART)["log"]
    metrics = {k.removeprefix("valid_"): v for k, v in best.items() if k.startswith("valid_")}
    return Trained(best["epoch"], metrics, state["rows"])


def scored_teachers(work: Path, domain_name: str, plan_id: str | None = None, scores: str | None = None) -> list[str]:
    """Runs of teachers that have scored the plan, sorted.

    Raises:
        DataError, StoreError: no such domain or plan, or nobody has scored it.
    """
    domain = Domain.load(domain_folder(work, domain_name))
    plan = load_plan(work, domain, plan_id)
    known = sorted(path.name for path in teachers_folder(work, domain_name).glob("*") if (path / RESULT).exists())
    places = {run: store_location(work, domain_name, plan, run, scores) for run in known}
    found = [run for run, place in places.items() if MANIFEST in Location(place).sizes()]
    if not found:
        raise StoreError(
            f"{domain_name}: no teacher has scored plan {plan.id}. Run `ckd teacher-score` first; "
            "`ckd train-student --no-distill` needs none."
        )
    return found


def load_student(work: Path, domain: Domain, run: str) -> tuple[Recommender, dict[str, Any]]:
    """A trained student's best epoch and its description.

    Raises:
        DataError: no such run, a teacher's, an unfinished one, or one of another domain content.
    """
    folder = student_folder(work, domain.name, run)
    teacher = teacher_folder(work, domain.name, run)
    if (teacher / RESULT).exists() and not (folder / STUDENT_FILE).exists():
        known = sorted(path.parent.name for path in folder.parent.glob(f"*/{STUDENT_FILE}"))
        remedy = f"Name one of {', '.join(known)}." if known else "Train one with `ckd train-student`."
        raise DataError(f"{teacher}: a teacher, and this takes a student. {remedy}")
    remedy = f"Train it: `ckd train-student --domain {domain.name} --run {run}`."
    described = read_json(folder / STUDENT_FILE, remedy, missing=remedy + nearest(folder, STUDENT_FILE))
    identity = described["identity"]
    if baseline := identity.get("baseline"):
        remedy = f"Train it: `ckd train-baseline --domain {domain.name} --baseline {baseline} --run {run}`."
    if identity["domain"] != domain.fingerprint:
        raise DataError(
            f"{folder}: trained on content {identity['domain']}, {domain.name} now has {domain.fingerprint}. "
            "Train again."
        )
    if not read_json(folder / "last.json", remedy)["finished"]:
        raise DataError(f"{folder}: this run is not finished. {remedy}")
    student_class: Any = model_class(identity["student"])
    model: Recommender = student_class.create(parse(student_class.Config, identity["config"], str(folder)), domain)
    path = folder / "best.safetensors"
    put_weights(model, read_weights(path), str(path))
    return model.eval(), described
