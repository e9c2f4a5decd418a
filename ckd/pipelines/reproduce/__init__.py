"""The paper's tables and figures from nothing: every step of the chain, for several domains and seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ckd.baselines import BASELINES
from ckd.pipelines.reproduce.compare import seconds_of
from ckd.pipelines.reproduce.experiments import EXPERIMENTS, WHOLE, Options
from ckd.pipelines.reproduce.made import Made, mark, settings_said
from ckd.pipelines.reproduce.methods import Method
from ckd.pipelines.reproduce.result import Experiment
from ckd.pipelines.reproduce.steps import PlannedStep
from ckd.pipelines.reproduce.study import Study
from ckd.pipelines.workspace import versions
from ckd.teachers import TEACHERS

__all__ = ["EXPERIMENTS", "DryRun", "Options", "dry_run", "reproduce"]


@dataclass(frozen=True)
class DryRun:
    """What an experiment would do.

    Attributes:
        name: of the experiment.
        steps: each with its state and an estimate.
        notes: such as what is left out, and why.
        example: it is of the built-in example, and at the example's sizes.
    """

    name: str
    steps: tuple[PlannedStep, ...]
    notes: tuple[str, ...]
    example: bool = False

    @property
    def seconds(self) -> float | None:
        """Of all steps together; None where one of them is unknown."""
        known = [step.seconds for step in self.steps if step.seconds is not None]
        return sum(known) if len(known) == len(self.steps) else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "seconds": self.seconds}


def dry_run(name: str, study: Study, options: Options = WHOLE) -> DryRun:
    """The steps of an experiment with their states and an estimate of their time; nothing is made.

    Raises:
        ConfigError: no such method or setting.
    """
    methods = EXPERIMENTS[name].methods(study, options)
    return DryRun(name, tuple(study.dry_run(methods)), _notes(name, study) if methods else (), study.example)


def reproduce(name: str, study: Study, options: Options = WHOLE, command: str = "") -> Experiment:
    """Run an experiment, write `work/experiments/<name>[-<restricted to>]-<domains>[-<mark>].json`, and return it.

    Whatever is done is kept: an interrupted experiment goes on, and experiments share their runs. What is made
    otherwise than by default is marked, and takes no other result's place: see `made.mark`.

    Args:
        name: a key of `EXPERIMENTS`.
        command: a command line that makes it again, for the record.

    Raises:
        ConfigError: no such method or setting.
        ConfigError, DataError, StoreError: as the steps.
    """
    spec = EXPERIMENTS[name]
    methods = spec.methods(study, options)
    ran = study.run(methods)
    made = _made(study, methods)
    shown = spec.show(study, ran, options)
    experiment = Experiment(
        # What is restricted does not take the place of the whole.
        name="-".join([name, *sorted({_slug(each) for each in options.methods or options.what or ()})]),
        title=spec.title,
        element=spec.element,
        domains=study.domains,
        seeds=study.seeds,
        example=study.example,
        command=command,
        config=study.config.model_dump(mode="json", by_alias=True),
        runs=tuple(each.record for each in ran),
        differences=tuple(shown.differences),
        tables=tuple(shown.tables),
        panels=tuple(shown.panels),
        notes=(*(_notes(name, study) if ran else ()), *shown.notes),
        versions=versions(),
        seconds=seconds_of(ran),
        made=made,
        mark=mark(made, study.seeds, not made.teachers or study.teachers == study.usual_teachers) if ran else "",
    )
    former = experiment.keep_former(study.work)
    if former is not None:
        study.say(f"keep the result of other runs that had this one's name as {former}")
    experiment.save(study.work)
    return experiment


def _notes(name: str, study: Study) -> tuple[str, ...]:
    """Of what is left out, baselines are missed in the table of all methods alone, teachers wherever they are used."""
    return study.said({*TEACHERS.names(), *(BASELINES if name == "table3" else ())})


def _made(study: Study, methods: Sequence[Method]) -> Made:
    """What the methods' runs depend on; teachers only where a method is one or learns from them."""
    used = {name for m in methods for name in (*m.teachers, *([m.model] if m.kind == "teacher" else []))}
    settings = settings_said(study.config)
    if not used:
        return Made(settings=settings)
    return Made(tuple(name for name in study.teachers if name in used), study.teacher_seeds, study.sources, settings)


def _slug(name: str) -> str:
    """A printed name, less what stands in parentheses, as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.split(" (")[0].lower()).strip("-")
