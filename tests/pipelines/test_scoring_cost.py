"""What stage one costs: every instance and item encoded once, whatever the plan, and said beforehand."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch

from ckd.data.batch import Batch
from ckd.pipelines.plan import make_plan
from ckd.pipelines.score_estimate import estimate_scoring
from ckd.pipelines.teacher_score import teacher_score
from ckd.teachers.unisrec import UniSRec

RUN = "unisrec-0"


@dataclass
class Forwards:
    """What the teacher was asked for."""

    passes: int = 0
    instances: Counter[tuple[int, int]] = field(default_factory=Counter)
    items: Counter[int] = field(default_factory=Counter)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Forwards:
    """Counts, of UniSRec, while it works as ever."""
    counted = Forwards()
    encode_instances, encode_items = UniSRec.encode_instances, UniSRec.encode_items

    def counted_instances(self: UniSRec, batch: Batch) -> torch.Tensor:
        counted.passes += 1
        counted.instances.update(zip(batch.users.tolist(), batch.lengths.tolist(), strict=True))
        return encode_instances(self, batch)

    def counted_items(self: UniSRec, items: torch.Tensor) -> torch.Tensor:
        counted.passes += 1
        counted.items.update(items.tolist())
        return encode_items(self, items)

    monkeypatch.setattr(UniSRec, "encode_instances", counted_instances)
    monkeypatch.setattr(UniSRec, "encode_items", counted_items)
    return counted


def planned(studio: Any, pool: int | Literal["fresh"], epochs: int) -> Any:
    changed = studio.config.plan.model_copy(update={"pool": pool, "epochs": epochs})
    config = studio.config.model_copy(update={"plan": changed})
    return make_plan(studio.work, studio.domain.name, config).plan


@pytest.mark.parametrize(("pool", "epochs"), [(1, 3), (1, 30), (3, 12), ("fresh", 10)])
def test_everything_is_encoded_once_whatever_the_plan(
    studio: Any, forwards: Forwards, pool: int | Literal["fresh"], epochs: int
) -> None:
    shutil.rmtree(studio.work / "cache" / "vectors")
    plan = planned(studio, pool, epochs)
    n, items = len(studio.domain.instances("train")), studio.domain.n_items
    scored = teacher_score(studio.work, studio.domain.name, RUN, studio.config, plan.id)
    assert scored.manifest.header.batches == plan.n_batches
    assert (len(forwards.instances), forwards.instances.total()) == (n, n)
    assert forwards.items == Counter(range(1, items + 1))
    assert scored.encoded == n + items


def test_more_plans_take_no_more_forwards(studio: Any, forwards: Forwards) -> None:
    # The studio's teachers have scored one plan already.
    for pool, epochs in ((2, 5), (3, 9), ("fresh", 8)):
        plan = planned(studio, pool, epochs)  # type: ignore[arg-type]
        assert teacher_score(studio.work, studio.domain.name, RUN, studio.config, plan.id).encoded == 0
    assert forwards == Forwards()


@pytest.mark.parametrize("encode_batch", [1024, 7])
def test_the_estimate_counts_the_passes_that_scoring_takes(studio: Any, forwards: Forwards, encode_batch: int) -> None:
    changed = studio.config.score.model_copy(update={"encode_batch": encode_batch})
    config = studio.config.model_copy(update={"score": changed})
    name, n = studio.domain.name, len(studio.domain.instances("train"))
    folder = next((studio.work / "cache" / "vectors").glob("*"))
    shutil.rmtree(folder.parent)
    cold = estimate_scoring(studio.work, name, RUN, config)
    assert (cold.encoded, cold.instances, cold.items) == (0, n, studio.domain.n_items)
    assert cold.seconds > 0
    assert not folder.parent.exists()
    forwards.passes = 0
    teacher_score(studio.work, name, RUN, config)
    assert forwards.passes == cold.forwards > 1
    # What was lost is to be done again.
    next((studio.work / "cache" / "vectors").glob("*/items-00000.npy")).unlink()
    rest = estimate_scoring(studio.work, name, RUN, config)
    assert (rest.encoded, rest.forwards) == (n, 1)
