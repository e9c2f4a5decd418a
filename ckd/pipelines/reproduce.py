"""The paper's tables from nothing: every step of the chain, for several domains and seeds.

Each step keeps what it makes and is not repeated, so that an interrupted run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ckd.config import RunConfig, parse
from ckd.data.example import TARGET
from ckd.errors import ConfigError, DataError, did_you_mean
from ckd.evaluation.metrics import ranking_metrics
from ckd.evaluation.ranks import Ranks
from ckd.evaluation.significance import compare, holm
from ckd.pipelines.encode_items import EncodeConfig, encode_items
from ckd.pipelines.evaluate import evaluate
from ckd.pipelines.example import prepare_example
from ckd.pipelines.finetune_teacher import RESULT, finetune_teacher
from ckd.pipelines.plan import make_plan
from ckd.pipelines.prepare import prepare
from ckd.pipelines.progress import Progress, silent
from ckd.pipelines.teacher_score import teacher_score
from ckd.pipelines.train_student import train_student
from ckd.pipelines.workspace import domain_folder, scores_folder, student_folder, teacher_folder
from ckd.store.manifest import MANIFEST

#: Cutoffs of the paper's Tables 3 and 4.
METRICS = ("recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "ndcg@20")

BASE, DISTILLED = "SASRec", "CKD-MDSR"

#: Sizes for the built-in example, which is a tenth of a real domain: minutes on two cores instead of hours.
EXAMPLE_STUDENT = {"hidden_size": 64, "inner_size": 64, "hidden_dropout": 0.3, "attention_dropout": 0.3}
EXAMPLE_TEACHERS: dict[str, dict[str, Any]] = {
    "unisrec": {"hidden_size": 64, "inner_size": 64, "n_experts": 2},
}
EXAMPLE_TRAIN = {"epochs": 60, "patience": 5}


@dataclass(frozen=True)
class DomainTable:
    """Test metrics of several methods on one domain, over seeds.

    Attributes:
        domain: its name.
        methods: names of the columns; the last two are the base and the distilled student.
        seeds: of the runs.
        ranks: by method, the test ranks of every seed.
    """

    domain: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    ranks: dict[str, list[Ranks]]

    @property
    def metrics(self) -> tuple[str, ...]:
        return METRICS

    def values(self, method: str, metric: str) -> np.ndarray:
        """(seeds,) the metric of each run."""
        return np.array([ranking_metrics(ranks.rank)[metric] for ranks in self.ranks[method]])

    def cell(self, method: str, metric: str) -> str:
        """Mean over seeds, with the standard deviation where there are several."""
        values = self.values(method, metric)
        spread = f" ±{values.std(ddof=1):.4f}" if len(values) > 1 else ""
        return f"{values.mean():.4f}{spread}"

    def improvement(self, metric: str) -> float:
        """Of the distilled student over its base, relative; NaN where the base has nothing to improve on."""
        base = self.values(BASE, metric).mean()
        return float(self.values(DISTILLED, metric).mean() / base - 1) if base else float("nan")

    def p_value(self, metric: str) -> float:
        """Paired t-test over users, Holm-corrected over the metrics of the table."""
        found = compare(self.ranks[DISTILLED], self.ranks[BASE], METRICS)
        return dict(zip(METRICS, holm([found[m].p_value for m in METRICS]), strict=True))[metric]

    def describe(self) -> str:
        """What was ranked and how often it was run."""
        ranks = self.ranks[BASE][0]
        seeds = (
            f"{len(self.seeds)} seeds, mean ± standard deviation" if len(self.seeds) > 1 else f"seed {self.seeds[0]}"
        )
        return f"{len(ranks):,} users, {ranks.n_items:,} items, {seeds}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "seeds": self.seeds,
            "metrics": {m: {k: self.values(m, k).tolist() for k in METRICS} for m in self.methods},
            "improvement": {k: self.improvement(k) for k in METRICS},
            "p": {k: self.p_value(k) for k in METRICS},
        }


@dataclass(frozen=True)
class Table3:
    """The tables, or, of a dry run, the steps and their states."""

    domains: list[DomainTable] = field(default_factory=list)
    steps: list[tuple[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"domains": {d.domain: d.as_dict() for d in self.domains}, "steps": self.steps}


def reproduce_table3(
    work: Path,
    data: Path | None,
    names: Sequence[str] | None,
    seeds: int,
    config: RunConfig,
    teachers: Sequence[str] = ("unisrec",),
    dry_run: bool = False,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda _: None,
) -> Table3:
    """Teachers, base student and distilled student on each domain, from the data to the test metrics.

    Args:
        data: a folder with one folder per real domain; none: the built-in example.
        names: which domains; none: all of the folder, or the example's target.
        seeds: how many runs of everything that is trained.
        teachers: which to fine-tune and distil.
        dry_run: only list the steps.
        say: told of each step before it begins.

    Raises:
        ConfigError, DataError, StoreError: as the steps.
    """
    chosen = _choose(data, names)
    if data is None:
        config = _for_example(config)
    numbers = tuple(config.seed + number for number in range(seeds))
    if dry_run:
        return Table3(steps=_steps(work, chosen, numbers, teachers))
    tables = []
    for name in chosen:
        say(f"{name}: data and item features")
        _prepare(work, data, name, config, progress)
        ranks: dict[str, list[Ranks]] = {}
        for seed in numbers:
            seeded = config.model_copy(update={"seed": seed})
            for method, run in _run_chain(work, name, seeded, teachers, data is None, progress, say).items():
                ranks.setdefault(method, []).append(evaluate(work, name, run, "test", device=config.train.device).ranks)
        tables.append(DomainTable(name, tuple(ranks), numbers, ranks))
    return Table3(domains=tables)


def _choose(data: Path | None, names: Sequence[str] | None) -> list[str]:
    if data is None:
        known = [TARGET]
    elif data.is_dir():
        known = sorted(path.name for path in data.iterdir() if path.is_dir())
    else:
        raise DataError(f"{data}: no such folder. Give the folder that holds one folder per domain.")
    for name in names or []:
        if name not in known:
            raise ConfigError(f"no domain {name!r} in {data or 'the built-in example'}.{did_you_mean(name, known)}")
    return list(names or known)


def _for_example(config: RunConfig) -> RunConfig:
    """The example's sizes wherever the user has said nothing."""
    said = config.train.model_dump(include=config.train.model_fields_set)
    return config.model_copy(
        update={
            "student": {**EXAMPLE_STUDENT, **config.student},
            "train": config.train.model_validate({**EXAMPLE_TRAIN, **said}),
        }
    )


