"""Plans the batches of a domain, and says what was planned (paper 3.4)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckd.config import PlanConfig, RunConfig
from ckd.data.domain import Domain
from ckd.distill.curriculum import Bucket
from ckd.distill.difficulty import TeacherScores
from ckd.distill.plan import FORMAT, FULL, Plan, build_plan
from ckd.errors import StoreError, did_you_mean
from ckd.pipelines.progress import Progress, silent
from ckd.pipelines.workspace import domain_folder, plans_folder

#: Bytes of a stored score by codec: f16 at its bound of 0.77 of two bytes; u8 with its scale and offset apart.
BYTES_PER_SCORE = {"f16": 0.77 * 2, "tensor": 2.0, "u8": 1.0}
U8_BYTES_PER_ROW = 8

#: Length of a teacher's vectors where no teacher is named yet: the paper's, section 4.1.4.
VECTOR_DIM = 300


@dataclass(frozen=True)
class Planned:
    """A plan on disk.

    Attributes:
        folder: where it lies.
        plan: itself.
        reused: it was there already, made from the same inputs.
    """

    folder: Path
    plan: Plan
    reused: bool


@dataclass(frozen=True)
class StageRow:
    """One stage of a plan, as `ckd plan --show` lists it.

    Attributes:
        stage: `1`..`B`, or `full`.
        epochs: how many it has.
        buckets: the buckets it draws on, such as `1-3`.
        samples: sequence samples in an epoch.
        instances: training instances in an epoch.
        batches: steps in its first epoch.
        difficulty: mean over samples; None where the plan has no curriculum.
        length: mean items in a sample.
        popularity: mean popularity of a sample's items, in [0, 1].
    """

    stage: str
    epochs: int
    buckets: str
    samples: int
    instances: int
    batches: int
    difficulty: float | None
    length: float
    popularity: float


@dataclass(frozen=True)
class Estimate:
    """What scoring a plan would compute and write, for one teacher.

    Attributes:
        batches: distinct batches.
        rows: instances over all of them: rows stored.
        scores: entries of all matrices.
        bytes: on disk, by codec.
    """

    batches: int
    rows: int
    scores: int
    bytes: dict[str, int]


def make_plan(
    work: Path,
    domain_name: str,
    config: RunConfig,
    progress: Progress = silent,
    teacher_scores: TeacherScores | None = None,
) -> Planned:
    """Plan the domain's batches and save the plan; one made from the same inputs is returned as it is.

    Args:
        work: root of the workspace.
        domain_name: a prepared domain.
        config: its `plan` section and seed count.
        progress: told of compositions.
        teacher_scores: for the difficulty measures that need them, see `measure_teachers`.

    Raises:
        ConfigError: an unknown difficulty measure, or one that lacks scores.
        DataError: no such domain, or one without training instances.
        StoreError: the plan that is there is damaged.
    """
    domain = Domain.load(domain_folder(work, domain_name))
    folder = plans_folder(work, domain_name)
    source = None if teacher_scores is None else teacher_scores.source
    for found in plan_ids(work, domain_name):
        if _made_from(folder / found, domain, config.plan, config.seed, source):
            return Planned(folder / found, Plan.load(folder / found), reused=True)
    plan = build_plan(
        domain, config.plan, config.seed, teacher_scores, lambda done, total: progress(done, total, "compositions")
    )
    plan.save(folder / plan.id)
    return Planned(folder / plan.id, plan, reused=False)


def preview(
    work: Path, domain_name: str, config: RunConfig, teacher_scores: TeacherScores | None = None, dim: int = VECTOR_DIM
) -> Estimate:
    """What scoring the plan would write, without writing anything; arguments and errors as `make_plan`, `estimate`."""
    domain = Domain.load(domain_folder(work, domain_name))
    return estimate(build_plan(domain, config.plan, config.seed, teacher_scores), domain.n_items, dim)


def _made_from(folder: Path, domain: Domain, config: PlanConfig, seed: int, source: str | None) -> bool:
    meta = described(folder)
    inputs = {"format": FORMAT, "domain": domain.fingerprint, "seed": seed, "config": config.model_dump(mode="json")}
    return {name: meta.get(name) for name in inputs} == inputs and meta.get("scores") == source


def described(folder: Path) -> dict[str, Any]:
    """What a plan says of itself; nothing where it cannot be read."""
    try:
        meta = json.loads((folder / "plan.json").read_text())
    except (OSError, ValueError):
        return {}
    return meta if isinstance(meta, dict) else {}


def _told(meta: dict[str, Any]) -> str:
    """By what plans are told apart, for people."""
    config = meta.get("config", {})
    keys = [f"{key} {config[key]}" for key in ("difficulty", "buckets", "pool", "epochs") if key in config]
    return " ".join([*keys, f"seed {meta.get('seed')}"])


def plan_ids(work: Path, domain_name: str) -> list[str]:
    """Names of the domain's plans, sorted."""
    return sorted(path.parent.name for path in plans_folder(work, domain_name).glob("[!.]*/plan.json"))


