"""Ranking lists kept while teachers are fine-tuned: which, bound to what, complete after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file

from ckd.baselines.hetcomp_parts.kept import (
    RankingRecorder,
    choose_checkpoints,
    drop_begun,
    kept_epochs,
    kept_every,
    kept_rankings,
)
from ckd.baselines.hetcomp_parts.rankings import RankingLists, ranking_lists
from ckd.config import RunConfig
from ckd.data.domain import Domain
from ckd.errors import ConfigError, DataError
from ckd.pipelines import finetune_teacher as pipeline
from ckd.pipelines.finetune_teacher import FinetunedTeacher, finetune_teacher, load_teacher, teacher_fingerprint
from ckd.teachers.protocol import FinetuneResult


class Killed(BaseException):
    """What a kill looks like from inside, without the process."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Domain], bag_of_words: Callable[..., None]) -> Path:
    """A work folder with the target domain and its text feature."""
    work = tmp_path_factory.mktemp("kept")
    *_, (name, domain) = tiny.items()
    bag_of_words(domain.save(work / "domains" / name))
    return work


@pytest.fixture(scope="module")
def name(tiny: dict[str, Domain]) -> str:
    return list(tiny)[-1]


@pytest.fixture(scope="module")
def domain(home: Path, name: str) -> Domain:
    return Domain.load(home / "domains" / name)


@pytest.fixture
def tune(home: Path, name: str, small: RunConfig) -> Callable[..., FinetunedTeacher]:
    def tune(run: str, keep: int | None, **options: Any) -> FinetunedTeacher:
        train = small.train.model_copy(update={"epochs": 4, "validate_every": 2, **options.pop("train", {})})
        config = small.model_copy(update={"train": train})
        return finetune_teacher(home, name, "unisrec", config, run=run, keep_rankings=keep, **options)

    return tune


def best_epoch(folder: Path) -> int:
    found: int = json.loads((folder / "last.json").read_text())["best_epoch"]
    return found


def test_lists_are_kept_and_the_teacher_is_the_same(tune, domain) -> None:
    plain, kept = tune("plain", None), tune("kept", 1)
    assert plain.fingerprint == kept.fingerprint
    assert (plain.metrics, plain.rankings) == (kept.metrics, ())
    one, other = (load_file(each.folder / "last.safetensors") for each in (plain, kept))
    assert all(torch.equal(one[key], other[key]) for key in one.keys() | other.keys())
    best = best_epoch(kept.folder)
    assert kept.rankings == tuple(range(best + 1))
    found = kept_rankings(kept.folder, domain, kept.fingerprint)
    assert [lists.epoch for lists in found] == list(kept.rankings)
    assert [lists.quality is not None for lists in found] == [epoch % 2 == 0 or epoch == 3 for epoch in kept.rankings]
    assert found[-1].quality == kept.metrics["valid"]["ndcg@10"]
    assert len({lists.content for lists in found}) == len(found)
    teacher, *_ = load_teacher(kept.folder.parents[2], domain, "kept")
    assert np.array_equal(found[-1].items, ranking_lists(teacher, domain))
    again = tune("kept", 1)
    assert (again.reused, again.rankings) == (True, kept.rankings)
    assert tune("kept", None).rankings == kept.rankings


def test_the_best_epoch_is_kept_wherever_it_falls(tune) -> None:
    done = tune("sparse", 3)
    best = best_epoch(done.folder)
    assert done.rankings == tuple(sorted({*range(0, best, 3), best}))
    assert kept_every(done.folder) == 3
    files = {path.name for path in (done.folder / "rankings").iterdir()}
    assert files == {"rankings.json", *(f"rankings-{epoch:05d}.parquet" for epoch in done.rankings)}


@pytest.mark.parametrize("moment", ["before the checkpoint", "after the checkpoint", "at the end"])
def test_a_kill_leaves_no_gap(tune, domain, monkeypatch, moment: str) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    run = moment.replace(" ", "-")
    with monkeypatch.context() as patch:
        if moment == "before the checkpoint":
            patch.setattr("ckd.distill.trainer.save_checkpoint", kill)
        elif moment == "at the end":
            patch.setattr(pipeline, "rank_targets", kill)
        with pytest.raises(Killed):
            tune(run, 1, on_epoch=kill if moment == "after the checkpoint" else None)
    folder = domain.folder.parents[1] / "teachers" / domain.name / run
    assert (kept_epochs(folder) == ()) == (moment != "at the end")
    done, whole = tune(run, 1), tune("whole", 1)
    assert done.fingerprint == whole.fingerprint
    assert done.rankings == whole.rankings
    for one, other in zip(
        *(kept_rankings(each.folder, domain, whole.fingerprint) for each in (done, whole)), strict=True
    ):
        assert (one.content, one.epoch, one.quality) == (other.content, other.epoch, other.quality)


def test_lists_that_would_have_gaps_are_refused(tune) -> None:
    def kill(_: Any) -> None:
        raise Killed

    tune("silent", None)
    with pytest.raises(DataError, match=r"silent: a finished teacher of which no ranking lists were kept, not every 2"):
        tune("silent", 2)
    tune("known", 1)
    with pytest.raises(DataError, match=r"ranking lists were kept every 1 epochs, not every 2\. Give another --run"):
        tune("known", 2)
    with pytest.raises(Killed):
        tune("late", None, on_epoch=kill)
    with pytest.raises(DataError, match=r"late: fine-tuning began keeping no ranking lists"):
        tune("late", 1)
    with pytest.raises(Killed):
        tune("given-up", 1, on_epoch=kill)
    with pytest.raises(DataError, match=r"given-up: fine-tuning began keeping those of every 1 epochs"):
        tune("given-up", 2)
    done = tune("given-up", None)
    assert done.rankings == ()
    assert not (done.folder / "rankings").exists()


