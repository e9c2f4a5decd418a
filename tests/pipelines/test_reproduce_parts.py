"""The parts of `ckd reproduce` that train nothing: results, the paper's figures, settings, names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckd.config import RunConfig, TrainConfig
from ckd.errors import ConfigError, DataError
from ckd.pipelines.reproduce import dry_run, paper
from ckd.pipelines.reproduce.example_sizes import EXAMPLE_METHODS, EXAMPLE_TRAIN
from ckd.pipelines.reproduce.made import Made, mark, settings_said
from ckd.pipelines.reproduce.methods import (
    BASE_METHOD,
    DISTILLED,
    PLAIN,
    ablations,
    choose,
    distilled,
    table3_methods,
    teacher,
    universal,
)
from ckd.pipelines.reproduce.result import (
    Column,
    Difference,
    Experiment,
    Panel,
    Point,
    RunRecord,
    Series,
    Spread,
    Table,
    load_experiments,
    show_cell,
)
from ckd.pipelines.reproduce.serving import serving_methods
from ckd.pipelines.reproduce.settings import check_keys, resolve
from ckd.pipelines.reproduce.study import make_study
from ckd.pipelines.reproduce.sweeps import FIGURE_5, OPEN_QUESTIONS, choose_sweeps

THREE = ("unisrec", "recformer", "unim2rec")


# --- results on disk -------------------------------------------------------------------------------------------------


def an_experiment(**changes: Any) -> Experiment:
    spread = Spread.of([0.1, 0.2])
    run = RunRecord(
        "d", "SASRec", "student", "sasrec", 1, "r", "students/d/r", ("t",), {"plan.pool": 2}, {"mrr": 0.1}, {}, None
    )
    difference = Difference("d", "ndcg@10", "A", "B", 0.2, 0.1, 1.0, 0.05, 0.15, 0.01, 0.02, 2)
    table = Table(
        "T",
        (Column("Method"), Column("N", "metric"), Column("theirs", "change", paper=True)),
        (("SASRec", spread, None), ("  the paper's", 0.25, 0.5)),
        "d",
        ("A note.",),
        (1,),
    )
    panel = Panel(
        "P", "d", "bubbles", "x", "y", (Series("s", (Point(1.5, spread, 3.0, "l"),)),), True, "MB", ("b", spread)
    )
    whole = Experiment(
        "table3", "Title", None, ("d",), (1, 2), True, "ckd", {"seed": 1}, (run,), (difference,), (table,), (panel,)
    )
    return replace(whole, **changes)


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    experiment = an_experiment(notes=("N.",), versions={"torch": "2"}, seconds=3.5)
    path = experiment.save(tmp_path)
    assert path == tmp_path / "experiments" / "table3-d.json"
    assert Experiment.load(path) == experiment
    an_experiment(name="figure3", domains=("d", "e")).save(tmp_path)
    (tmp_path / "experiments" / ".table3.json.1.partial").write_text("half")
    assert [each.name for each in load_experiments(tmp_path)] == ["figure3", "table3"]
    assert load_experiments(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"format": 0}', "not of format 1"),
        ('{"format": 1, "name": "x"}', "has no 'domains'"),
    ],
)
def test_a_damaged_result_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table3-d.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"table3-d\.json: .*{message}"):
        Experiment.load(path)
    with pytest.raises(DataError, match=r"absent\.json: no such file"):
        Experiment.load(tmp_path / "absent.json")


def test_what_is_made_by_default_has_a_plain_name_and_all_else_a_mark() -> None:
    def marked(values: dict[str, Any], seeds: tuple[int, ...] = (2024,), usual: bool = True, **made: Any) -> str:
        settings = settings_said(RunConfig.model_validate(values))
        return mark(Made(("unisrec",), made.pop("teacher_seeds", seeds), settings=settings, **made), seeds, usual)

    assert marked({}) == marked({"train": {"device": "cpu"}, "prepare": {"min_length": 2}, "seed": 2024}) == ""
    three = (2024, 2025, 2026)
    assert marked({}, three) == "3seeds"
    others = [
        marked({}, three, teacher_seeds=(2024,)),
        marked({}, three, sources=("a", "b")),
        marked({}, (7,)),
        marked({}, usual=False),
        marked({"plan": {"epochs": 40}}),
        # What is a default may be none of a model, or of the example.
        marked({"train": {"patience": 10}}),
    ]
    assert len(set(others)) == len(others)
    assert all(re.fullmatch("(3seeds-)?[0-9a-f]{8}", each) for each in others)


@pytest.mark.parametrize(
    ("cell", "kind", "text"),
    [
        (Spread.of([0.1]), "metric", "0.1000"),
        (Spread.of([0.1, 0.3]), "metric", "0.2000 ±0.1414"),
        (0.1234, "change", "+12.34%"),
        (-0.5, "change", "-50.00%"),
        (0.9987, "percent", "99.87%"),
        (12_345, "count", "12,345"),
        (48.26, "ratio", "48.3x"),
        (2_500_000, "bytes", "2.5 MB"),
        (0.00001, "p", "<0.0001"),
        (0.04999, "p", "0.0500"),
        (None, "metric", "–"),
        (float("nan"), "change", "–"),
        ("text", "metric", "text"),
    ],
)
def test_cells_are_written_for_people(cell: Any, kind: Any, text: str) -> None:
    assert show_cell(cell, kind) == text


# --- the paper's figures ---------------------------------------------------------------------------------------------


def test_the_papers_figures_are_consistent_with_themselves() -> None:
    for domain in paper.DOMAINS:
        base, ours = (paper.metrics_of(domain, name) for name in ("SASRec", "CKD-MDSR"))
        for metric, printed in paper.improvement_of(domain).items():
            assert ours[metric] / base[metric] - 1 == pytest.approx(printed, abs=6e-4)
        for method in paper.METHODS:
            values = paper.metrics_of(domain, method)
            for k in (5, 10, 20):
                assert values[f"ndcg@{k}"] <= values[f"recall@{k}"]
            assert values["recall@5"] <= values["recall@10"] <= values["recall@20"]
    printed = [value for domain in paper.DOMAINS for value in paper.improvement_of(domain).values()]
    assert (min(printed), max(printed)) == (pytest.approx(0.0086), pytest.approx(0.1921))


def test_what_the_paper_prints_twice_is_the_same_twice() -> None:
    # The first version's PRM-KD has become the second's CKD-MDSR, figures and all, but for Games.
    for domain in paper.DOMAINS:
        assert (paper.metrics_of(domain, "PRM-KD") == paper.metrics_of(domain, "CKD-MDSR")) == (domain != "games")
    # Of the other domains, lengths or sparsity contradict the counts.
    arts, scientific = paper.TABLE_2["Arts"], paper.TABLE_2["Scientific"]
    for found in (arts, scientific):
        assert round(found.interactions / found.users, 2) == found.average_length
    assert round(1 - arts.interactions / (arts.users * arts.items), 4) == arts.sparsity
    for serving in paper.TABLE_5.values():
        assert serving["SASRec"] == serving["CKD-MDSR"] == (1.0, 1.0)
        # A teacher costs tens of times the memory, and twice or three times the time.
        assert all(memory > 40 > 4 > time > 1 for memory, time in list(serving.values())[1:-1])


def test_the_papers_figures_by_our_names() -> None:
    found = {name: paper.metrics_of("instruments", name)["recall@20"] for name in ("RecGURU", "HetComp", "BERT4Rec")}
    assert found == {"RecGURU": 0.1374, "HetComp": 0.1497, "BERT4Rec": 0.1572}
    assert paper.metrics_of("Scientific", "CKD-MDSR")["recall@10"] == 0.1231
    assert paper.metrics_of("scientific", "SASRec")["ndcg@10"] == 0.0549
    assert paper.metrics_of("games", "PRM-KD")["ndcg@10"] == 0.0474
    assert paper.metrics_of("scientific", "w/o CSS") == {}
    assert paper.metrics_of("office", "SASRec") == {}
    assert paper.serving_of("arts")["Recformer"] == (81.7, 3.1)
    assert (paper.serving_of("toys"), paper.statistics_of("office"), paper.improvement_of("office")) == ({}, None, {})
    assert paper.statistics_of("toys") == paper.Statistics(18_436, 10_986, 163_837, 8.34, 0.9994)


# --- methods and settings --------------------------------------------------------------------------------------------


def test_the_methods_of_the_papers_tables() -> None:
    names = [method.name for method in table3_methods(THREE)]
    assert set(names) == {*paper.METHODS, "PRM-KD"}
    assert len(set(names)) == len(names)
    assert [method.name for method in ablations(THREE)] == [
        DISTILLED,
        "w/o MT1 (UniSRec alone)",
        "w/o MT2 (Recformer alone)",
        "w/o MT3 (UniM²Rec alone)",
        *("w/o CSS", "w/o IN", "w/o WA"),
    ]
    assert [method.name for method in ablations(THREE[:1])] == [DISTILLED, "w/o CSS", "w/o IN"]


def test_what_is_served_is_what_table_3_has_trained(tmp_path: Path) -> None:
    found = serving_methods(make_study(tmp_path, None, None, 1, RunConfig()))
    assert [method.name for method in found] == ["SASRec", "UniSRec", "Recformer", "UniM²Rec", DISTILLED]
    assert all(method in table3_methods(THREE) for method in found)


def test_methods_are_chosen_by_name_in_any_case() -> None:
    methods = table3_methods(THREE)
    assert [m.name for m in choose(methods, ["sasrec", "hetcomp"])] == ["SASRec", "HetComp"]
    assert [m.name for m in choose(methods, ["HetComp"], keep=("SASRec",))] == ["SASRec", "HetComp"]
    assert choose(methods, None) == methods
    assert [m.name for m in choose(ablations(THREE), ["w/o mt2"])] == ["w/o MT2 (Recformer alone)"]
    with pytest.raises(ConfigError, match=r"no method 'SASRek' here\. Did you mean 'SASRec'"):
        choose(methods, ["SASRek"])


def test_every_method_is_a_valid_configuration() -> None:
    config = RunConfig()
    for example in (False, True):
        for method in [*table3_methods(THREE), *ablations(THREE), *universal(THREE)]:
            resolve(method, config, example, 1)


def test_the_layers_of_settings() -> None:
    config = RunConfig.model_validate(
        {
            "student": {"hidden_dropout": 0.5, "embedding_size": 32},
            "base": {"hidden_dropout": 0.3},
            "teacher": {"n_experts": 4, "window": 32},
            "train": {"lr": 0.002},
            "plan": {"buckets": 3},
            "methods": {"recformer": {"train.lr": 5e-5}, "CKD-MDSR": {"distill.lambda": 3}},
        }
    )
    base, ours = (resolve(m, config, False, 7).config for m in (BASE_METHOD, distilled(THREE)))
    assert (base.seed, base.student, ours.student) == (7, {"hidden_dropout": 0.3}, {"hidden_dropout": 0.5})
    assert (base.plan.buckets, base.plan.pool, ours.plan.buckets) == (1, "fresh", 3)
    assert (base.distill.weight, ours.distill.weight) == (10, 3)
    unisrec, recformer = (resolve(teacher(name), config, False, 7).config for name in THREE[:2])
    assert (unisrec.teacher, recformer.teacher) == ({"n_experts": 4}, {"window": 32})
    assert (unisrec.train.lr, recformer.train.lr) == (0.002, 5e-5)
    # What nobody has said stays unsaid, so that a model's own defaults hold.
    assert "epochs" not in recformer.train.model_fields_set
    example = resolve(BASE_METHOD, config, True, 7).config
    assert (example.student["hidden_size"], example.student["hidden_dropout"]) == (64, 0.3)
    # A method is what it is, whatever the configuration says.
    loud = config.model_copy(update={"methods": {"sasrec": {"plan.buckets": 9}}})
    assert resolve(BASE_METHOD, loud, False, 7).config.plan.buckets == PLAIN["plan.buckets"]


def test_epochs_fit_the_plan_before_anything_is_trained() -> None:
    short = RunConfig.model_validate({"plan": {"epochs": 6}})
    found = {m.name: resolve(m, short, True, 1).config.train.epochs for m in (BASE_METHOD, distilled(THREE))}
    assert found == {BASE_METHOD.name: 6, "CKD-MDSR": 6}
    # A teacher has no plan, and what the example takes of a longer one stays.
    assert resolve(teacher("unisrec"), short, True, 1).config.train.epochs == EXAMPLE_METHODS["unisrec"]["train.epochs"]
    longer = RunConfig.model_validate({"plan": {"epochs": 80}})
    assert resolve(BASE_METHOD, longer, True, 1).config.train.epochs == EXAMPLE_TRAIN["epochs"]
    said = RunConfig.model_validate({"plan": {"epochs": 6}, "train": {"epochs": 7}})
    for example in (True, False):
        with pytest.raises(ConfigError, match=r"SASRec: train\.epochs=7: its plan has plan\.epochs=6\. Give no more"):
            resolve(BASE_METHOD, said, example, 1)
    assert resolve(teacher("unisrec"), said, True, 1).config.train.epochs == 7


def test_a_name_tells_runs_apart_by_what_they_depend_on() -> None:
    def name(method: Any, values: dict[str, Any], **parts: Any) -> str:
        return resolve(method, RunConfig.model_validate(values), False, 1).fingerprint(method, parts)

    ours = distilled(THREE)
    plain = name(ours, {})
    same = [{"train": {"device": "cpu"}}, {"distill": {"lambda": 10.0}}, {"seed": 9}, {"prepare": {"history_cap": 9}}]
    assert {name(ours, values) for values in same} == {plain}
    other: list[dict[str, Any]] = [{"distill": {"lambda": 5}}, {"plan": {"alpha": 2}}, {"train": {"lr": 0.1}}]
    assert len({plain, *(name(ours, values) for values in other), name(ours, {}, teachers=["t"])}) == 5
    # A baseline's loop reads nothing of `train`.
    hetcomp = next(method for method in table3_methods(THREE) if method.name == "HetComp")
    assert name(hetcomp, {"train": {"lr": 0.1}}) == name(hetcomp, {}) != name(hetcomp, {"baseline": {"epochs": 3}})
    # What is said to be every model's default, where this model's is another, is said of it.
    unisrec, fm = table3_methods(THREE)[0], universal(THREE)[0]
    for method, key, value in ((unisrec, "weight_decay", 1e-5), (fm, "patience", 10)):
        assert TrainConfig().model_dump()[key] == value
        assert name(method, {"train": {key: value}}) != name(method, {})
    # A base model knows no distillation.
    assert name(BASE_METHOD, {"distill": {"lambda": 5}}) == name(BASE_METHOD, {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"student": {"hidden_sise": 8}}, r"student: no model has a key 'hidden_sise'\. Did you mean 'hidden_size'"),
        ({"base": {"hidden_sise": 8}}, r"base: no model has a key 'hidden_sise'"),
        ({"teacher": {"experts": 8}}, r"teacher: no model has a key 'experts'\. Did you mean 'n_experts'"),
        ({"baseline": {"warmup": 8}}, r"baseline: no model has a key 'warmup'\. Did you mean 'warmup_epochs'"),
        ({"methods": {"recfromer": {}}}, r"methods: no method 'recfromer'\. Did you mean 'recformer'"),
        ({"methods": {"unisrec": {"lr": 1}}}, r"methods\.unisrec: key 'lr': write section\.key"),
        ({"methods": {"unisrec": {"trian.lr": 1}}}, r"key 'trian\.lr': .*Did you mean 'train'"),
        ({"methods": {"unisrec": {"student.hidden_size": 8}}}, r"methods\.unisrec: a teacher has nothing of 'student'"),
        ({"methods": {"SASRec": {"prepare.history_cap": 3}}}, r"methods\.SASRec: a student has nothing of 'prepare'"),
        ({"methods": {"HetComp": {"distill.lambda": 3}}}, r"methods\.HetComp: a baseline has nothing of 'distill'"),
        ({"methods": {"unisrec": {"pretrain.epochz": 5}}}, r"methods\.unisrec: pretrain: .*'epochz'"),
    ],
)
def test_keys_that_no_model_has_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_keys(RunConfig.model_validate(values), THREE)


def test_a_variant_goes_by_the_name_that_the_study_prints() -> None:
    def check(name: str, *teachers: str) -> None:
        check_keys(RunConfig.model_validate({"methods": {name: {"train.lr": 0.1}}}), teachers)

    check("w/o MT1 (Recformer alone)", "recformer", "unisrec")
    for name in ("w/o WA", "w/o CSS", "CKD-MDSR FM", "RecGURU", "UniM²Rec", "unim2rec"):
        check(name, "recformer", "unisrec")
    for name in ("w/o MT1 (UniSRec alone)", "w/o MT3 (UniM²Rec alone)"):
        with pytest.raises(ConfigError, match=r"no method 'w/o MT. .*Did you mean 'w/o MT"):
            check(name, "recformer", "unisrec")


def test_what_is_said_of_the_distilled_student_goes_for_its_variants(tmp_path: Path) -> None:
    said = {"CKD-MDSR": {"distill.lambda": 3}, "w/o CSS": {"distill.lambda": 4}}
    config = RunConfig.model_validate({"methods": said})
    study = make_study(tmp_path, None, None, 1, config)
    lambdas = {m.name: resolve(m, config, False, 7).config.distill.weight for m in ablations(THREE)}
    assert lambdas.pop("w/o CSS") == 4
    assert set(lambdas.values()) == {3}
    (sweep,) = choose_sweeps(FIGURE_5, ["temperature"])
    assert {resolve(m, config, False, 7).config.distill.weight for m in sweep.methods(study)} == {3}
    others = [BASE_METHOD, *universal(THREE), *table3_methods(THREE)[:3]]
    assert {resolve(m, config, False, 7).config.distill.weight for m in others} == {10}


def test_a_value_that_does_not_fit_names_the_method() -> None:
    config = RunConfig.model_validate({"methods": {"SASRec": {"train.lr": -1}}})
    with pytest.raises(ConfigError, match=r"SASRec: train\.lr=-1"):
        resolve(BASE_METHOD, config, False, 1)


def test_sweeps_are_chosen_by_name() -> None:
    assert [sweep.what for sweep in choose_sweeps(FIGURE_5, ["lambda"])] == ["lambda"]
    assert choose_sweeps(FIGURE_5, None) == list(FIGURE_5)
    with pytest.raises(ConfigError, match=r"--what bucket: no such setting\. Did you mean 'buckets'"):
        choose_sweeps(OPEN_QUESTIONS, ["bucket"])
    assert "epsilon" not in [sweep.what for sweep in choose_sweeps(OPEN_QUESTIONS, None, 2)]
    with pytest.raises(ConfigError, match=r"--what epsilon: has an effect with 3 teachers or more, here are 2"):
        choose_sweeps(OPEN_QUESTIONS, ["epsilon"], 2)


def test_every_value_of_every_sweep_is_a_valid_configuration(tmp_path: Path) -> None:
    study = make_study(tmp_path, None, None, 1, RunConfig())
    found = {sweep.what: sweep.methods(study) for sweep in (*FIGURE_5, *OPEN_QUESTIONS)}
    for methods in found.values():
        names = {resolve(m, study.config, True, 1).fingerprint(m, {}) for m in methods}
        assert len(names) == len(methods)
    assert {"temperature", "lambda", "dimension", "buckets", "alpha", "epsilon", "difficulty", "pool"} <= found.keys()
    one = make_study(tmp_path, None, None, 1, RunConfig(), teachers=["unisrec"])
    difficulty = next(sweep for sweep in OPEN_QUESTIONS if sweep.what == "difficulty")
    assert "teacher_disagreement" not in [method.x for method in difficulty.methods(one)]


# --- the study's names -----------------------------------------------------------------------------------------------


def test_names_are_checked_before_anything_is_made(tmp_path: Path) -> None:
    work, data = tmp_path / "work", tmp_path / "data"
    (data / "shop").mkdir(parents=True)
    config = RunConfig()
    with pytest.raises(ConfigError, match=r"no domain 'shap' in .*data\. Did you mean 'shop'"):
        make_study(work, data, ["shap"], 1, config)
    with pytest.raises(ConfigError, match=r"no domain 'studio' in the built-in example\. Did you mean 'exampl"):
        make_study(work, None, ["studio"], 1, config)
    with pytest.raises(DataError, match=r"absent: no such folder\. Give the folder that holds one folder per domain"):
        make_study(work, tmp_path / "absent", None, 1, config)
    with pytest.raises(ConfigError, match=r"unknown teacher 'unisrek'\. Did you mean 'unisrec'"):
        make_study(work, None, None, 1, config, teachers=["unisrek"])
    with pytest.raises(ConfigError, match=r"domain 'shop': a source of pre-training cannot be a target too"):
        make_study(work, data, ["shop"], 1, config, sources=["shop"])
    assert not work.exists()


def test_what_cannot_be_run_is_left_out_and_said(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "shop").mkdir(parents=True)
    alone = make_study(tmp_path, data, None, 2, RunConfig(seed=5))
    assert (alone.domains, alone.seeds, alone.teachers) == (("shop",), (5, 6), ("unisrec", "recformer"))
    assert [note.split(" is left out")[0] for note in alone.left_out.values()] == ["RecGURU", "UniM²Rec"]
    # Nobody misses RecGURU among ablations.
    told = {name: dry_run(name, alone).notes for name in ("table3", "figure3", "table2")}
    assert {name: len(notes) for name, notes in told.items()} == {"table3": 2, "figure3": 1, "table2": 0}
    # A hidden folder is no domain.
    (data / ".git").mkdir()
    assert make_study(tmp_path, data, None, 1, RunConfig()).left_out == alone.left_out
    (data / "other").mkdir()
    (tmp_path / "domains" / "shop" / "features").mkdir(parents=True)
    (tmp_path / "domains" / "shop" / "features" / "image.json").touch()
    whole = make_study(tmp_path, data, ["shop"], 1, RunConfig())
    assert (whole.teachers, whole.left_out, whole.notes) == (THREE, {}, ())
    # Whoever names a teacher gets it, or its own error.
    assert make_study(tmp_path, data, ["other"], 1, RunConfig(), teachers=["unim2rec"]).teachers == ("unim2rec",)
