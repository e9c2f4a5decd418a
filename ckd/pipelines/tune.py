"""Searches hyperparameters of a student, with teachers and without, by its validation NDCG@10 and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckd.config import RunConfig
from ckd.data.atomic import discard_partials
from ckd.data.described import read_json
from ckd.data.domain import Domain
from ckd.distill import live
from ckd.distill.checkpoint import require_same_run
from ckd.distill.events import require_tensorboard
from ckd.distill.plan import Plan
from ckd.distill.trainer import TrainingDiverged
from ckd.nn.device import pick_device
from ckd.pipelines.plan import load_plan, make_plan
from ckd.pipelines.progress import Progress, silent
from ckd.pipelines.score_binding import open_scores
from ckd.pipelines.train_student import require_planned, scored_teachers, train_student
from ckd.pipelines.tune_result import SEARCH_FILE, TRIALS_FILE, Job, Search, for_reproduce, record, trial_settings
from ckd.pipelines.workspace import domain_folder, tune_folder
from ckd.students import STUDENTS
from ckd.tune.samplers import SAMPLERS, check_sampler
from ckd.tune.space import Kind, Space, read_space
from ckd.tune.trials import METRIC, Trial, load_trials

RESTART = "Give --restart to search again."

OnTrial = Callable[[Search, Trial], None]


@dataclass(frozen=True)
class Tuned:
    """All searches of a request.

    Attributes:
        searches: base first.
        methods: of both kinds together, a configuration with which `ckd reproduce` takes each model's best values;
            None of a single search, where all trials diverged, or where no table has such a base model.
    """

    searches: list[Search]
    methods: Path | None


@dataclass(frozen=True)
class Request:
    """What to search, and how.

    Attributes:
        student: a registered student.
        kinds: `base`, `distilled`, or both, which get the same number of trials.
        trials: how many each search has in the end.
        sampler: `grid`, `random` or `tpe`.
        space, vary: as `ckd.tune.space.read_space`; of two searches, the base's leaves the section `distill` out.
        teachers: runs whose scores are distilled; none: all that have scored the plan.
        plan: what is trained along; none: of a distilled student the plan of the configuration, of a base model one
            without a curriculum, composed afresh every epoch. Of two searches it is the distilled student's.
        scores: folder or URI below which the stores lie, in place of the work folder.
        name: of the search; none: the student's, with `base` or the teachers'. Of two searches, what they begin with.
        restart: discard a search of this name.
    """

    student: str
    kinds: tuple[Kind, ...]
    trials: int
    sampler: str = "random"
    space: Path | None = None
    vary: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    plan: str | None = None
    scores: str | None = None
    name: str | None = None
    restart: bool = False


def tune(
    work: Path,
    domain_name: str,
    config: RunConfig,
    request: Request,
    progress: Progress = silent,
    on_trial: OnTrial | None = None,
) -> Tuned:
    """Try settings of a student and keep what each reached on the validation part; the test part is not touched.

    A finished trial is not repeated; a search that was killed goes on, with the values it would have tried.

    Args:
        config: what the trials start from. A base model has the student keys of its section `base` over `student`.
        on_trial: told of each finished trial.

    Raises:
        ConfigError: unknown student, sampler, key or value.
        DataError, StoreError: inputs are missing or do not belong together, or the name is another search's.
    """
    domain = Domain.load(domain_folder(work, domain_name))
    # A plan that is not there yet is made and stays: not before all that can be said without it.
    if request.name is not None:
        tune_folder(work, domain_name, request.name)
    for kind in request.kinds:
        start, space = _start(config, request, kind)
        check_sampler(request.sampler, space, request.trials)
        for settings in _extremes(request.student, start, space):
            pick_device(settings.train.device)
            require_tensorboard(settings.train)
    jobs = [_job(work, domain, config, request, kind) for kind in request.kinds]
    for job in jobs:
        _require_planned(job)
    found = [_search(job, request, progress, on_trial or (lambda *_: None)) for job in jobs]
    return Tuned(found, for_reproduce(config, jobs, found))


def _job(work: Path, domain: Domain, config: RunConfig, request: Request, kind: Kind) -> Job:
    both = len(request.kinds) > 1
    config, space = _start(config, request, kind)
    plan = _plan(work, domain, config, kind, None if both and kind == "base" else request.plan)
    teachers: list[str] = []
    if kind == "distilled":
        teachers = list(request.teachers) or scored_teachers(work, domain.name, plan.id, request.scores)
    readers = {run: open_scores(work, domain, plan, run, scores=request.scores) for run in teachers}
    identity = {
        "student": request.student,
        "kind": kind,
        "teachers": {run: reader.manifest.header.binding.as_dict() for run, reader in readers.items()},
        "domain": domain.fingerprint,
        "plan": plan.fingerprint,
        "seed": config.seed,
        "sampler": request.sampler,
        "space": space.plain(),
        "config": config.student,
        "train": config.train.model_dump(mode="json", exclude=set(config.train.NO_IDENTITY), exclude_unset=True),
        "distill": config.distill.model_dump(mode="json", by_alias=True) if teachers else None,
    }
    if request.name is None:
        name = "-".join([request.student, *(teachers or ["base"])])
    else:
        name = f"{request.name}-{kind}" if both else request.name
    return Job(
        work=work,
        domain=domain.name,
        student=request.student,
        name=name,
        kind=kind,
        config=config,
        space=space,
        sampler=request.sampler,
        plan=plan.id,
        teachers=tuple(teachers),
        scores=request.scores,
        identity=identity,
    )


def _start(config: RunConfig, request: Request, kind: Kind) -> tuple[RunConfig, Space]:
    """What trials of a kind start from, and what they try."""
    if kind == "base":
        config = config.model_copy(update={"student": {**config.student, **config.base}})
    shared = len(request.kinds) > 1
    return config, read_space(request.space, request.vary, kind, STUDENTS.get(request.student).Config, shared=shared)


def _plan(work: Path, domain: Domain, config: RunConfig, kind: Kind, plan_id: str | None) -> Plan:
    if plan_id is not None:
        return load_plan(work, domain, plan_id)
    if kind == "base":
        # As published: no curriculum, batches composed afresh every epoch.
        plain = config.plan.model_copy(update={"difficulty": "none", "buckets": 1, "pool": "fresh"})
        config = config.model_copy(update={"plan": plain})
    return make_plan(work, domain.name, config).plan


def _extremes(student: str, config: RunConfig, space: Space) -> Iterator[RunConfig]:
    """The settings that trials start from, and these with each bound of the space: what fits nowhere is refused here,
    before an hour has been spent on other values, or a former search is discarded."""
    for values in [{}, *({each.name: value} for each in space.dimensions for value in each.domain.bounds())]:
        yield trial_settings(student, config, space, values)


def _require_planned(job: Job) -> None:
    plan = load_plan(job.work, Domain.load(domain_folder(job.work, job.domain)), job.plan)
    for settings in _extremes(job.student, job.config, job.space):
        require_planned(settings.train, plan)


def _search(job: Job, request: Request, progress: Progress, on_trial: OnTrial) -> Search:
    done = _begin(job, request.restart)
    for number in range(len(done), request.trials):
        values = SAMPLERS[job.sampler](job.space, job.config.seed, number, done)
        note = f"{job.kind} trial {number + 1} of {request.trials}"
        done.append(_try(job, number, values, note, progress))
        found = record(job, done)
        # Only now: whoever is killed before this finds the run finished, and records it.
        shutil.rmtree(job.run_folder(number), ignore_errors=True)
        on_trial(found, done[-1])
    return record(job, done)


def _begin(job: Job, restart: bool) -> list[Trial]:
    """The trials that are there already.

    Raises:
        DataError: the folder holds another search, or is damaged.
    """
    description = job.folder / SEARCH_FILE
    if restart:
        shutil.rmtree(job.folder, ignore_errors=True)
        for left in job.run_folder(0).parent.glob(f"tune-{job.name}-[0-9]*"):
            # Not those of a search whose name begins with this one's.
            if left.name.removeprefix(f"tune-{job.name}-").isdecimal():
                shutil.rmtree(left)
    if not description.exists():
        record(job, [])
        return []
    discard_partials(job.folder)
    found = read_json(description, RESTART)
    require_same_run(
        description, found.get("identity", {}), job.identity, "Give another --name, or --restart to discard it."
    )
    done = load_trials(job.folder / TRIALS_FILE)
    for trial in done:
        shutil.rmtree(job.run_folder(trial.number), ignore_errors=True)
    return done


def _try(job: Job, number: int, values: dict[str, Any], note: str, progress: Progress) -> Trial:
    """Train one setting."""

    def on_step(epoch: int, step: int, steps: int, row: dict[str, Any]) -> None:
        progress(step, steps, "step", f"{note} · {live.note(row)}")

    try:
        trained = train_student(
            job.work,
            job.domain,
            job.student,
            job.settings(values),
            teachers=job.teachers,
            plan_id=job.plan,
            run=job.run(number),
            scores=job.scores,
            on_step=on_step,
        ).trained
    except TrainingDiverged:
        rows = _rows(job.run_folder(number))
        return Trial(number, "diverged", values, None, None, None, len(rows), _seconds(rows))
    metrics = trained.metrics
    return Trial(
        number=number,
        state="complete",
        values=values,
        metric=metrics[METRIC],
        recall=metrics["recall@10"],
        best_epoch=trained.best_epoch,
        epochs=len(trained.rows),
        seconds=_seconds(trained.rows),
    )


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The log of a run that has not come to its end."""
    path = folder / "last.json"
    return read_json(path, RESTART)["rows"] if path.exists() else []


def _seconds(rows: list[dict[str, Any]]) -> float:
    return round(sum(row["seconds"] for row in rows), 3)