def load_plan(work: Path, domain: Domain, plan_id: str | None = None) -> Plan:
    """A saved plan of this domain; without an id, the only one that there is for its present content.

    Raises:
        StoreError: none or several, no such plan, one made for other content, or damaged.
    """
    folder = plans_folder(work, domain.name)
    known = plan_ids(work, domain.name)
    if plan_id is None:
        if not known:
            raise StoreError(f"{folder}: no plan here. Run `ckd plan` first.")
        metas = {name: described(folder / name) for name in known}
        present = {name: meta for name, meta in metas.items() if meta.get("domain") == domain.fingerprint} or metas
        if len(present) > 1:
            told = ", ".join(f"{name}: {_told(meta)}" for name, meta in present.items())
            raise StoreError(f"{folder}: {len(present)} plans ({told}). Name one with --plan.")
        plan_id = next(iter(present))
    if plan_id not in known:
        raise StoreError(f"{folder}: no plan {plan_id!r}.{did_you_mean(plan_id, known)}")
    plan = Plan.load(folder / plan_id)
    plan.require_domain(domain)
    return plan


def describe(plan: Plan) -> list[StageRow]:
    """The plan's stages in the order of training."""
    stages, first = np.unique(plan.tables.stages, return_index=True)
    rows = []
    for stage, epoch in sorted(zip(stages.tolist(), first.tolist(), strict=True), key=lambda pair: pair[1]):
        opened = plan.curriculum if stage == FULL else plan.curriculum[:stage]
        _, batches = plan.schedule_of(epoch)
        rows.append(
            StageRow(
                stage="full" if stage == FULL else str(stage),
                epochs=int((plan.tables.stages == stage).sum()),
                buckets=f"1-{len(opened)}" if len(opened) > 1 else "1",
                samples=sum(bucket.samples for bucket in opened),
                instances=int(plan.sizes[batches].sum()),
                batches=len(batches),
                difficulty=_mean(opened, "difficulty"),
                length=_mean(opened, "length") or 0.0,
                popularity=_mean(opened, "popularity") or 0.0,
            )
        )
    return rows


def _mean(buckets: tuple[Bucket, ...], quantity: str) -> float | None:
    spreads = [getattr(bucket, quantity) for bucket in buckets]
    if None in spreads:
        return None
    samples = sum(bucket.samples for bucket in buckets)
    return sum(s.mean * b.samples for s, b in zip(spreads, buckets, strict=True)) / samples


def draw(plan: Plan, path: Path, title: str = "") -> Path:
    """Draw the curriculum as PNG, SVG or PDF, by the ending of `path`.

    Raises:
        ConfigError: another ending.
    """
    from ckd.distill.plan_figure import draw_curriculum  # matplotlib: 30 MB, which training does without

    draw_curriculum(plan, path, title)
    return path


def check_picture(path: Path) -> None:
    """Refuse, before a plan is made, a path that `draw` would refuse.

    Raises:
        ConfigError: as `draw`.
    """
    from ckd.distill.plan_figure import picture_format

    picture_format(path)


def estimate(plan: Plan, n_items: int, dim: int) -> Estimate:
    """What scoring the plan with one teacher would write.

    Args:
        plan: what would be scored.
        n_items: of the domain.
        dim: length of the teacher's vectors, for the codec `vectors`.
    """
    rows = int(plan.sizes.sum())
    scores = int((plan.sizes**2).sum())
    sizes = {codec: int(scores * each) for codec, each in BYTES_PER_SCORE.items()}
    sizes["u8"] += U8_BYTES_PER_ROW * rows
    sizes["vectors"] = 2 * dim * (plan.n_instances + n_items)
    return Estimate(plan.n_batches, rows, scores, dict(sorted(sizes.items())))
