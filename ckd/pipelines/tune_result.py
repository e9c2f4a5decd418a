"""What a search leaves behind: its trials, the best values, and a file for `ckd reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ckd.config import RunConfig, TrainConfig, parse
from ckd.data.atomic import replace_file, write_json
from ckd.distill.trainer import with_defaults
from ckd.pipelines.reproduce.methods import table3_methods, universal
from ckd.pipelines.workspace import student_folder, tune_folder, versions
from ckd.students import STUDENTS
from ckd.tune.space import Kind, Space
from ckd.tune.trials import METRIC, Budget, Trial, best_of, save_trials

#: Describes a search, beside its trials.
SEARCH_FILE = "search.json"
TRIALS_FILE = "trials.parquet"
BEST_FILE = "best.yaml"


@dataclass(frozen=True)
class Search:
    """A search and what it has found.

    Attributes:
        folder: where its trials lie.
        kind: of a base model, or with teachers.
        trials: by number.
        best: the trial with the highest validation NDCG@10; None where all diverged.
        budget: what it was given.
        settings: the best values as YAML that `--config` takes.
    """

    folder: Path
    kind: Kind
    trials: list[Trial]
    best: Trial | None
    budget: Budget
    settings: str


@dataclass(frozen=True)
class Job:
    """One search with its inputs read."""

    work: Path
    domain: str
    student: str
    name: str
    kind: Kind
    config: RunConfig
    space: Space
    sampler: str
    plan: str
    teachers: tuple[str, ...]
    scores: str | None
    identity: dict[str, Any]

    def settings(self, values: dict[str, Any]) -> RunConfig:
        """Those of a trial."""
        return trial_settings(self.student, self.config, self.space, values)

    @property
    def folder(self) -> Path:
        return tune_folder(self.work, self.domain, self.name)

    def run(self, number: int) -> str:
        """Name of a trial's run, gone when the trial is recorded."""
        return f"tune-{self.name}-{number:03d}"

    def run_folder(self, number: int) -> Path:
        return student_folder(self.work, self.domain, self.run(number))


def trial_settings(student: str, config: RunConfig, space: Space, values: dict[str, Any]) -> RunConfig:
    """The configuration with a trial's values.

    Raises:
        ConfigError: one does not fit.
    """
    config = space.apply(config, values)
    parse(STUDENTS.get(student).Config, config.student, "space: student")
    return config


def record(job: Job, done: list[Trial]) -> Search:
    """Write trials, best values and budget; the description last."""
    best = best_of(done)
    budget = Budget.of(done)
    settings = _snippet(job, best, budget)
    save_trials(done, [dimension.name for dimension in job.space.dimensions], job.folder / TRIALS_FILE)
    with replace_file(job.folder / BEST_FILE) as partial:
        partial.write_text(settings)
    write_json(
        job.folder / SEARCH_FILE,
        {
            "identity": job.identity,
            "metric": f"validation {METRIC}",
            "budget": asdict(budget),
            "best": None if best is None else {**asdict(best), "run": _identity_of(job, best)},
            "versions": versions(),
        },
    )
    return Search(job.folder, job.kind, done, best, budget, settings)


def _identity_of(job: Job, trial: Trial) -> dict[str, Any]:
    """What a run trained with these values says of itself, so that a report knows it again."""
    config = job.settings(trial.values)
    return {
        "student": job.student,
        "config": STUDENTS.get(job.student).Config.model_validate(config.student).model_dump(mode="json"),
        "train": _train(job, config).identity(),
        "distill": config.distill.model_dump(mode="json", by_alias=True) if job.teachers else None,
    }


def _snippet(job: Job, best: Trial | None, budget: Budget) -> str:
    """The best values, with where they are from, as a file that `--config` takes."""
    spent = _spent(budget)
    if best is None:
        return f"# {job.name} on {job.domain}: no trial of {budget.trials} came to its end ({spent}).\n"
    head = (
        f"# {job.name} on {job.domain}: best by validation NDCG@10 ({best.metric:.4f}), trial {best.number} "
        f"of {spent}.\n"
    )
    sections = job.space.sections(best.values)
    return head + (yaml.safe_dump(sections, sort_keys=False) if sections else "# The configuration as it was.\n")


def _train(job: Job, config: RunConfig) -> TrainConfig:
    return with_defaults(config.train, STUDENTS.get(job.student).TRAIN_DEFAULTS)


def for_reproduce(config: RunConfig, jobs: Sequence[Job], searches: Sequence[Search]) -> Path | None:
    """Write what was searched around, with the best values of base and distilled model as methods of `ckd reproduce`.

    What the distilled student takes goes for all students of its model, variants of an ablation included; the base
    model's own values come over it, every one of them, so that none of the distilled student's is left there.
    """
    some = ("unisrec",)
    students = (each for each in (*table3_methods(some), *universal(some)) if each.kind == "student")
    printed = {each.model: each.name for each in students if not each.teachers}
    best = {job.kind: (job, search.best) for job, search in zip(jobs, searches, strict=True)}
    if len(best) < 2 or jobs[0].student not in printed:
        return None
    keys = list(dict.fromkeys(key for job in jobs for dimension in job.space.dimensions for key in dimension.keys))
    methods = dict(config.methods)
    named: dict[Kind, str] = {"distilled": jobs[0].student, "base": printed[jobs[0].student]}
    for kind, name in named.items():
        job, trial = best[kind]
        if trial is None:
            return None
        run = _identity_of(job, trial)
        train = _train(job, job.settings(trial.values)).model_dump(mode="json")
        sections = {"student": run["config"], "train": train, "distill": run["distill"] or {}}
        split = [(key, *key.split(".", 1)) for key in keys]
        found = {key: sections[section][each] for key, section, each in split if each in sections[section]}
        methods[name] = {**methods.get(name, {}), **found}
    folder = jobs[0].folder.parent
    path = folder / f"{'+'.join(job.name for job in jobs)}.yaml"
    budgets = "; ".join(f"{search.kind}: {_spent(search.budget)}" for search in searches)
    with replace_file(path) as partial:
        given = config.model_dump(mode="json", by_alias=True, exclude_unset=True)
        partial.write_text(
            f"# For `ckd reproduce --config`. {budgets}.\n" + yaml.safe_dump(given | {"methods": methods})
        )
    return path


def _spent(budget: Budget) -> str:
    return f"{budget.trials} trials, {budget.epochs:,} epochs, {budget.seconds:,.0f} s of training"
