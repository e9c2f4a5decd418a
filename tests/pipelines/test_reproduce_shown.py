"""What tables and figures show: planted ranks must come out where they belong, recomputed here from the definitions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from ckd.config import RunConfig
from ckd.data.domain import Domain, leave_one_out
from ckd.evaluation.metrics import per_user, ranking_metrics
from ckd.evaluation.ranks import Ranks
from ckd.evaluation.significance import holm, paired_test
from ckd.pipelines.reproduce import chain, cold_start, compare, experiments, methods, serving, sweeps
from ckd.pipelines.reproduce.result import RunRecord, Spread
from ckd.pipelines.reproduce.study import Ran
from ckd.pipelines.serving_cost import Latency, ServingCost, ServingTable

USERS, ITEMS = 60, 31
SEEDS = (1, 2)


@pytest.fixture
def domain() -> Domain:
    """Items of very different popularity; as many items as make no even quintiles."""
    rng = np.random.default_rng(1)
    indptr = np.concatenate([[0], np.cumsum(rng.integers(3, 9, USERS))])
    items = (1 + (rng.random(indptr[-1]) ** 3 * ITEMS).astype(int)).astype(np.int32)
    table = pl.DataFrame({"item": range(1, ITEMS + 1), "raw_id": [f"i{n}" for n in range(ITEMS)], "text": [""] * ITEMS})
    users = pl.Series([f"u{n}" for n in range(USERS)])
    return Domain("d", indptr, items, leave_one_out(indptr), table, users, 4)


def planted(domain: Domain, method: str, shift: int, valid: float = 0.5) -> list[Ran]:
    """Runs of a method whose ranks are those of the others but for `shift` places and a little noise."""
    targets = domain.instances("test")
    found = []
    for seed in SEEDS:
        noise = np.random.default_rng([seed, shift]).integers(0, 3, USERS)
        rank = np.clip(np.random.default_rng(seed).integers(1, ITEMS + 1, USERS) - shift - noise, 1, ITEMS)
        ranks = Ranks(
            user=targets.users.astype(np.int64),
            raw_id=domain.user_ids.rename("raw_id"),
            target=targets.targets.astype(np.int64),
            rank=rank,
            history_length=targets.lengths,
            popularity=domain.popularity[targets.targets],
            n_items=ITEMS,
            domain="d",
            fingerprint=domain.fingerprint,
            split="test",
            model=method,
            mask_history=False,
        )
        name, metrics = f"{method}-{seed}", ranking_metrics(rank)
        kept = {"ndcg@10": valid, "recall@10": valid}
        found.append(
            Ran(RunRecord("d", method, "student", "sasrec", seed, name, name, (), {}, metrics, kept, 1.0), ranks)
        )
    return found


@pytest.fixture
def ran(domain: Domain) -> list[Ran]:
    shifts = (("SASRec", 0, 0.1), ("PRM-KD", 1, 0.2), ("CKD-MDSR", 4, 0.3))
    return [run for method, shift, valid in shifts for run in planted(domain, method, shift, valid)]


def by_user(ran: list[Ran], method: str, metric: str, rows: Any = slice(None)) -> npt.NDArray[np.float64]:
    """A metric of each user, mean over the method's seeds."""
    values = [per_user(metric, run.ranks.rank)[rows] for run in ran if run.record.method == method]
    assert len(values) == len(SEEDS)
    return np.mean(values, axis=0)


# --- comparisons -----------------------------------------------------------------------------------------------------


def test_differences_are_of_the_first_over_the_second_and_corrected_together(ran: list[Ran]) -> None:
    pairs = [("CKD-MDSR", "SASRec"), ("PRM-KD", "SASRec")]
    found = compare.differences(ran, "d", pairs)
    expected = [paired_test(by_user(ran, a, m), by_user(ran, b, m)) for a, b in pairs for m in compare.METRICS]
    assert [(each.value, each.other, each.p, each.low, each.high) for each in found] == [
        (test.mean, test.other_mean, test.p_value, test.low, test.high) for test in expected
    ]
    assert found[0].value > found[0].other
    assert [each.p_corrected for each in found] == holm([test.p_value for test in expected])
    assert [each.p_corrected for each in found] != [each.p for each in found]


