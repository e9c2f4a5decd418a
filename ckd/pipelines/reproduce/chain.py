"""The chain of steps behind a run: data, features, pre-training, teachers, plan, scores, student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckd.config import RunConfig, TrainConfig, parse
from ckd.data.described import read_json
from ckd.data.example import SOURCES
from ckd.data.features import IMAGE
from ckd.distill import live
from ckd.distill.difficulty import needs_teachers
from ckd.distill.trainer import with_defaults
from ckd.errors import ConfigError, DataError
from ckd.pipelines.encode_items import EncodeConfig, encode_items
from ckd.pipelines.example import prepare_example
from ckd.pipelines.finetune_teacher import RESULT, finetune_teacher
from ckd.pipelines.plan import described, make_plan, plan_ids
from ckd.pipelines.prepare import prepare
from ckd.pipelines.prepared_from import require_prepared_from
from ckd.pipelines.pretrain_teacher import pretrain_teacher, pretraining_class
from ckd.pipelines.reproduce.made import short_hash
from ckd.pipelines.reproduce.methods import Method, teacher
from ckd.pipelines.reproduce.settings import (
    Settings,
    encodings,
    has_pictures,
    pretraining_keys,
    resolve,
)
from ckd.pipelines.reproduce.steps import WITH_TEACHERS, State, Step, Trained, exists, finished_in, summary
from ckd.pipelines.teacher_difficulty import teacher_difficulty
from ckd.pipelines.teacher_score import teacher_score
from ckd.pipelines.train_baseline import train_baseline
from ckd.pipelines.train_student import STUDENT_FILE, train_student
from ckd.pipelines.workspace import domain_folder, domains_in, plans_folder, pretrained_folder, scores_folder
from ckd.store.manifest import MANIFEST
from ckd.teachers import TEACHERS

if TYPE_CHECKING:
    from ckd.pipelines.reproduce.study import Study

#: Epochs between the ranking lists that every teacher keeps: HetComp learns from them, and experiments share teachers.
KEEP_RANKINGS = 3


class Chain:
    """Adds the steps of one domain to `steps`, in the order they are taken; a step that is there is not added again.

    Args:
        study: on what.
        domain: its name.
        steps: by key.
    """

    def __init__(self, study: Study, domain: str, steps: dict[str, Step]) -> None:
        self.study, self.name, self.steps = study, domain, steps
        self.work = study.work

    def domain(self, name: str | None = None) -> None:
        """The domain itself, or a source domain of that name."""
        name = name or self.name
        folder = domain_folder(self.work, name)
        if f"domains/{name}" in self.steps:
            return
        self._require_prepared_so(name)

        def run() -> None:
            if self.study.data is None:
                prepare_example(self.work)
            elif not (folder / "domain.json").exists():
                config = self.study.config.prepare
                prepare(self.work, self.study.data / name, name=name, config=config, progress=self.study.progress)

        self._add(f"domains/{name}", f"prepare {name}", "prepare", "", name, exists(folder / "domain.json"), run)

    def _require_present(self, folder: Path, file: str) -> None:
        """Refuse a run of content that the domain no longer has; its folder would be taken for a finished one."""
        present = domain_folder(self.work, self.name) / "domain.json"
        path = self.work / folder / file
        if not (path.exists() and present.exists()):
            return
        found = read_json(path, "Discard that folder.").get("identity", {}).get("domain")
        now = read_json(present, "Prepare it again.").get("fingerprint")
        if found != now:
            raise DataError(
                f"{path.parent}: trained on content {found}, {self.name} now has {now}. Discard that folder, or take "
                "another --work."
            )

    def _require_prepared_so(self, name: str) -> None:
        """Refuse a domain that lies there prepared otherwise than the configuration says, or from other files."""
        path = domain_folder(self.work, name) / "domain.json"
        if self.study.data is None or not path.exists():
            return
        notes = read_json(path, "Prepare it again.").get("notes", {})
        found = notes.get("config", {})
        for key, value in self.study.config.prepare.model_dump(mode="json", exclude_unset=True).items():
            if key in found and found[key] != value:
                raise DataError(
                    f"{path}: prepared with prepare.{key}={found[key]}, not {value}. Leave the key out, "
                    "prepare the domain again with `ckd prepare --replace`, or take another work folder."
                )
        require_prepared_from(path, notes, self.study.data / name, self.study.config.prepare.items)

    def train(self, method: Method, seed: int) -> Trained:
        """Everything that a method's run needs, and the run."""
        if method.kind == "teacher":
            return self._finetune(method, seed)
        if method.kind == "baseline":
            return self._baseline(method, seed)
        return self._student(method, seed)

    # --- teachers ----------------------------------------------------------------------------------------------------

    def _finetune(self, method: Method, seed: int) -> Trained:
        settings = resolve(method, self.study.config, self.study.example, seed)
        config_class = TEACHERS.get(method.model).Config
        self._features(self.name, parse(config_class, settings.config.teacher, method.name))
        start = self._pretrain(method) if self.study.sources else None
        run = f"{method.model}-seed{seed}-{settings.fingerprint(method, {'start': start, **self._encoded_with()})}"
        folder = Path("teachers") / self.name / run
        config = settings.config
        if start is not None:
            config = config.model_copy(
                update={"teacher": {**config.teacher, "start": pretrained_folder(self.work, start)}}
            )

        self._require_present(folder, RESULT)
        finished = finished_in(self.work / folder, RESULT)

        def tune() -> None:
            # One that was finished without lists serves all methods but HetComp, which says what it misses.
            finetune_teacher(
                self.work,
                self.name,
                method.model,
                config,
                run=run,
                progress=self.study.progress,
                keep_rankings=None if finished() == "done" else KEEP_RANKINGS,
            )

        self._add(
            str(folder),
            f"fine-tune {method.name} on {self.name}, seed {seed}",
            "fine-tune",
            method.model,
            self.name,
            finished,
            tune,
        )
        return Trained(self.name, method, seed, run, str(folder), (), settings.used(method))

    def _teachers(self, method: Method, seed: int) -> tuple[str, ...]:
        """Runs of the teachers that a method's run of this seed learns from."""
        from_seed = self.study.teacher_seed(seed)
        return tuple(self._finetune(teacher(model), from_seed).run for model in method.teachers)

    def _pretrain(self, method: Method) -> str:
        """Pre-train a teacher on the source domains, once for all seeds and target domains; returns the run's name."""
        study = self.study
        seed = study.config.seed
        settings = resolve(method, study.config, study.example, seed)
        own = pretraining_keys(method.model, settings.config.teacher)
        if not self._pictures_of_sources() and "image_feature" in pretraining_class(method.model).model_fields:
            # On texts alone; the parts for pictures begin anew in fine-tuning.
            own["image_feature"] = None
        for source in study.sources:
            self.domain(source)
            self._features(source, parse(pretraining_class(method.model), own, method.name))
        train = {"device": settings.config.train.device, **settings.pretrain}
        config = settings.config.model_copy(update={"teacher": own, "train": parse(TrainConfig, train, "pretrain")})
        parts = [study.sources, own, settings.pretrain, *self._encoded_with().values()]
        run = f"{method.model}-seed{seed}-{short_hash(parts)}"
        self._add(
            f"pretrained/{run}",
            f"pre-train {method.name} on {', '.join(study.sources)}",
            "pretrain",
            method.model,
            ",".join(study.sources),
            finished_in(pretrained_folder(self.work, run), RESULT),
            lambda: pretrain_teacher(self.work, method.model, study.sources, config, run=run, progress=study.progress),
            with_defaults(config.train, getattr(TEACHERS.get(method.model), "PRETRAIN_DEFAULTS", {})).epochs,
        )
        return run

    def _pictures_of_sources(self) -> bool:
        """Whether every source domain has pictures, as those of the example do."""
        study = self.study
        return study.example or all(has_pictures(self.work, name, study.config) for name in study.sources)

    def _features(self, name: str, config: Any) -> None:
        """The item features that a teacher's configuration names and that can be encoded here."""
        for feature, keys in encodings(config, self.study.config.features).items():
            key = f"domains/{name}/features/{feature}"
            state = exists(domain_folder(self.work, name) / "features" / f"{feature}.json")
            run = partial(self._encode, name, feature, keys)
            self._add(key, f"encode {feature} of {name}", "encode", feature, name, state, run)

    def _encoded_with(self) -> dict[str, Any]:
        """What of the user's `features` section names teachers' runs; nothing, where items are encoded by default."""
        features = self.study.config.features
        return {"features": features} if features else {}

    def _encode(self, name: str, feature: str, keys: dict[str, Any]) -> None:
        # Vectors that were brought in are the user's, and the example brings its pictures' own: none is made anew.
        path = domain_folder(self.work, name) / "features" / f"{feature}.json"
        if path.exists():
            source = read_json(path, "Bring its vectors in again.").get("source", {})
            if feature == IMAGE or "imported" in source:
                return
        encode_items(self.work, name, parse(EncodeConfig, keys, "features"), self.study.progress)

    # --- plan and scores ---------------------------------------------------------------------------------------------

    def _plan(self, config: RunConfig, teachers: Sequence[str]) -> Callable[[], str]:
        """Plan the batches; returns what gives the plan's id once the step is taken."""
        by_teachers = needs_teachers(config.plan.difficulty)
        reference = config.model_copy(
            update={"plan": config.plan.model_copy(update={"difficulty": "none", "buckets": 1})}
        )
        if by_teachers:
            self._score(reference, teachers)

        @cache
        def make() -> str:
            scores = None
            if by_teachers:
                known = make_plan(self.work, self.name, reference).plan.id
                where = self._scores(reference)
                scores = teacher_difficulty(self.work, self.name, teachers, known, where, self.study.progress)
            return make_plan(self.work, self.name, config, self.study.progress, scores).plan.id

        key = short_hash([config.plan.model_dump(mode="json"), config.seed, *(teachers if by_teachers else ())])
        what = f"plan batches of {self.name}, seed {config.seed} ({summary(config.plan)})"
        self._add(
            f"plans/{self.name}/{key}",
            what,
            "plan",
            "",
            self.name,
            lambda: "done" if self._planned(config) else "to do",
            make,
        )
        return make

    def _planned(self, config: RunConfig) -> list[str]:
        """Plans in the work folder that look like the configuration's; the pipeline compares everything."""
        wanted = {"seed": config.seed, "config": config.plan.model_dump(mode="json")}
        found = []
        for name in plan_ids(self.work, self.name):
            meta = described(plans_folder(self.work, self.name) / name)
            if {key: meta.get(key) for key in wanted} == wanted:
                found.append(name)
        return found

    def _scores(self, config: RunConfig) -> str | None:
        """Where scores of another codec than the study's lie: a store holds one codec."""
        codec = config.score.codec
        return None if codec == self.study.config.score.codec else str(self.work / f"scores-{codec}")

    def _score(self, config: RunConfig, teachers: Sequence[str]) -> Callable[[], str]:
        """Plan, and score with every teacher; returns what gives the plan's id."""
        plan, where = self._plan(config, teachers), self._scores(config)
        for run in teachers:

            def state(run: str = run) -> State:
                folder = Path(where) / self.name if where else scores_folder(self.work, self.name, "")
                stores = [folder / plan_id / run for plan_id in self._planned(config)]
                if any((store / MANIFEST).exists() for store in stores):
                    return "done"
                return "begun" if any(store.exists() for store in stores) else "to do"

            def score(run: str = run) -> None:
                teacher_score(self.work, self.name, run, config, plan(), where, progress=self.study.progress)

            described = [config.plan.model_dump(mode="json"), config.seed, config.score.codec, run]
            key = f"scores/{self.name}/{short_hash(described)}"
            what = f"score with {run} on {self.name} ({summary(config.plan)})"
            self._add(key, what, "score", run.split("-seed")[0], self.name, state, score)
        return plan

    # --- students and baselines --------------------------------------------------------------------------------------

    def _student(self, method: Method, seed: int) -> Trained:
        settings = resolve(method, self.study.config, self.study.example, seed)
        runs = self._teachers(method, seed)
        config = _of_runs(settings.config, method.teachers, runs)
        plan = self._score(config, runs) if runs else self._plan(config, ())
        where = self._scores(config) if runs else None
        prefix = f"{method.model}{WITH_TEACHERS}" if runs else method.model
        run = f"{prefix}-seed{seed}-{settings.fingerprint(method, {'teachers': runs})}"

        def train() -> None:
            train_student(
                self.work,
                self.name,
                method.model,
                config,
                teachers=runs,
                plan_id=plan(),
                run=run,
                scores=where,
                on_step=self._on_step,
            )

        # Over all items a step takes several times as long.
        cost = f"{prefix}-all" if runs and config.distill.scope == "all" else prefix
        return self._trained(method, settings, run, runs, cost, train)

    def _baseline(self, method: Method, seed: int) -> Trained:
        settings = resolve(method, self.study.config, self.study.example, seed)
        runs = self._teachers(method, seed)
        source = self.source() if method.model == "recguru" else None
        if source is not None:
            self.domain(source)
        parts = {"teachers": runs, "source": source}
        run = f"{method.model}-seed{seed}-{settings.fingerprint(method, parts)}"

        def train() -> None:
            train_baseline(
                self.work,
                self.name,
                method.model,
                settings.config,
                student=method.student,
                teachers=runs,
                source=source,
                run=run,
                progress=self.study.progress,
            )

        return self._trained(method, settings, run, runs, method.model, train)

    def source(self) -> str | None:
        """The domain that RecGURU shares its encoder with: the first source, else the first other one by name."""
        known = SOURCES if self.study.data is None else domains_in(self.study.data)
        others = [*self.study.sources, *known]
        return next((name for name in others if name != self.name), None)

    def _trained(
        self,
        method: Method,
        settings: Settings,
        run: str,
        teachers: tuple[str, ...],
        cost: str,
        train: Callable[[], object],
    ) -> Trained:
        seed = settings.config.seed
        folder = Path("students") / self.name / run
        what = f"train {method.name} on {self.name}, seed {seed}"
        self._require_present(folder, STUDENT_FILE)
        state = finished_in(self.work / folder, "last.json", "finished")
        self._add(str(folder), what, "train", cost, self.name, state, train)
        return Trained(self.name, method, seed, run, str(folder), teachers, settings.used(method))

    def _on_step(self, epoch: int, step: int, steps: int, row: dict[str, Any]) -> None:
        self.study.progress(step, steps, "step", live.note(row))

    def _add(
        self,
        key: str,
        what: str,
        action: str,
        model: str,
        domain: str,
        state: Callable[[], State],
        run: Callable[[], object],
        epochs: int | None = None,
    ) -> None:
        self.steps.setdefault(key, Step(key, what, action, model, domain, state, run, epochs))


def _of_runs(config: RunConfig, teachers: Sequence[str], runs: Sequence[str]) -> RunConfig:
    """The configuration with weights and temperatures, where they are given by teacher, given by its run.

    Raises:
        ConfigError: one of the teachers has none.
    """
    changed = {}
    for name in ("weights", "temperature"):
        given = getattr(config.distill, name)
        if isinstance(given, dict):
            lacking = [each for each, run in zip(teachers, runs, strict=True) if not {each, run} & set(given)]
            if lacking:
                raise ConfigError(f"distill.{name}: none for teacher {lacking[0]!r}; given: {sorted(given)}.")
            of = dict(zip(teachers, runs, strict=True))
            changed[name] = {of.get(key, key): value for key, value in given.items()}
    return config.model_copy(update={"distill": config.distill.model_copy(update=changed)}) if changed else config
