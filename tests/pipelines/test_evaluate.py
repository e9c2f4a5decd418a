"""Evaluation of runs: ranked once for the same weights, anew for others, and compared user by user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckd.errors import DataError
from ckd.evaluation.metrics import ranking_metrics
from ckd.evaluation.ranks import load_ranks
from ckd.pipelines import evaluate as pipeline
from ckd.pipelines.evaluate import evaluate, run_folder
from ckd.pipelines.finetune_teacher import load_result, teacher_fingerprint
from ckd.pipelines.train_student import load_student, train_student
from ckd.pipelines.workspace import content_hash


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits that were ranked, in order."""
    calls: list[str] = []
    real = pipeline.rank_targets

    def counted(recommender: Any, domain: Any, split: Any, **options: Any) -> Any:
        calls.append(split)
        return real(recommender, domain, split, **options)

    monkeypatch.setattr(pipeline, "rank_targets", counted)
    return calls


def train(studio: Any, run: str = "sasrec", **change: Any) -> Path:
    config = studio.config.model_copy(update=change)
    folder: Path = train_student(studio.work, studio.domain.name, "sasrec", config, run=run, restart=True).folder
    return folder


def test_ranks_are_saved_and_every_metric_derives_from_them(studio: Any, ranked: list[str]) -> None:
    folder = train(studio)
    found = evaluate(studio.work, studio.domain.name, "sasrec", device="cpu")
    assert found.path == folder / "ranks-test.parquet"
    stored = load_ranks(found.path, studio.domain)
    assert stored.rank.tolist() == found.ranks.rank.tolist()
    assert stored.model == content_hash(folder / "best.safetensors")
    assert found.metrics == ranking_metrics(stored.rank)
    assert json.loads((folder / "ranks-test.json").read_text()) == {"metrics": found.metrics, "weights": stored.model}
    assert len(stored) == studio.domain.n_users
    assert found.comparisons == {}
    # The validation metrics of the training log come out of the same ranking.
    valid = evaluate(studio.work, studio.domain.name, "sasrec", "valid", device="cpu")
    best = json.loads((folder / "best.json").read_text())["log"]
    assert valid.metrics["ndcg@10"] == best["valid_ndcg@10"]
    assert ranked == ["test", "valid"]


def test_the_same_weights_are_ranked_once_and_others_anew(studio: Any, ranked: list[str]) -> None:
    train(studio)
    first = evaluate(studio.work, studio.domain.name, "sasrec")
    written = first.path.stat().st_mtime_ns
    again = evaluate(studio.work, studio.domain.name, "sasrec")
    assert (again.metrics, again.path.stat().st_mtime_ns, ranked) == (first.metrics, written, ["test"])
    train(studio, seed=77)
    other = evaluate(studio.work, studio.domain.name, "sasrec")
    assert ranked == ["test", "test"]
    assert other.ranks.model != first.ranks.model
    assert other.ranks.rank.tolist() != first.ranks.rank.tolist()


def test_new_weights_in_place_are_noticed(studio: Any, ranked: list[str]) -> None:
    folder, other = train(studio), train(studio, run="other", seed=77)
    before = evaluate(studio.work, studio.domain.name, "sasrec")
    (folder / "best.safetensors").write_bytes((other / "best.safetensors").read_bytes())
    after = evaluate(studio.work, studio.domain.name, "sasrec")
    assert ranked == ["test", "test"]
    assert after.ranks.rank.tolist() != before.ranks.rank.tolist()
    assert load_ranks(after.path).rank.tolist() == after.ranks.rank.tolist()


def test_masked_histories_are_ranks_of_their_own(studio: Any, ranked: list[str]) -> None:
    folder = train(studio)
    plain = evaluate(studio.work, studio.domain.name, "sasrec")
    masked = evaluate(studio.work, studio.domain.name, "sasrec", mask_history=True)
    assert masked.path == folder / "ranks-test-masked.parquet"
    assert (masked.ranks.rank <= plain.ranks.rank).all()
    assert masked.ranks.rank.sum() < plain.ranks.rank.sum()
    assert evaluate(studio.work, studio.domain.name, "sasrec").metrics == plain.metrics
    assert len(ranked) == 2


def test_a_teacher_is_evaluated_like_a_student(studio: Any) -> None:
    found = evaluate(studio.work, studio.domain.name, "unisrec-1", device="cpu")
    folder = studio.work / "teachers" / studio.domain.name / "unisrec-1"
    assert found.path == folder / "ranks-test.parquet"
    assert found.ranks.model == teacher_fingerprint(folder)
    assert found.metrics == load_result(studio.work, studio.domain, "unisrec-1")["metrics"]["test"]


def test_two_runs_are_compared_user_by_user(studio: Any) -> None:
    train(studio)
    found = evaluate(studio.work, studio.domain.name, "unisrec-1", against="sasrec")
    other = evaluate(studio.work, studio.domain.name, "sasrec")
    for metric, comparison in found.comparisons.items():
        assert (comparison.mean, comparison.other_mean) == (found.metrics[metric], other.metrics[metric])
        assert comparison.n == studio.domain.n_users
    better = (1 / found.ranks.rank > 1 / other.ranks.rank).sum()
    assert found.comparisons["mrr"].wins == better
    same = evaluate(studio.work, studio.domain.name, "sasrec", against="sasrec")
    assert {comparison.p_value for comparison in same.comparisons.values()} == {1.0}


@pytest.mark.parametrize("damage", [b"", b"PAR1 not really", None])
def test_damaged_ranks_are_made_anew(studio: Any, ranked: list[str], damage: bytes | None) -> None:
    train(studio)
    first = evaluate(studio.work, studio.domain.name, "sasrec")
    content = first.path.read_bytes()
    first.path.write_bytes(content[:-20] if damage is None else damage)
    again = evaluate(studio.work, studio.domain.name, "sasrec")
    assert again.metrics == first.metrics
    assert again.path.read_bytes() == content
    assert len(ranked) == 2


def test_unknown_and_unfinished_runs_are_refused(studio: Any) -> None:
    name = studio.domain.name
    with pytest.raises(DataError, match=rf"absent: no such run\. Runs of {name}: unisrec-0, unisrec-1, unisrec-2\."):
        evaluate(studio.work, name, "absent")
    folder = train(studio)
    assert run_folder(studio.work, name, "sasrec") == folder
    with pytest.raises(DataError, match=r"Runs of .*: sasrec, unisrec-0"):
        evaluate(studio.work, name, "sasrec", against="absent")
    state = json.loads((folder / "last.json").read_text())
    (folder / "last.json").write_text(json.dumps({**state, "finished": False}))
    with pytest.raises(DataError, match=r"this run is not finished"):
        evaluate(studio.work, name, "sasrec")
    (folder / "last.json").write_text(json.dumps(state))
    (folder / "best.safetensors").unlink()
    with pytest.raises(DataError, match=r"best\.safetensors: no such file"):
        evaluate(studio.work, name, "sasrec")
    with pytest.raises(DataError, match="no prepared domain"):
        evaluate(studio.work, "absent", "sasrec")


def test_ranking_leaves_the_model_alone(studio: Any) -> None:
    train(studio)
    before = {k: v.clone() for k, v in load_student(studio.work, studio.domain, "sasrec")[0].state_dict().items()}
    evaluate(studio.work, studio.domain.name, "sasrec")
    after = load_student(studio.work, studio.domain, "sasrec")[0].state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)