def _prepare(work: Path, data: Path | None, name: str, config: RunConfig, progress: Progress) -> None:
    folder = domain_folder(work, name)
    if data is None:
        prepare_example(work)
    elif not (folder / "domain.json").exists():
        prepare(work, data / name, name=name, config=config.prepare, progress=progress)
    encode_items(work, name, parse(EncodeConfig, config.features, "features"), progress)


def _run_chain(
    work: Path,
    domain: str,
    config: RunConfig,
    teachers: Sequence[str],
    example: bool,
    progress: Progress,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Train everything for one seed; the run of each method."""
    seed = config.seed
    runs = {}
    for teacher in teachers:
        say(f"{domain}, seed {seed}: fine-tuning {teacher}")
        own = {**(EXAMPLE_TEACHERS.get(teacher, {}) if example else {}), **config.teacher}
        tuned = config.model_copy(update={"teacher": own})
        runs[teacher] = f"{teacher}-seed{seed}"
        finetune_teacher(work, domain, teacher, tuned, run=runs[teacher], progress=progress)
    scored = [runs[teacher] for teacher in teachers]
    say(f"{domain}, seed {seed}: planning, and scoring with {', '.join(teachers)}")
    plan = make_plan(work, domain, config, progress).plan
    for run in scored:
        teacher_score(work, domain, run, config, plan.id, progress=progress)
    # The base model as it is published: no curriculum, batches composed afresh every epoch.
    plain = config.plan.model_copy(update={"difficulty": "none", "buckets": 1, "pool": "fresh"})
    base_plan = make_plan(work, domain, config.model_copy(update={"plan": plain}), progress).plan
    base = config.model_copy(update={"student": {**config.student, **config.base}})
    for method, run, settings, plan_id, names in (
        (BASE, f"sasrec-seed{seed}", base, base_plan.id, []),
        (DISTILLED, f"ckd-seed{seed}", config, plan.id, scored),
    ):
        say(f"{domain}, seed {seed}: training {method}")
        train_student(
            work,
            domain,
            "sasrec",
            settings,
            teachers=names,
            plan_id=plan_id,
            run=run,
            on_step=lambda epoch, step, steps, rate: progress(
                step, steps, "step", f"epoch {epoch} · {rate:,.0f} inst/s"
            ),
        )
        runs[method] = run
    return runs


def _steps(work: Path, names: Sequence[str], seeds: Sequence[int], teachers: Sequence[str]) -> list[tuple[str, str]]:
    """Every step and whether it is done."""

    def state(path: Path, key: str | None = None) -> str:
        if not path.exists():
            return "to do"
        return "done" if key is None or json.loads(path.read_text())[key] else "begun"

    steps = []
    for name in names:
        folder = domain_folder(work, name)
        steps += [(f"prepare {name}", state(folder / "domain.json"))]
        steps += [(f"encode items of {name}", state(folder / "features" / "text.json"))]
        for seed in seeds:
            for teacher in teachers:
                run = teacher_folder(work, name, f"{teacher}-seed{seed}")
                steps += [(f"fine-tune {teacher} on {name}, seed {seed}", state(run / RESULT))]
                scored = sorted(scores_folder(work, name, "").glob(f"*/{run.name}/{MANIFEST}"))
                steps += [(f"score with {teacher} on {name}, seed {seed}", "done" if scored else "to do")]
            for method, prefix in ((BASE, "sasrec"), (DISTILLED, "ckd")):
                run = student_folder(work, name, f"{prefix}-seed{seed}")
                steps += [(f"train {method} on {name}, seed {seed}", state(run / "last.json", "finished"))]
    return steps
