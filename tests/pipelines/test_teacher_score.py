"""Stage one: what is stored is the teacher's softmax, whoever writes it, and written once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ckd.config import RunConfig
from ckd.data.batch import Batches
from ckd.errors import CkdError, ConfigError, DataError, StoreError
from ckd.pipelines.finetune_teacher import load_teacher, teacher_fingerprint
from ckd.pipelines.plan import load_plan, make_plan
from ckd.pipelines.score_binding import open_scores
from ckd.pipelines.score_estimate import estimate_scoring
from ckd.pipelines.teacher_score import adopt_vectors, rescorer, teacher_score
from ckd.store import CODECS
from ckd.store.codecs.base import log_softmax

RUN = "unisrec-0"


def change(config: RunConfig, section: str, **values: Any) -> RunConfig:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def stored(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def vectors_one_by_one(studio: Any) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) and (n_items + 1, d) in float64, each instance in a batch of its own."""
    teacher = load_teacher(studio.work, studio.domain, RUN)[0]
    instances = studio.domain.instances("train")
    batches = Batches(studio.domain, instances, share_prefixes=False)
    users = torch.cat([teacher.encode_instances(batches(np.array([i]))) for i in range(len(instances))]).double()
    items = torch.cat([teacher.encode_items(torch.tensor([i])) for i in range(1, studio.domain.n_items + 1)]).double()
    items = torch.cat([torch.zeros(1, items.shape[1], dtype=torch.float64), F.normalize(items, dim=1)])
    return F.normalize(users, dim=1).numpy(), items.numpy()


@pytest.mark.parametrize("codec", ["f16", "u8", "tensor", "vectors"])
def test_stored_scores_are_the_teachers_softmax(studio: Any, tmp_path: Path, codec: str) -> None:
    scored = teacher_score(
        studio.work, studio.domain.name, RUN, change(studio.config, "score", codec=codec), scores=str(tmp_path / "s")
    )
    assert scored.manifest.header.binding.codec == codec
    assert scored.location == str(tmp_path / "s" / studio.domain.name / studio.plan / RUN)
    plan = load_plan(studio.work, studio.domain)
    reader = open_scores(studio.work, studio.domain, plan, RUN, scores=str(tmp_path / "s"))
    assert reader.temperature == 0.07
    users, items = vectors_one_by_one(studio)
    targets = studio.domain.instances("train").targets
    spread = []
    for batch_id in range(plan.n_batches):
        ids = plan.batch(batch_id)
        exact = log_softmax(users[ids] @ items[targets[ids]].T / 0.07)
        if codec == "vectors":
            bound = CODECS.get(codec).tolerance(users[ids], items[targets[ids]], 0.07)
        else:
            bound = CODECS.get(codec).tolerance(exact.astype(np.float32))
        # The teacher computes in float32, and a cosine is divided by the temperature.
        assert (np.abs(reader.read(batch_id) - exact) <= bound + 2e-5).all()
        spread.append(float(np.ptp(exact)))
    assert max(spread) > 1


def test_every_instance_is_scored_against_the_targets_of_its_batch(studio: Any) -> None:
    plan = load_plan(studio.work, studio.domain)
    reader = open_scores(studio.work, studio.domain, plan, RUN)
    assert [reader.read(b).shape for b in range(plan.n_batches)] == [(n, n) for n in plan.sizes]
    visited = np.concatenate([plan.batch(int(b)) for b in plan.schedule_of(plan.epochs - 1)[1]])
    assert sorted(visited.tolist()) == list(range(len(studio.domain.instances("train"))))


def test_two_workers_write_the_bytes_of_one(studio: Any, tmp_path: Path) -> None:
    scored = teacher_score(studio.work, studio.domain.name, RUN, studio.config, scores=str(tmp_path / "two"), workers=2)
    alone = studio.work / "scores" / studio.domain.name / studio.plan / RUN
    assert stored(Path(scored.location)) == stored(alone)
    assert scored.encoded == 0


def test_what_is_there_is_not_written_again(studio: Any) -> None:
    before = everything(studio.work)
    scored = teacher_score(studio.work, studio.domain.name, RUN, studio.config)
    assert scored.encoded == 0
    assert everything(studio.work) == before


@pytest.mark.parametrize("lost", [["manifest.json"], ["manifest.json", "part-00003.parquet"], ["part-00000.parquet"]])
def test_an_interrupted_run_goes_on(studio: Any, lost: list[str]) -> None:
    folder = studio.work / "scores" / studio.domain.name / studio.plan / RUN
    before = stored(folder)
    for name in lost:
        (folder / name).unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    assert teacher_score(studio.work, studio.domain.name, RUN, studio.config).encoded == 0
    assert stored(folder) == before
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept


def test_another_plan_needs_no_other_encoding(studio: Any) -> None:
    other = make_plan(studio.work, studio.domain.name, change(studio.config, "plan", pool=2, epochs=4)).plan
    scored = teacher_score(studio.work, studio.domain.name, RUN, studio.config, other.id)
    assert scored.encoded == 0
    assert scored.manifest.header.batches == other.n_batches
    with pytest.raises(StoreError, match="2 plans"):
        teacher_score(studio.work, studio.domain.name, RUN, studio.config)


def test_a_changed_teacher_is_encoded_anew(studio: Any, tmp_path: Path) -> None:
    """The vectors lie under the weights' own hash: those of other weights are never taken for theirs."""
    folder = studio.work / "teachers" / studio.domain.name
    for name in ("model.safetensors", "teacher.json"):
        (folder / RUN / name).write_bytes((folder / "unisrec-1" / name).read_bytes())
    with pytest.raises(StoreError, match=r"made for teacher .*expected teacher .*Score into another folder"):
        teacher_score(studio.work, studio.domain.name, RUN, studio.config)
    scored = teacher_score(studio.work, studio.domain.name, RUN, studio.config, scores=str(tmp_path / "s"))
    assert scored.manifest.header.binding.teacher == teacher_fingerprint(folder / "unisrec-1")
    other = studio.work / "scores" / studio.domain.name / studio.plan / "unisrec-1"
    assert stored(Path(scored.location)) == stored(other)