def test_the_headline_has_the_base_first_and_corrected_p(ran: list[Ran]) -> None:
    found = compare.differences(ran, "d", [("CKD-MDSR", "SASRec")])
    table = compare.headline_table(found, "d", "CKD-MDSR", "SASRec")
    assert [(*row[1:4], row[5]) for row in table.rows] == [
        (each.other, each.value, each.improvement, each.p_corrected) for each in found
    ]


@pytest.mark.parametrize(("corrected", "starred"), [(0.2, False), (0.04, True)])
def test_a_star_is_for_the_corrected_p(ran: list[Ran], corrected: float, starred: bool) -> None:
    difference = compare.differences(ran, "d", [("CKD-MDSR", "SASRec")])[0]
    table = compare.improvement_table([replace(difference, p=0.01, p_corrected=corrected)], "t", "d")
    assert table.rows[0][1].endswith("*") == starred


def test_table_3_compares_everything_with_the_base(ran: list[Ran]) -> None:
    shown = experiments._table3(None, ran, experiments.WHOLE)  # type: ignore[arg-type]
    assert {(each.method, each.against) for each in shown.differences} == {
        ("PRM-KD", "SASRec"),
        ("CKD-MDSR", "SASRec"),
        ("CKD-MDSR", "PRM-KD"),
    }


# --- the other tables and figures ------------------------------------------------------------------------------------


def test_table_2_has_the_domains_counts(domain: Domain, tmp_path: Path) -> None:
    domain.save(tmp_path / "domains" / "d")
    study: Any = SimpleNamespace(domains=("d",), work=tmp_path)
    shown = experiments._table2(study, [], experiments.WHOLE)
    n = len(domain.items)
    sparsity = pytest.approx(1 - n / (USERS * ITEMS))
    assert shown.tables[0].rows == (("d", USERS, ITEMS, n, n / USERS, sparsity),)


def test_figure_3_compares_variants_with_the_whole_method(domain: Domain, ran: list[Ran]) -> None:
    runs = [run for run in ran if run.record.method != "PRM-KD"] + planted(domain, "w/o CSS", 2)
    study: Any = SimpleNamespace(teachers=("a", "b", "c"))
    shown = experiments._figure3(study, runs, experiments.WHOLE)
    assert {(each.method, each.against) for each in shown.differences} == {
        ("CKD-MDSR", "SASRec"),
        ("w/o CSS", "CKD-MDSR"),
    }


def test_figure_4_draws_each_student_without_and_with(domain: Domain) -> None:
    runs = [*planted(domain, "FM", 0), *planted(domain, "CKD-MDSR FM", 3)]
    shown = experiments._figure4(None, runs, experiments.WHOLE)  # type: ignore[arg-type]
    drawn = [series.points[0].y.mean for series in shown.panels[0].series]
    assert drawn == pytest.approx([by_user(runs, method, "recall@10").mean() for method in ("FM", "CKD-MDSR FM")])
    assert drawn[0] < drawn[1]


def test_sweeps_show_validation_and_test_against_the_settings_as_they_are(domain: Domain, ran: list[Ran]) -> None:
    sweep = sweeps.Sweep("lambda", "W", "distill.lambda", (0.1, 10.0), metric="recall@10")
    study: Any = SimpleNamespace(domains=("d",), teachers=("t",), example=False)
    runs = [*ran, *planted(domain, "W 0.1", 2, 0.4), *planted(domain, "W 10.0", 3, 0.6)]
    (table,), (panel,), found = sweeps.show_sweeps(study, runs, [sweep])
    assert [(each.method, each.against, each.metric) for each in found] == [
        ("W 0.1", "CKD-MDSR", "recall@10"),
        ("W 10.0", "CKD-MDSR", "recall@10"),
    ]
    assert [row[1].mean for row in table.rows] == pytest.approx([0.1, 0.3, 0.4, 0.6])
    assert table.rows[2][4:] == (found[0].improvement, found[0].p_corrected)
    assert found[0].p != found[0].p_corrected
    means = [by_user(runs, method, "recall@10").mean() for method in ("W 0.1", "W 10.0", "SASRec")]
    assert [*(point.y.mean for point in panel.series[0].points), panel.reference[1].mean] == pytest.approx(means)


