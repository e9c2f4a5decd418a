"""Fixtures that every room shares."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from ckd.config import RunConfig
from ckd.data.domain import Domain
from ckd.data.example import TINY, make_example
from ckd.data.features import ItemFeatures, feature_path, save_features
from ckd.pipelines.encode_items import EncodeConfig

# The same examples in every run of continuous integration: what fails there fails here.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

BAG_OF_WORDS = {"made": "bag of words"}
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Recorded numbers of the published models."""
    return Path(os.environ.get("CKD_GOLDEN_DIR", ROOT / "tests" / "golden"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real Amazon domains; tests that need them skip where they are absent."""
    folder = Path(os.environ.get("CKD_DATA_DIR", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set CKD_DATA_DIR")
    return folder


@pytest.fixture(scope="session")
def tiny() -> dict[str, Domain]:
    """The example's three domains at their smallest, sources first; the target is the last."""
    return make_example(seed=7, size=TINY)


@dataclass(frozen=True)
class Studio:
    """Both stages up to the stored scores, on the example at its smallest.

    Attributes:
        work: the work folder, which a test may change.
        domain: the target domain, loaded.
        teachers: runs of three UniSRec teachers from different seeds, fine-tuned and scored.
        plan: id of the only plan.
        config: sizes small enough for tests.
    """

    work: Path
    domain: Domain
    teachers: tuple[str, ...]
    plan: str
    config: RunConfig


def write_bag_of_words(domain: Domain, name: str = "text", dim: int = 24) -> None:
    """A text feature that needs no encoder: every word adds to one of `dim` places, in one of two directions."""
    assert domain.folder is not None
    vectors = np.zeros((domain.n_items + 1, dim), dtype=np.float32)
    for item, text in enumerate(domain.item_table["text"], start=1):
        for word in text.split():
            digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
            vectors[item, digest[0] % dim] += 1 - digest[1] % 2 * 2
    present = np.arange(domain.n_items + 1) > 0
    save_features(domain.folder, ItemFeatures(name, vectors, present, BAG_OF_WORDS))


SMALL: dict[str, Any] = {
    "seed": 3,
    "plan": {"batch_size": 32, "buckets": 2, "epochs": 3},
    "score": {"shard_batches": 2},
    "train": {"epochs": 3, "batch_size": 64, "device": "cpu"},
    "student": {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 2},
    "teacher": {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 2, "n_experts": 2},
}


@pytest.fixture(scope="session")
def small() -> RunConfig:
    """A configuration with which every step takes less than a second on the example at its smallest."""
    return RunConfig.model_validate(SMALL)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """`reproduce` on tiny example domains, texts without an encoder; returns the domains and features it encoded."""
    from ckd.pipelines.example import prepare_example
    from ckd.pipelines.reproduce import chain

    found: list[tuple[str, str]] = []

    def encode(work: Path, domain: str, config: EncodeConfig, progress: object) -> None:
        name = "text-dropped" if config.word_drop else config.modality
        path = feature_path(work / "domains" / domain, name)
        if path.exists():
            source = json.loads(path.read_text())["source"]
            assert source == BAG_OF_WORDS, f"{name} of {domain} would be made anew, and is of another source: {source}"
        else:
            found.append((domain, name))
            write_bag_of_words(Domain.load(work / "domains" / domain), name)

    monkeypatch.setattr(chain, "prepare_example", lambda work: prepare_example(work, size=TINY))
    monkeypatch.setattr(chain, "encode_items", encode)
    return found


@pytest.fixture(scope="session")
def bag_of_words() -> Callable[..., None]:
    """See `write_bag_of_words`."""
    return write_bag_of_words


@pytest.fixture(scope="session")
def finished_studio(tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Domain], small: RunConfig) -> Studio:
    """Made once; nobody may change it. Ask for `studio` instead."""
    from ckd.pipelines.finetune_teacher import finetune_teacher
    from ckd.pipelines.plan import make_plan
    from ckd.pipelines.teacher_score import teacher_score

    work = tmp_path_factory.mktemp("studio")
    saved = [domain.save(work / "domains" / name) for name, domain in tiny.items()]
    for domain in saved:
        write_bag_of_words(domain)
    target, config = saved[-1], small
    plan = make_plan(work, target.name, config).plan
    teachers = tuple(f"unisrec-{seed}" for seed in range(3))
    for seed, run in enumerate(teachers):
        finetune_teacher(work, target.name, "unisrec", config.model_copy(update={"seed": seed}), run=run)
        teacher_score(work, target.name, run, config)
    return Studio(work, target, teachers, plan.id, config)


@pytest.fixture
def studio(finished_studio: Studio, tmp_path: Path) -> Studio:
    """A copy of both stages up to the stored scores, for one test."""
    work = tmp_path / "work"
    shutil.copytree(finished_studio.work, work)
    domain = Domain.load(work / "domains" / finished_studio.domain.name)
    return replace(finished_studio, work=work, domain=domain)