def test_lists_belong_to_the_teacher_beside_them(tune, domain, tmp_path) -> None:
    done = tune("known", 1)
    folder = tmp_path / "teacher"
    shutil.copytree(done.folder, folder)
    with pytest.raises(DataError, match=f"of a teacher with fingerprint {done.fingerprint}, the one beside them has x"):
        kept_rankings(folder, domain, "x")
    with pytest.raises(DataError, match="lists of a domain with fingerprint"):
        kept_rankings(folder, replace(domain, history_cap=7), done.fingerprint)
    first = folder / "rankings" / "rankings-00000.parquet"
    last = folder / "rankings" / f"rankings-{done.rankings[-1]:05d}.parquet"
    kept = first.read_bytes()
    if first != last:
        first.write_bytes(last.read_bytes())
        with pytest.raises(DataError, match=r"rankings-00000\.parquet: lists of content \w+, rankings\.json says"):
            kept_rankings(folder, domain, done.fingerprint)
    first.unlink()
    with pytest.raises(DataError, match=r"rankings-00000\.parquet: no such file"):
        kept_rankings(folder, domain, done.fingerprint)
    first.write_bytes(kept)
    index = folder / "rankings" / "rankings.json"
    whole = json.loads(index.read_text())
    for broken, message in (
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"format": 0}', "no index of format 1"),
        ('{"format": 1, "lists": []}', "names no ranking lists"),
        ('{"format": 1, "lists": {"epoch": 1}}', "names no ranking lists"),
        ('{"format": 1, "lists": [1]}', "names no ranking lists"),
        ('{"format": 1, "lists": [{}]}', "has no 'epoch'"),
    ):
        index.write_text(broken)
        with pytest.raises(DataError, match=rf"rankings\.json: {message}.*Delete the teacher's folder, and fine-tune"):
            kept_epochs(folder)
    for lacking in ("teacher", "every"):
        index.write_text(json.dumps({name: value for name, value in whole.items() if name != lacking}))
        with pytest.raises(DataError, match=rf"rankings\.json: has no '{lacking}'"):
            kept_rankings(folder, domain, "x")
    drop_begun(folder)
    with pytest.raises(DataError, match=r"no ranking lists kept\. Fine-tune it with .*--keep-rankings 1"):
        kept_rankings(folder, domain, done.fingerprint)


def lists_of(*epochs: int) -> list[RankingLists]:
    return [RankingLists(np.zeros((1, 1), dtype=np.int32), "d", epoch) for epoch in epochs]


def test_checkpoints_are_spread_from_the_first_to_the_best() -> None:
    def chosen(kept: list[RankingLists], count: int) -> list[int]:
        return [lists.epoch for lists in choose_checkpoints(kept, count)]

    assert chosen(lists_of(*range(7)), 4) == [0, 2, 4, 6]
    assert chosen(lists_of(0, 5, 10, 12), 3) == [0, 10, 12]
    assert chosen(lists_of(*range(7)), 1) == [6]
    assert chosen(lists_of(*range(7)), 50) == list(range(7))
    assert chosen(lists_of(3), 4) == [3]
    with pytest.raises(ConfigError, match="count=0"):
        choose_checkpoints(lists_of(1), 0)


def test_the_recorder_refuses_what_cannot_be_kept(domain, tmp_path) -> None:
    with pytest.raises(ConfigError, match="every=0"):
        RankingRecorder(torch.nn.Module(), domain, tmp_path, 0)  # type: ignore[arg-type]


# --- teachers that bring their own fine-tuning -----------------------------------------------------------------------


class _Config(BaseModel):
    pass


class Own:
    """Tells nothing of its epochs."""

    Config: ClassVar[type[Any]] = _Config
    similarity = "dot"
    temperature = 1.0

    @classmethod
    def create(cls, config: Any, domain: Domain) -> Own:
        return cls()

    def finetune(self, domain: Domain, train: Any, seed: int, folder: Path, progress: Any) -> FinetuneResult:
        return FinetuneResult(0.5, 3, [{"epoch": 1, "ndcg@10": 0.5}, {"epoch": 2, "ndcg@10": 0.25}])

    def save(self, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "teacher.json").write_text("{}")

    def encode_instances(self, batch: Any) -> torch.Tensor:
        return torch.ones(len(batch), 1)

    def encode_items(self, items: torch.Tensor) -> torch.Tensor:
        return -items[:, None].float()


class Registry:
    def get(self, name: str) -> Any:
        return Own


def test_of_a_teacher_that_tells_no_epochs_the_last_lists_are_kept(home, name, domain, small, monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "TEACHERS", Registry())
    done = finetune_teacher(home, name, "own", small.model_copy(update={"teacher": {}}), keep_rankings=5)
    assert done.rankings == (1,)
    (lists,) = kept_rankings(done.folder, domain, teacher_fingerprint(done.folder))
    assert (lists.epoch, lists.quality) == (1, 0.5)
    # The first items by number, without the user's own.
    own = set(domain.items[domain.indptr[0] : domain.indptr[1]][:-2].tolist())
    assert lists.items[0].tolist()[:5] == [item for item in range(1, domain.n_items) if item not in own][:5]
