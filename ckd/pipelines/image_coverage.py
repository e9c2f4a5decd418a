"""How a teacher of several modalities fares when images are missing: the same fine-tuning at several coverages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ckd.config import RunConfig
from ckd.data.domain import Domain
from ckd.data.features import IMAGE, ItemFeatures, load_features, save_features
from ckd.errors import ConfigError
from ckd.pipelines.finetune_teacher import finetune_teacher
from ckd.pipelines.progress import Progress, silent
from ckd.pipelines.workspace import domain_folder


@dataclass(frozen=True)
class Covered:
    """A fine-tuning at one coverage.

    Attributes:
        coverage: share of all items that had an image.
        metrics: Recall, NDCG and MRR by split.
    """

    coverage: float
    metrics: dict[str, dict[str, float]]


def cover(features: ItemFeatures, coverage: float, seed: int) -> ItemFeatures:
    """The same features for at most a share `coverage` of all items.

    The order in which items lose their vector depends on the seed alone: of two shares, the smaller one's items are
    among the larger one's.
    """
    if not 0.0 <= coverage <= 1.0:
        raise ValueError(f"coverage {coverage} is not in [0, 1]")
    there = np.flatnonzero(features.present)
    kept = np.random.default_rng(seed).permutation(there)[: round(coverage * features.n_items)]
    present = np.zeros_like(features.present)
    present[kept] = True
    vectors = np.where(present[:, None], features.vectors, np.float32(0))
    return replace(features, vectors=vectors, present=present, fingerprint="")


def image_coverage(
    work: Path,
    domain_name: str,
    coverages: Sequence[float],
    config: RunConfig,
    feature: str = IMAGE,
    progress: Progress = silent,
) -> list[Covered]:
    """Fine-tune UniM²Rec once for each coverage, on features `<feature>-<percent>-seed<seed>` made from `feature`.

    Runs are called after the features. A finished one is not repeated.

    Raises:
        ConfigError: two coverages are the same percentage when rounded, and would have the same name.
        DataError: the domain or its feature is missing.
    """
    named: dict[int, float] = {}
    for coverage in coverages:
        percent = round(100 * coverage)
        if named.setdefault(percent, coverage) != coverage:
            raise ConfigError(
                f"coverages {named[percent]} and {coverage}: both are named by {percent} percent. Give one of them."
            )
    folder = domain_folder(work, domain_name)
    domain = Domain.load(folder)
    whole = load_features(domain, feature)
    results = []
    for coverage in coverages:
        covered = replace(
            cover(whole, coverage, config.seed), name=f"{feature}-{round(100 * coverage)}-seed{config.seed}"
        )
        save_features(folder, covered)
        run_config = config.model_copy(update={"teacher": {**config.teacher, "image_feature": covered.name}})
        run = f"unim2rec-{covered.name}"
        done = finetune_teacher(work, domain_name, "unim2rec", run_config, run, progress)
        results.append(Covered(covered.coverage, done.metrics))
    return results
