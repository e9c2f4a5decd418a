"""Checks a score store: every byte, and on request a sample of its numbers against the teacher."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ckd.data.domain import Domain
from ckd.errors import ConfigError, StoreError
from ckd.pipelines.plan import load_plan
from ckd.pipelines.score_binding import binding_of, index_of, open_scores, store_location
from ckd.pipelines.teacher_score import rescorer
from ckd.pipelines.workspace import domain_folder
from ckd.store.verify import verify_sample, verify_store


def verify_scores(
    work: Path,
    location: str | None = None,
    sample: str | None = None,
    domain_name: str | None = None,
    teacher_run: str | None = None,
    plan_id: str | None = None,
) -> dict[str, Any]:
    """Verify a store given by its place, or by domain and teacher, which also proves what it was made for.

    Args:
        sample: share of the batches to score again, such as `1%` or `0.01`; needs domain and teacher.

    Returns:
        What was compared, as plain values.

    Raises:
        ConfigError: neither place nor domain and teacher, or a sample that is no share.
        StoreError: anything is not what was written, or not what the teacher scores.
    """
    if domain_name is None or teacher_run is None:
        asked = (sample, domain_name, teacher_run, plan_id)
        if location is None or any(each is not None for each in asked):
            raise ConfigError(
                "store verify: give a store's location, or --domain and --teacher (needed by --sample and --plan)."
            )
        return _sound(verify_store(location))
    domain = Domain.load(domain_folder(work, domain_name))
    plan = load_plan(work, domain, plan_id)
    place = location or store_location(work, domain_name, plan, teacher_run)
    result = _sound(verify_store(place, binding_of(work, domain, plan, teacher_run), index_of(plan)))
    if sample is not None:
        reader = open_scores(work, domain, plan, teacher_run, location=place)
        score = rescorer(work, domain, plan, teacher_run, reader.temperature)
        result |= asdict(verify_sample(reader, score, fraction=_share(sample)))
    return result


def _sound(verified: Any) -> dict[str, Any]:
    if verified.problems:
        more = f" ({len(verified.problems) - 1} more)" if len(verified.problems) > 1 else ""
        raise StoreError(f"{verified.problems[0]}{more}")
    return {"shards": verified.shards, "bytes": verified.bytes}


def _share(text: str) -> float:
    try:
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ConfigError(f"--sample {text}: write a share such as 1% or 0.01.") from None
    if not 0 < value <= 1:
        raise ConfigError(f"--sample {text}: must be above 0 and at most 100%.")
    return value
