"""An experiment's frame: domains, seeds and configuration, and the chain of steps for any list of methods.

Each step keeps what it makes and is not repeated, so that an interrupted run goes on; a run's name is a function of its
settings, so that experiments share whatever is the same in both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ckd.config import RunConfig
from ckd.data.described import read_json
from ckd.data.example import SOURCES, TARGET
from ckd.errors import ConfigError, DataError, did_you_mean
from ckd.evaluation.metrics import ranking_metrics
from ckd.evaluation.ranks import Ranks
from ckd.pipelines.evaluate import evaluate
from ckd.pipelines.progress import Progress, silent
from ckd.pipelines.reproduce.chain import Chain
from ckd.pipelines.reproduce.example_sizes import EXAMPLE_INSTANCES
from ckd.pipelines.reproduce.methods import Method
from ckd.pipelines.reproduce.result import RunRecord
from ckd.pipelines.reproduce.settings import check_keys, has_pictures
from ckd.pipelines.reproduce.steps import Costs, Estimates, PlannedStep, Step, Trained
from ckd.pipelines.workspace import domain_folder, domains_in
from ckd.teachers import TEACHERS

#: Teachers that an experiment uses unless told otherwise.
DEFAULT_TEACHERS = ("unisrec", "recformer", "unim2rec")


@dataclass(frozen=True)
class Ran:
    """A run with its test ranks."""

    record: RunRecord
    ranks: Ranks


@dataclass(frozen=True)
class Study:
    """What an experiment is run on.

    Attributes:
        work: root of the workspace.
        data: a folder with one folder per real domain; none: the built-in example.
        domains: which of them.
        seeds: of the runs.
        teacher_seeds: of teachers that are fine-tuned; the students of the seeds take them in turn.
        config: what the user says; see `settings.resolve`.
        teachers: registered teachers that are distilled.
        usual_teachers: those that would be, had nobody named any.
        sources: domains that teachers are pre-trained on before they are fine-tuned; none: from scratch.
        left_out: models that cannot be run here, and why, for people.
        notes: what else they should know.
        progress: told of long work within a step.
        say: told of each step before it begins.
    """

    work: Path
    data: Path | None
    domains: tuple[str, ...]
    seeds: tuple[int, ...]
    teacher_seeds: tuple[int, ...]
    config: RunConfig
    teachers: tuple[str, ...] = DEFAULT_TEACHERS
    usual_teachers: tuple[str, ...] = DEFAULT_TEACHERS
    sources: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    progress: Progress = silent
    say: Callable[[str], None] = field(default=lambda _: None)

    @property
    def example(self) -> bool:
        return self.data is None

    def said(self, models: Collection[str]) -> tuple[str, ...]:
        """The notes on an experiment that would have these models."""
        return (*(why for model, why in self.left_out.items() if model in models), *self.notes)

    def steps(self, methods: Sequence[Method]) -> list[Step]:
        """Every step that the methods need, each once, in the order they are taken."""
        return list(self._chains(methods)[0].values())

    def dry_run(self, methods: Sequence[Method]) -> list[PlannedStep]:
        """The steps with their states and times; nothing is made."""
        return Estimates(Costs(self.work), self.instances, self.example).of(self.steps(methods))

    def run(self, methods: Sequence[Method]) -> list[Ran]:
        """Take every step, and rank the test part with every run; in the order of domains, methods, seeds."""
        steps, trained = self._chains(methods)
        self._carry_out(steps.values())
        order = {method.name: number for number, method in enumerate(methods)}
        trained.sort(key=lambda t: (self.domains.index(t.domain), order[t.method.name], t.seed))
        return [self._evaluated(each) for each in trained]

    def teacher_seed(self, seed: int) -> int:
        """The seed of the teachers that a run of this seed learns from."""
        return self.teacher_seeds[self.seeds.index(seed) % len(self.teacher_seeds)]

    def instances(self, domain: str) -> int | None:
        """Training instances of a prepared domain; None of one that is not."""
        try:
            notes = read_json(domain_folder(self.work, domain) / "domain.json", "")["statistics"]
        except (DataError, KeyError):
            return EXAMPLE_INSTANCES if self.example else None
        # Each user's first item has no history, and the last two are for validation and test.
        return max(0, int(notes["interactions"] - 3 * notes["users"]))

    def _chains(self, methods: Sequence[Method]) -> tuple[dict[str, Step], list[Trained]]:
        steps: dict[str, Step] = {}
        trained = []
        for name in self.domains:
            chain = Chain(self, name, steps)
            chain.domain()
            for seed in self.seeds:
                here = (m for m in methods if m.kind != "teacher" or seed in self.teacher_seeds)
                trained += [chain.train(method, seed) for method in here]
        return steps, trained

    def _carry_out(self, steps: Iterable[Step]) -> None:
        costs = Costs(self.work)
        for step in steps:
            if step.state() != "done":
                self.say(step.what)
            costs.carry_out(step)

    def _evaluated(self, trained: Trained) -> Ran:
        found = evaluate(self.work, trained.domain, trained.run, "test", device=self.config.train.device)
        cost = Costs(self.work).of(trained.key)
        record = RunRecord(
            domain=trained.domain,
            method=trained.method.name,
            kind=trained.method.kind,
            model=trained.method.model,
            seed=trained.seed,
            run=trained.run,
            folder=trained.key,
            teachers=trained.teachers,
            overrides=dict(trained.method.overrides),
            settings=trained.settings,
            metrics=ranking_metrics(found.ranks.rank),
            valid=_validation(self.work / trained.key),
            seconds=cost.seconds if cost is not None and cost.finished else None,
        )
        return Ran(record, found.ranks)


def _validation(folder: Path) -> dict[str, float]:
    """Validation metrics of a teacher's or student's best epoch."""
    if (folder / "result.json").exists():
        metrics: dict[str, float] = read_json(folder / "result.json", "")["metrics"]["valid"]
        return metrics
    log = read_json(folder / "best.json", "")["log"]
    return {key.removeprefix("valid_"): value for key, value in log.items() if key.startswith("valid_")}


def make_study(
    work: Path,
    data: Path | None,
    domains: Sequence[str] | None,
    seeds: int,
    config: RunConfig,
    *,
    teachers: Sequence[str] | None = None,
    sources: Sequence[str] = (),
    teacher_seeds: int | None = None,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda _: None,
) -> Study:
    """A study, its names checked before anything is made.

    Args:
        data: a folder with one folder per real domain; none: the built-in example.
        domains: which; none: all of the folder, or the example's target.
        seeds: how many runs of everything, from the configuration's seed on.
        teachers: registered teachers; none: UniSRec, Recformer and, where items have pictures, UniM²Rec.
        sources: domains to pre-train the teachers on.
        teacher_seeds: how many of the seeds teachers are fine-tuned from; none: all.

    Raises:
        ConfigError: an unknown domain, teacher or key, or a source that is a target as well, or more seeds of teachers
            than of students.
        DataError: no such folder.
    """
    if data is None:
        known = [*SOURCES, TARGET]
    elif data.is_dir():
        known = domains_in(data)
        if not known:
            raise DataError(f"{data}: holds no folder of a domain. Give the folder that holds one folder per domain.")
    else:
        raise DataError(f"{data}: no such folder. Give the folder that holds one folder per domain.")
    for name in (*(domains or ()), *sources):
        if name not in known:
            raise ConfigError(f"no domain {name!r} in {data or 'the built-in example'}.{did_you_mean(name, known)}")
    for name in teachers or ():
        if name not in TEACHERS.names():
            raise ConfigError(f"unknown teacher {name!r}.{did_you_mean(name, TEACHERS.names())}")
    chosen = tuple(domains or ([TARGET] if data is None else [name for name in known if name not in sources]))
    for name in sources:
        if name in chosen:
            raise ConfigError(f"domain {name!r}: a source of pre-training cannot be a target too. Take it out of one.")
    if teacher_seeds is not None and teacher_seeds > seeds:
        raise ConfigError(f"--teacher-seeds {teacher_seeds}: only {seeds} would be used. Give it at most --seeds.")
    every = tuple(config.seed + number for number in range(seeds))
    left_out: dict[str, str] = {}
    if data is not None and len(known) == 1:
        left_out["recguru"] = f"RecGURU is left out: it needs a second domain beside {known[0]} in {data}."
    blind = [name for name in chosen if not has_pictures(work, name, config)] if data is not None else []
    if blind and teachers is None:
        left_out["unim2rec"] = (
            f"UniM²Rec is left out: {', '.join(blind)} without pictures. Prepare the domain and bring in its pictures' "
            "vectors with `ckd encode-items --modality image`, or name the teachers."
        )
    usual = tuple(name for name in DEFAULT_TEACHERS if name != "unim2rec" or not blind)
    used = tuple(teachers or usual)
    check_keys(config, used)
    notes = []
    unseen = [name for name in sources if not has_pictures(work, name, config)] if data is not None else []
    if unseen and "unim2rec" in used:
        notes.append(f"UniM²Rec is pre-trained on texts alone: {', '.join(unseen)} without pictures.")
    return Study(
        work=work,
        data=data,
        domains=chosen,
        seeds=every,
        teacher_seeds=every[:teacher_seeds],
        config=config,
        teachers=used,
        usual_teachers=usual,
        sources=tuple(sources),
        left_out=left_out,
        notes=tuple(notes),
        progress=progress,
        say=say,
    )
