"""The paper's Table 3 from nothing, on the example at its smallest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckd.config import RunConfig
from ckd.data.domain import Domain
from ckd.data.example import TINY
from ckd.distill.trainer import Trainer
from ckd.errors import ConfigError, DataError
from ckd.evaluation.ranks import load_ranks
from ckd.pipelines import reproduce
from ckd.pipelines.example import prepare_example
from ckd.pipelines.reproduce import BASE, DISTILLED, METRICS, Table3, reproduce_table3


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch, bag_of_words: Any) -> list[str]:
    """The chain on three tiny domains, texts encoded without an encoder; returns the domains that were encoded."""
    encoded: list[str] = []

    def encode(work: Path, domain: str, config: Any, progress: Any) -> None:
        folder = work / "domains" / domain
        if not (folder / "features" / "text.json").exists():
            encoded.append(domain)
            bag_of_words(Domain.load(folder))

    monkeypatch.setattr(reproduce, "prepare_example", lambda work: prepare_example(work, size=TINY))
    monkeypatch.setattr(reproduce, "encode_items", encode)
    return encoded


def run(work: Path, small: RunConfig, seeds: int = 1, **options: Any) -> Table3:
    return reproduce_table3(work, options.pop("data", None), options.pop("names", None), seeds, small, **options)


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_table_from_nothing_and_nothing_twice(
    tmp_path: Path, chain: list[str], small: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    dry = run(tmp_path / "work", small, seeds=2, dry_run=True)
    assert not (tmp_path / "work").exists()
    assert {state for _, state in dry.steps} == {"to do"}
    assert len({step for step, _ in dry.steps}) == 2 + 2 * 4

    found = run(tmp_path / "work", small, seeds=2, say=said.append)
    assert chain[-1] == "example-studio"
    assert [line.split(": ")[1].split(" ")[0] for line in said] == [
        "data", *["fine-tuning", "planning,", "training", "training"] * 2
    ]  # fmt: skip
    (table,) = found.domains
    assert (table.domain, table.methods, table.seeds) == ("example-studio", ("unisrec", BASE, DISTILLED), (3, 4))
    folders = {"unisrec": "teachers", "sasrec": "students", "ckd": "students"}
    for method, prefix in zip(table.methods, folders, strict=True):
        for number, seed in enumerate(table.seeds):
            path = tmp_path / "work" / folders[prefix] / table.domain / f"{prefix}-seed{seed}" / "ranks-test.parquet"
            assert load_ranks(path).rank.tolist() == table.ranks[method][number].rank.tolist()
    check_table(table)
    assert json.loads(json.dumps(found.as_dict()))["domains"]["example-studio"]["seeds"] == [3, 4]

    done = run(tmp_path / "work", small, seeds=2, dry_run=True)
    assert {state for _, state in done.steps} == {"done"}
    before = everything(tmp_path / "work")
    monkeypatch.setattr(Trainer, "_step", lambda *_: pytest.fail("something was trained again"))
    again = run(tmp_path / "work", small, seeds=2)
    assert again.as_dict() == found.as_dict()
    assert everything(tmp_path / "work") == before
    more = run(tmp_path / "work", small, seeds=3, dry_run=True).steps
    assert [state for _, state in more] == ["done"] * 10 + ["to do"] * 4
    # A teacher that is tuned and has not scored is not done.
    next((tmp_path / "work" / "scores").rglob("unisrec-seed3/manifest.json")).unlink()
    state = dict(run(tmp_path / "work", small, seeds=2, dry_run=True).steps)
    assert state["fine-tune unisrec on example-studio, seed 3"] == "done"
    assert state["score with unisrec on example-studio, seed 3"] == "to do"


def check_table(table: Any) -> None:
    for metric in METRICS:
        values = {method: table.values(method, metric) for method in table.methods}
        assert all(v.shape == (2,) and ((v >= 0) & (v <= 1)).all() for v in values.values())
        mean, spread = table.cell(BASE, metric).split(" ±")
        assert float(mean) == pytest.approx(values[BASE].mean(), abs=1e-4)
        assert float(spread) == pytest.approx(values[BASE].std(ddof=1), abs=1e-4)
        if values[BASE].mean():
            expected = values[DISTILLED].mean() / values[BASE].mean() - 1
            assert table.improvement(metric) == pytest.approx(expected)
        else:
            assert np.isnan(table.improvement(metric))
        assert 0 <= table.p_value(metric) <= 1
    assert table.describe() == "60 users, 40 items, 2 seeds, mean ± standard deviation"


def test_one_seed_has_no_spread(tmp_path: Path, chain: list[str], small: RunConfig) -> None:
    (table,) = run(tmp_path, small).domains
    assert " " not in table.cell(DISTILLED, "ndcg@10")
    assert table.describe().endswith("seed 3")


def test_the_examples_sizes_yield_to_the_users(small: RunConfig) -> None:
    plain = reproduce._for_example(RunConfig())
    assert plain.student == reproduce.EXAMPLE_STUDENT
    assert (plain.train.epochs, plain.train.lr) == (reproduce.EXAMPLE_TRAIN["epochs"], 1e-3)
    said = reproduce._for_example(small)
    assert said.train.epochs == 3
    assert said.student["hidden_size"] == 8
    assert said.student["hidden_dropout"] == reproduce.EXAMPLE_STUDENT["hidden_dropout"]


def test_real_domains_come_from_a_folder(tmp_path: Path, chain: list[str], small: RunConfig) -> None:
    source = tmp_path / "data" / "shop"
    source.mkdir(parents=True)
    draws = np.random.default_rng(0)
    lines = [f"u{u} " + " ".join(f"i{i}" for i in draws.permutation(20)[: 5 + u % 4]) for u in range(30)]
    (source / "user_sequence.txt").write_text("\n".join(lines) + "\n")
    (source / "item_text.txt").write_text("".join(f"i{i} item of kind {i % 5}\n" for i in range(20)))
    (tmp_path / "data" / "a-file.txt").write_text("no domain")
    found = run(tmp_path / "work", small, data=tmp_path / "data")
    assert [table.domain for table in found.domains] == ["shop"]
    assert chain == ["shop"]
    assert found.domains[0].describe() == "30 users, 20 items, seed 3"


def test_names_are_checked_before_anything_is_made(tmp_path: Path, small: RunConfig) -> None:
    (tmp_path / "data" / "shop").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"no domain 'shap' in .*data\. Did you mean 'shop'"):
        run(tmp_path / "work", small, data=tmp_path / "data", names=["shap"])
    with pytest.raises(ConfigError, match=r"no domain 'studio' in the built-in example\. Did you mean 'exampl"):
        run(tmp_path / "work", small, names=["studio"])
    with pytest.raises(DataError, match=r"absent: no such folder\. Give the folder that holds one folder per domain"):
        run(tmp_path / "work", small, data=tmp_path / "absent")
    assert not (tmp_path / "work").exists()


def test_a_bad_feature_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: RunConfig) -> None:
    monkeypatch.setattr(reproduce, "prepare_example", lambda work: prepare_example(work, size=TINY))
    with pytest.raises(ConfigError, match=r"features: unknown key 'modalty'\. Did you mean 'modality'"):
        run(tmp_path, small.model_copy(update={"features": {"modalty": "text"}}))