def test_a_temperature_of_ones_own(studio: Any, tmp_path: Path) -> None:
    warm = change(studio.config, "score", temperature=0.5)
    with pytest.raises(StoreError, match=r"made for temperature 0\.07, expected temperature 0\.5"):
        teacher_score(studio.work, studio.domain.name, RUN, warm)
    teacher_score(studio.work, studio.domain.name, RUN, warm, scores=str(tmp_path))
    plan = load_plan(studio.work, studio.domain)
    cold = open_scores(studio.work, studio.domain, plan, RUN)
    reader = open_scores(studio.work, studio.domain, plan, RUN, scores=str(tmp_path))
    assert (cold.temperature, reader.temperature) == (0.07, 0.5)
    for batch_id in range(plan.n_batches):
        np.testing.assert_allclose(
            reader.read(batch_id), log_softmax(cold.read(batch_id).astype(np.float64) * (0.07 / 0.5)), atol=4e-3
        )


def test_rescoring_takes_nothing_that_was_kept(studio: Any) -> None:
    for path in (studio.work / "cache" / "vectors").rglob("*.npy"):
        path.unlink()
    plan = load_plan(studio.work, studio.domain)
    score = rescorer(studio.work, studio.domain, plan, RUN, 0.07, "cpu")
    reader = open_scores(studio.work, studio.domain, plan, RUN)
    for batch_id in range(plan.n_batches):
        np.testing.assert_allclose(score(batch_id), reader.read(batch_id), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("codec", ["f16", "vectors"])
def test_a_dry_run_writes_nothing(studio: Any, codec: str) -> None:
    before = everything(studio.work)
    found = estimate_scoring(studio.work, studio.domain.name, RUN, change(studio.config, "score", codec=codec))
    assert everything(studio.work) == before
    plan = load_plan(studio.work, studio.domain)
    instances = len(studio.domain.instances("train"))
    assert (found.instances, found.items) == (instances, studio.domain.n_items)
    assert (found.batches, found.rows) == (plan.n_batches, int(plan.sizes.sum()))
    # All is encoded: matrices alone remain, and vectors have none.
    assert (found.encoded, found.forwards) == (instances + studio.domain.n_items, 0)
    assert (found.seconds > 0) == (codec == "f16")
    if codec == "vectors":
        assert found.bytes == 2 * 8 * (instances + studio.domain.n_items)
    else:
        assert found.bytes == int(0.77 * 2 * (plan.sizes.astype(np.int64) ** 2).sum())


@pytest.mark.parametrize("work", [teacher_score, estimate_scoring])
def test_what_is_missing_is_named(studio: Any, work: Any) -> None:
    name, config = studio.domain.name, studio.config
    before = everything(studio.work)

    def refused(kind: type[CkdError], message: str, *args: Any, **kwargs: Any) -> None:
        with pytest.raises(kind, match=message):
            work(studio.work, *args, **kwargs)

    refused(ConfigError, r"unknown codec 'f61'\. Did you mean 'f16'", name, RUN, change(config, "score", codec="f61"))
    refused(DataError, "no prepared domain here", "absent", RUN, config)
    refused(DataError, r"unisrec-9/result\.json: no such file\. Run `ckd finetune-teacher", name, "unisrec-9", config)
    refused(StoreError, f"no plan 'other'. Known: {studio.plan}", name, RUN, config, "other")
    refused(ConfigError, r"train\.device='bogus'", name, RUN, change(config, "train", device="bogus"))
    refused(ConfigError, r"run '\.\.': use letters", name, "..", config)
    assert everything(studio.work) == before


def test_vectors_from_any_model_become_a_teacher(studio: Any, tmp_path: Path) -> None:
    """The vectors of a UniSRec, written to files, score as the UniSRec itself."""
    import polars as pl

    users, items = vectors_one_by_one(studio)
    instances, domain = studio.domain.instances("train"), studio.domain
    teacher = load_teacher(studio.work, domain, RUN)[0]
    rows = []
    for split in ("train", "valid", "test"):
        found = domain.instances(split)
        encoded = teacher.encode_instances(Batches(domain, found)(np.arange(len(found)))).double()
        first = domain.indptr[found.users]
        rows.append(
            pl.DataFrame(
                {
                    "user": domain.user_ids[found.users],
                    "position": found.stops - first,
                    "vector": F.normalize(encoded, dim=1).float().tolist(),
                }
            )
        )
    pl.concat(rows).write_parquet(tmp_path / "users.parquet")
    pl.DataFrame({"item": domain.item_table["raw_id"], "vector": items[1:].astype(np.float32).tolist()}).write_parquet(
        tmp_path / "items.parquet"
    )
    plain = studio.config.model_copy(update={"teacher": {}})
    run = adopt_vectors(
        studio.work, domain.name, plain, tmp_path / "users.parquet", tmp_path / "items.parquet", run="adopted"
    )
    scored = teacher_score(studio.work, domain.name, run, plain)
    assert scored.encoded == len(instances) + domain.n_items
    plan = load_plan(studio.work, domain)
    ours, theirs = (open_scores(studio.work, domain, plan, name) for name in ("adopted", RUN))
    for batch_id in range(plan.n_batches):
        np.testing.assert_allclose(ours.read(batch_id), theirs.read(batch_id), atol=2e-3, rtol=2e-3)
    assert len(users) == len(instances)