@pytest.mark.parametrize("what", ["history length", "popularity"])
def test_cold_start_by_quintile(domain: Domain, ran: list[Ran], tmp_path: Path, what: str) -> None:
    domain.save(tmp_path / "domains" / "d")
    study: Any = SimpleNamespace(domains=("d",), work=tmp_path)
    tables, panels, found = cold_start.show_cold_start(study, ran)
    ranks = ran[0].ranks
    by_length = cold_start.quintiles(ranks.history_length)
    by_popularity = cold_start.quintiles(ranks.popularity, domain.popularity[1:])
    first = what == "history length"
    strata = by_length if first else by_popularity
    table, panel = (tables[0], panels[0]) if first else (tables[1], panels[1])
    here = found[: 2 * len(by_length)] if first else found[2 * len(by_length) :]
    assert len(here) == 2 * len(strata)
    borders = [f"{s.number}: {s.low}" + ("" if s.low == s.high else f"–{s.high}") for s in strata]
    assert [row[:2] for row in table.rows] == [(name, len(s.rows)) for name, s in zip(borders, strata, strict=True)]
    ps = []
    for n, stratum in enumerate(strata):
        for k, metric in enumerate(("recall@10", "ndcg@10")):
            ours, base = (by_user(ran, method, metric, stratum.rows) for method in ("CKD-MDSR", "SASRec"))
            shown = here[2 * n + k]
            assert (shown.value, shown.other) == (pytest.approx(ours.mean()), pytest.approx(base.mean()))
            improvement = ours.mean() / base.mean() - 1 if base.mean() else None
            assert shown.improvement == (None if improvement is None else pytest.approx(improvement))
            assert shown.p == pytest.approx(paired_test(ours, base).p_value, nan_ok=True)
            cells = shown.other, shown.value, shown.improvement, shown.p_corrected
            assert table.rows[n][2 + 4 * k : 6 + 4 * k] == cells
            ps.append(shown.p)
        drawn = {series.name: series.points[n].y.mean for series in panel.series}
        assert drawn == {
            method: pytest.approx(by_user(ran, method, "ndcg@10", stratum.rows).mean())
            for method in ("SASRec", "CKD-MDSR")
        }
    assert [each.p_corrected for each in here] == holm(ps)
    assert holm(ps) != ps
    # The title says what cells hold: means alone, where other tables' show how far seeds lie apart.
    assert table.title.endswith(f"users, {ITEMS} items, mean over {len(SEEDS)} seeds")
    assert not any(isinstance(cell, Spread) for row in table.rows for cell in row)
    assert compare.describe(ran[:1], "d").endswith(f"seed {SEEDS[0]}")


def test_popularity_is_that_of_the_training_part_without_padding(
    domain: Domain, ran: list[Ran], tmp_path: Path
) -> None:
    domain.save(tmp_path / "domains" / "d")
    study: Any = SimpleNamespace(domains=("d",), work=tmp_path)
    tables, _, _ = cold_start.show_cold_start(study, ran)
    last = domain.indptr[1:]
    trained = np.concatenate([domain.items[a : b - 2] for a, b in zip(domain.indptr[:-1], last, strict=True)])
    counts = np.bincount(trained, minlength=ITEMS + 1)[1:]
    strata = cold_start.quintiles(counts[ran[0].ranks.target - 1], counts)
    assert [row[1] for row in tables[1].rows] == [len(stratum.rows) for stratum in strata]


# --- what serving costs ----------------------------------------------------------------------------------------------


def served(run: str, factor: int) -> ServingCost:
    """A run that costs so many times a made-up request, in every unit and size to another power."""
    latency = {1: Latency(3.0 * factor, 2.0 * factor, 5.0 * factor)}
    latency[256] = Latency(*(400.0 * factor**3 + more for more in (10, 0, 20)))
    peaks = {1: factor**2 * 2_000_000, 256: factor**4 * 70_000_000}
    return ServingCost(run, "student", "sasrec", 11 * factor, 500 * factor, 900 * factor, peaks, latency)


@pytest.fixture
def requests(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Ran]]:
    """A study of one of the paper's domains and of another, whose runs cost once, twice and four times as much."""
    found = [run for method in ("SASRec", "Recformer", "CKD-MDSR") for run in planted(domain, method, len(method))]
    ran = [replace(run, record=replace(run.record, domain=name)) for name in ("d", "arts") for run in found]

    def serving_cost(work: Path, name: str, runs: list[str], sizes: Any, repeats: int, *_: Any) -> ServingTable:
        assert (runs, sizes) == (["SASRec-1", "Recformer-1", "CKD-MDSR-1"], (1, 256))
        rows = tuple(served(run, 2**n) for n, run in enumerate(runs))
        return ServingTable(name, ITEMS, "cpu", 2, repeats, {}, rows)

    monkeypatch.setattr(serving, "serving_cost", serving_cost)
    monkeypatch.setattr(serving, "REPEATS", 7)
    config = SimpleNamespace(train=SimpleNamespace(device="cpu"))
    study: Any = SimpleNamespace(domains=("arts", "d"), seeds=SEEDS, work=None, config=config, progress=None)
    return study, ran


