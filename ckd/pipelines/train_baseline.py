"""Trains a published baseline, HetComp or RecGURU; the run lies among the students."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ckd.baselines import BASELINES, model_class
from ckd.baselines.hetcomp import HetCompConfig, HetCompTrainer
from ckd.baselines.hetcomp_parts.rankings import RankingLists, choose_checkpoints
from ckd.baselines.recguru import RecGURU, RecGURUConfig
from ckd.baselines.recguru_parts.training import RecGURUTrainer
from ckd.config import RunConfig, parse
from ckd.data.atomic import write_json
from ckd.data.domain import Domain
from ckd.distill.trainer import Trained
from ckd.errors import ConfigError, did_you_mean
from ckd.nn.recommender import Recommender
from ckd.pipelines.train_student import STUDENT_FILE, finished_run
from ckd.pipelines.workspace import domain_folder, student_folder, teacher_folder, versions

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
    """A baseline with its inputs read: what identifies the run, what is saved, and how to train it."""

    identity: dict[str, Any]
    create: Callable[[], Recommender]
    trainer: Callable[[Recommender, Path], _Fits]


def train_baseline(
    work: Path,
    domain_name: str,
    name: str,
    config: RunConfig,
    *,
    settings: dict[str, Any] | None = None,
    student: str = "mf",
    teachers: Sequence[str] = (),
    source: str | None = None,
    run: str | None = None,
    restart: bool = False,
    on_epoch: OnEpoch | None = None,
) -> TrainedBaseline:
    """Train a baseline and keep its best epoch by validation.

    A finished run of the same inputs is returned as it is; an unfinished one goes on where its last checkpoint is. Of
    `config` the seed and the device are read and, by HetComp, the student's own keys.

    Args:
        name: `hetcomp` or `recguru`.
        settings: the baseline's own keys: `HetCompConfig`'s or `RecGURUConfig`'s.
        student: what HetComp trains: `mf`, or any student.
        teachers: runs whose ranking lists HetComp learns from, kept while they were fine-tuned.
        source: the domain that RecGURU shares its encoder with.
        run: name of the run; none: the baseline's name, with the student's and teachers' or the source's.
        restart: discard an unfinished or different run of this name.

    Raises:
        ConfigError: unknown baseline, student or key; a baseline without its teachers or source, or with the other's.
        DataError: inputs are missing, damaged or do not belong together.
    """
    if name not in BASELINES:
        raise ConfigError(f"unknown baseline {name!r}.{did_you_mean(name, BASELINES)}")
    domain = Domain.load(domain_folder(work, domain_name))
    if name == "hetcomp":
        if source is not None or not teachers:
            raise ConfigError("hetcomp learns from teachers: name at least one teacher's run, and no source domain.")
        if len(set(teachers)) < len(teachers):
            raise ConfigError(f"hetcomp: teachers {', '.join(teachers)}: each can be named once.")
        parts = [name, student, *teachers]
        job = _hetcomp(work, domain, config, settings or {}, student, teachers, on_epoch)
    else:
        if source is None or teachers:
            raise ConfigError("recguru learns from a second domain: name a source domain, and no teachers.")
        if source == domain_name:
            raise ConfigError(f"recguru: source {source!r} is the target itself. Name another domain.")
        parts = [name, source]
        job = _recguru(work, domain, config, settings or {}, source, on_epoch)
    return _train(job, domain, config.seed, student_folder(work, domain_name, run or "-".join(parts)), restart)


def _train(job: _Job, domain: Domain, seed: int, folder: Path, restart: bool) -> TrainedBaseline:
    done = None if restart else finished_run(folder, job.identity)
    if done is not None:
        return TrainedBaseline(folder, done, reused=True)
    torch.manual_seed(seed)
    model = job.create()
    trainer = job.trainer(model, folder)
    if restart and folder.exists():
        shutil.rmtree(folder)
    described = {
        "identity": job.identity,
        "n_items": domain.n_items,
        "history_cap": domain.history_cap,
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": versions(),
    }
    write_json(folder / STUDENT_FILE, described)
    return TrainedBaseline(folder, trainer.fit(), reused=False)


def _hetcomp(
    work: Path,
    domain: Domain,
    config: RunConfig,
    settings: dict[str, Any],
    student: str,
    teachers: Sequence[str],
    on_epoch: OnEpoch | None,
) -> _Job:
    own = parse(HetCompConfig, settings, "hetcomp")
    student_class = model_class(student)
    student_config = parse(student_class.Config, config.student, "student")
    chosen = {
        run: choose_checkpoints(teacher_folder(work, domain.name, run), domain, own.checkpoints) for run in teachers
    }
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
        lambda: student_class.create(student_config, domain),
        lambda model, folder: HetCompTrainer(
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


def _describe(lists: RankingLists) -> dict[str, Any]:
    return {"epoch": lists.epoch, "quality": lists.quality, "content": lists.content}


def _recguru(
    work: Path, domain: Domain, config: RunConfig, settings: dict[str, Any], source: str, on_epoch: OnEpoch | None
) -> _Job:
    own = parse(RecGURUConfig, settings, "recguru")
    other = Domain.load(domain_folder(work, source))
    identity = {
        "baseline": "recguru",
        "student": "recguru",
        "config": own.model_dump(mode="json"),
        "domain": domain.fingerprint,
        "source": other.fingerprint,
        "seed": config.seed,
    }

    def trainer(model: Recommender, folder: Path) -> RecGURUTrainer:
        assert isinstance(model, RecGURU)
        return RecGURUTrainer(model, domain, other, own, folder, identity, config.seed, config.train.device, on_epoch)

    return _Job(identity, lambda: RecGURU.create(own, domain), trainer)
