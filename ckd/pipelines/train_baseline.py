"""Trains a published baseline, HetComp or RecGURU; the run lies among the students."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from ckd.baselines import BASELINES, taught_class
from ckd.baselines.hetcomp import HetCompConfig, HetCompTrainer
from ckd.baselines.hetcomp_parts.kept import choose_checkpoints, kept_epochs, kept_rankings
from ckd.baselines.hetcomp_parts.rankings import RankingLists
from ckd.baselines.recguru import RecGURU, RecGURUConfig
from ckd.baselines.recguru_parts.training import Lengths, RecGURUTrainer
from ckd.config import RunConfig, parse
from ckd.data.atomic import write_json
from ckd.data.domain import Domain
from ckd.data.run_folder import only_process
from ckd.distill.trainer import Trained
from ckd.errors import ConfigError, DataError, did_you_mean
from ckd.nn.recommender import Recommender
from ckd.pipelines.finetune_teacher import RESULT, load_result, teacher_fingerprint
from ckd.pipelines.progress import Progress, silent
from ckd.pipelines.train_student import STUDENT_FILE, finished_run, new_student_folder
from ckd.pipelines.workspace import domain_folder, teacher_folder, teachers_folder, versions

OnEpoch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainedBaseline:
    """A baseline and how its training went.

    Attributes:
        folder: where it lies.
        trained: best epoch, validation metrics and log rows.
        reused: it was there already, trained from the same inputs.
    """

    folder: Path
    trained: Trained
    reused: bool


class _Fits(Protocol):
    """What trains."""

    def fit(self) -> Trained: ...


@dataclass(frozen=True)
class _Job:
    """A baseline with its inputs read: what identifies the run, its most epochs, and how to make and train it."""

    identity: dict[str, Any]
    epochs: int
    create: Callable[[], Recommender]
    trainer: Callable[[Recommender, Path, OnEpoch], _Fits]


def train_baseline(
    work: Path,
    domain_name: str,
    name: str,
    config: RunConfig,
    *,
    student: str | None = None,
    teachers: Sequence[str] = (),
    source: str | None = None,
    run: str | None = None,
    restart: bool = False,
    progress: Progress = silent,
    on_epoch: OnEpoch | None = None,
) -> TrainedBaseline:
    """Train a baseline and keep its best epoch by validation.

    A finished run of the same inputs is returned as it is; an unfinished one goes on where its last checkpoint is. Of
    `config` the section `baseline` is read, which holds `HetCompConfig`'s or `RecGURUConfig`'s keys, the seed and the
    device, and by HetComp the section `student`.

    Args:
        name: `hetcomp` or `recguru`.
        student: what HetComp trains; none: `mf`, matrix factorisation, as published.
        teachers: runs whose ranking lists HetComp learns from, kept while they were fine-tuned.
        source: the domain that RecGURU shares its encoder with.
        run: name of the run; none: the baseline's name, with the student's and teachers' or the source's.
        restart: discard an unfinished or different run of this name.
        progress: told of each epoch.
        on_epoch: called with each finished log row.

    Raises:
        ConfigError: unknown baseline, student or key; a baseline without its teachers or source, or with the other's.
        DataError: inputs are missing, damaged or do not belong together.
    """
    if name not in BASELINES:
        raise ConfigError(f"unknown baseline {name!r}.{did_you_mean(name, BASELINES)}")
    domain = Domain.load(domain_folder(work, domain_name))
    if name == "hetcomp":
        if source is not None or not teachers:
            raise ConfigError("hetcomp learns from teachers: name at least one (--teachers), and no source domain.")
        if len(set(teachers)) < len(teachers):
            raise ConfigError(f"hetcomp: teachers {', '.join(teachers)}: each can be named once.")
        student = student or "mf"
        parts = [name, student, *teachers]
        job = _hetcomp(work, domain, config, student, teachers)
    else:
        if source is None or teachers:
            raise ConfigError("recguru learns from a second domain: name a source domain (--source), and no teachers.")
        if student is not None:
            raise ConfigError(f"recguru trains a model of its own: leave out the student {student!r}.")
        if source == domain_name:
            raise ConfigError(f"recguru: source {source!r} is the target itself. Name another domain.")
        parts = [name, source]
        job = _recguru(work, domain, config, source)

    def tell(row: dict[str, Any]) -> None:
        progress(row["epoch"] + 1, job.epochs, "epoch", f"{row['phase']}")
        if on_epoch is not None:
            on_epoch(row)

    folder = new_student_folder(work, domain_name, run or "-".join(parts))
    return _train(job, domain, config.seed, folder, restart, tell)


def _train(job: _Job, domain: Domain, seed: int, folder: Path, restart: bool, on_epoch: OnEpoch) -> TrainedBaseline:
    done = None if restart else finished_run(folder, job.identity)
    if done is not None:
        return TrainedBaseline(folder, done, reused=True)
    torch.manual_seed(seed)
    model = job.create()
    trainer = job.trainer(model, folder, on_epoch)
    described = {
        "identity": job.identity,
        "n_items": domain.n_items,
        "history_cap": domain.history_cap,
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": versions(),
    }
    with only_process(folder, restart):
        write_json(folder / STUDENT_FILE, described)
        return TrainedBaseline(folder, trainer.fit(), reused=False)


def listed_teachers(work: Path, domain_name: str) -> list[str]:
    """Runs of teachers that have kept ranking lists, sorted.

    Raises:
        DataError: no such domain, or nobody has kept any.
    """
    Domain.load(domain_folder(work, domain_name))
    folders = [path.parent for path in teachers_folder(work, domain_name).glob(f"*/{RESULT}")]
    found = sorted(folder.name for folder in folders if kept_epochs(folder))
    if not found:
        raise DataError(
            f"{domain_name}: no teacher has kept ranking lists. Run `ckd finetune-teacher --domain {domain_name} "
            "--teacher NAME --keep-rankings 1` first."
        )
    return found


def _hetcomp(work: Path, domain: Domain, config: RunConfig, student: str, teachers: Sequence[str]) -> _Job:
    own = parse(HetCompConfig, config.baseline, "baseline")
    student_class = taught_class(student)
    student_config = parse(student_class.Config, config.student, "student")
    chosen = {run: choose_checkpoints(_kept(work, domain, run), own.checkpoints) for run in teachers}
    identity = {
        "baseline": "hetcomp",
        "settings": own.model_dump(mode="json"),
        "student": student,
        "config": student_config.model_dump(mode="json"),
        "domain": domain.fingerprint,
        "seed": config.seed,
        "teachers": {run: [_describe(lists) for lists in moments] for run, moments in chosen.items()},
    }
    return _Job(
        identity,
        own.epochs,
        partial(student_class.create, student_config, domain),
        lambda model, folder, on_epoch: HetCompTrainer(
            model,
            domain,
            [[lists.items for lists in moments] for moments in chosen.values()],
            own,
            folder,
            identity,
            seed=config.seed,
            device=config.train.device,
            on_epoch=on_epoch,
        ),
    )


def _kept(work: Path, domain: Domain, run: str) -> list[RankingLists]:
    load_result(work, domain, run)
    folder = teacher_folder(work, domain.name, run)
    return kept_rankings(folder, domain, teacher_fingerprint(folder))


def _describe(lists: RankingLists) -> dict[str, Any]:
    return {"epoch": lists.epoch, "quality": lists.quality, "content": lists.content}


def _recguru(work: Path, domain: Domain, config: RunConfig, source: str) -> _Job:
    own = parse(RecGURUConfig, config.baseline, "baseline")
    other = Domain.load(domain_folder(work, source))
    identity = {
        "baseline": "recguru",
        "student": "recguru",
        "config": own.model_dump(mode="json"),
        "domain": domain.fingerprint,
        "source": other.fingerprint,
        "seed": config.seed,
    }

    def trainer(model: Recommender, folder: Path, on_epoch: OnEpoch) -> RecGURUTrainer:
        assert isinstance(model, RecGURU)
        return RecGURUTrainer(model, domain, other, own, folder, identity, config.seed, config.train.device, on_epoch)

    return _Job(identity, Lengths.of(own).total, partial(RecGURU.create, own, domain), trainer)