def test_table_5_has_every_cost_in_its_column_and_the_papers_beside_them(requests: tuple[Any, list[Ran]]) -> None:
    arts, other = serving.show_table5(*requests)
    assert [len(table.columns) for table in (arts, other)] == [13, 11]
    assert (arts.domain, other.domain) == ("arts", "d")
    assert "median (quartiles) of 7 requests on cpu, 2 threads" in arts.notes[0]
    said = f"N@10 is of test, {len(SEEDS)} seeds, mean ± standard deviation. Multiples are of SASRec's; "
    assert arts.notes[0].startswith(said)
    theirs = {"SASRec": ("1.0x", "1.0x"), "Recformer": ("81.7x", "3.1x"), "CKD-MDSR": ("1.0x", "1.0x")}
    for number, (name, row) in enumerate(zip(theirs, arts.rows, strict=True)):
        factor = 2**number
        shown = {column.name: arts.text(number, at) for at, column in enumerate(arts.columns)}
        metric = by_user([run for run in requests[1] if run.record.domain == "arts"], name, "ndcg@10").mean()
        assert shown.pop("N@10").split()[0] == f"{metric:.4f}"
        assert shown == {
            "Model": name,
            "Memory, B=1": f"{factor**2}.0x",
            "Time, B=1": f"{factor}.0x",
            "Memory, B=256": f"{factor**4}.0x",
            "Time, B=256": f"{(400 * factor**3 + 10) / 410:.1f}x",
            "Parameters": f"{11 * factor}",
            "FLOPs": f"{500 * factor:,}",
            "Peak, B=1": f"{2 * factor**2}.0 MB",
            "ms, B=1": f"{3 * factor}.00 ({2 * factor}.00–{5 * factor}.00)",
            "ms, B=256": "{:,}.00 ({:,}.00–{:,}.00)".format(*(400 * factor**3 + more for more in (10, 0, 20))),
            "The paper's memory": theirs[name][0],
            "The paper's time": theirs[name][1],
        }
        assert other.rows[number] == row[:11]


def test_figure_1_draws_quality_over_time_in_marks_of_memory(requests: tuple[Any, list[Ran]]) -> None:
    tables, panels = serving.show_figure1(*requests)
    assert [table.domain for table in tables] == [panel.domain for panel in panels] == ["arts", "d"]
    (series,) = panels[0].series
    here = [run for run in requests[1] if run.record.domain == "arts"]
    for number, (name, point) in enumerate(zip(("SASRec", "Recformer", "CKD-MDSR"), series.points, strict=True)):
        # Milliseconds and megabytes of a request of one history.
        assert (point.label, point.x, point.size) == (name, 3.0 * 2**number, 2.0 * 4**number)
        assert point.y.mean == pytest.approx(by_user(here, name, "ndcg@10").mean())


# --- what is trained -------------------------------------------------------------------------------------------------


def test_each_ablation_is_the_setting_that_the_paper_leaves_out() -> None:
    overrides = {each.name: dict(each.overrides) for each in methods.ablations(("unisrec", "recformer", "unim2rec"))}
    assert overrides["w/o IN"] == {"distill.scope": "all", "score.codec": "vectors"}
    assert overrides["w/o WA"] == {"distill.consistency": "off"}
    assert overrides["w/o CSS"] == dict(methods.NO_CURRICULUM)


def test_weights_of_teachers_become_those_of_their_runs() -> None:
    config = RunConfig.model_validate({"distill": {"weights": {"a": 1, "b": 2}, "temperature": {"a": 0.1, "b": 0.2}}})
    found = chain._of_runs(config, ("a", "b"), ("a-run", "b-run")).distill
    assert found.weights == {"a-run": 1, "b-run": 2}
    assert found.temperature == {"a-run": 0.1, "b-run": 0.2}
