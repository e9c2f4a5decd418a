"""Experiments from nothing on the example at its smallest: nothing twice, whatever is interrupted."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckd.config import RunConfig
from ckd.distill.trainer import Trainer
from ckd.errors import ConfigError, DataError
from ckd.evaluation.ranks import load_ranks
from ckd.pipelines.reproduce import Options, chain, dry_run, reproduce
from ckd.pipelines.reproduce.result import Experiment, Spread
from ckd.pipelines.reproduce.study import Study, make_study
from ckd.pipelines.workspace import domain_folder

METHODS = Options(methods=("UniSRec", "SASRec", "CKD-MDSR"))
#: What is restricted does not take the place of the whole, nor does what is made otherwise than by default.
RESULT = r"table3-ckd-mdsr-sasrec-unisrec-example-studio-2seeds-[0-9a-f]{8}\.json"


def study_of(work: Path, small: RunConfig, seeds: int = 1, **options: Any) -> Study:
    values = small.model_dump(by_alias=True, exclude_unset=True)
    values["train"] = {"epochs": 1, "device": "cpu"}
    config = RunConfig.model_validate(values)
    options = {"teachers": ["unisrec"], **options}
    return make_study(work, options.pop("data", None), options.pop("names", None), seeds, config, **options)


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def states(study: Study, name: str = "table3", options: Options = METHODS) -> dict[str, str]:
    return {step.what: step.state for step in dry_run(name, study, options).steps}


def test_the_table_from_nothing_and_nothing_twice(
    tmp_path: Path, encoded: list[tuple[str, str]], small: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    said: list[str] = []
    study = study_of(work, small, seeds=2, say=said.append)
    dry = states(study)
    assert not work.exists()
    assert set(dry.values()) == {"to do"}
    # Data and features; then for each seed teacher, two plans, scores, base and distilled student.
    assert len(dry) == 2 + 2 * 6

    found = reproduce("table3", study, METHODS, "ckd reproduce table3")
    assert said == list(dry)
    assert encoded == [("example-studio", "text")]
    (path,) = (work / "experiments").glob("*.json")
    assert re.fullmatch(RESULT, path.name)
    assert Experiment.load(path) == found
    check_runs(work, found)
    check_tables(found)

    assert set(states(study).values()) == {"done"}
    before = everything(work)
    monkeypatch.setattr(Trainer, "_step", lambda *_: pytest.fail("something was trained again"))
    assert reproduce("table3", study, METHODS, "ckd reproduce table3") == found
    after = everything(work)
    assert {name: bytes for name, (_, bytes) in after.items()} == {name: bytes for name, (_, bytes) in before.items()}
    assert [name for name in after if after[name] != before[name]] == [f"experiments/{path.name}"]
    # A further seed shares data and features; another experiment shares runs.
    more = states(study_of(work, small, seeds=3))
    assert list(more.values()) == ["done"] * 14 + ["to do"] * 6
    shared = states(study, "cold-start", Options())
    assert set(shared.values()) == {"done"}
    # A teacher that is tuned and has not scored is not done.
    next((work / "scores").rglob("unisrec-seed3-*/manifest.json")).unlink()
    changed = [what for what, state in states(study).items() if state != "done"]
    assert len(changed) == 1
    assert changed[0].startswith("score with unisrec-seed3-")


def test_students_of_several_seeds_learn_from_the_same_teachers(
    tmp_path: Path, encoded: list[tuple[str, str]], small: RunConfig
) -> None:
    study = study_of(tmp_path / "work", small, seeds=2, teacher_seeds=1)
    assert sum(what.startswith("fine-tune") for what in states(study)) == 1
    found = reproduce("table3", study, METHODS, "ckd reproduce table3")
    assert [(run.method, run.seed) for run in found.runs] == [
        ("UniSRec", 3),
        *((method, seed) for method in ("SASRec", "CKD-MDSR") for seed in (3, 4)),
    ]
    teacher, distilled = found.runs[0], [run for run in found.runs if run.method == "CKD-MDSR"]
    assert [run.teachers for run in distilled] == [(teacher.run,)] * 2
    assert distilled[0].run != distilled[1].run
    table = found.tables[0]
    assert "Of fewer seeds, as all students learn from the same runs: UniSRec (1)." in table.notes
    with pytest.raises(ConfigError, match=r"--teacher-seeds 3: only 2 would be used"):
        study_of(tmp_path / "work", small, seeds=2, teacher_seeds=3)


def check_runs(work: Path, found: Experiment) -> None:
    assert [(run.method, run.seed) for run in found.runs] == [
        (method, seed) for method in ("UniSRec", "SASRec", "CKD-MDSR") for seed in (3, 4)
    ]
    by_name = {(run.method, run.seed): run for run in found.runs}
    for run in found.runs:
        ranks = load_ranks(work / run.folder / "ranks-test.parquet")
        assert run.metrics["recall@10"] == pytest.approx((ranks.rank <= 10).mean())
        folder = work / run.folder
        if run.kind == "teacher":
            kept = json.loads((folder / "result.json").read_text())["metrics"]["valid"]
        else:
            best = json.loads((folder / "best.json").read_text())["log"]
            kept = {name.removeprefix("valid_"): value for name, value in best.items() if name.startswith("valid_")}
        assert {name: run.valid[name] for name in kept if name in run.valid} == pytest.approx(kept, rel=1e-6)
        assert run.seconds is not None
        assert run.seconds > 0
    assert by_name["CKD-MDSR", 3].teachers == (by_name["UniSRec", 3].run,)
    assert by_name["SASRec", 3].teachers == ()
    assert (found.seeds, found.example, found.element) == ((3, 4), True, "Tables 3 and 4")
    assert found.seconds == pytest.approx(sum(run.seconds or 0 for run in found.runs))


def check_tables(found: Experiment) -> None:
    methods, improvements, headline = found.tables
    assert methods.title == "example-studio: test, 60 users, 40 items, 2 seeds, mean ± standard deviation"
    assert [row[0] for row in methods.rows] == ["UniSRec", "SASRec", "CKD-MDSR"]
    assert methods.paper_rows == ()
    values = [run.metrics["ndcg@10"] for run in found.runs if run.method == "SASRec"]
    cell = methods.rows[1][[column.name for column in methods.columns].index("N@10")]
    assert isinstance(cell, Spread)
    assert cell.values == tuple(values)
    assert (cell.mean, cell.std) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    pairs = {(each.method, each.against) for each in found.differences}
    assert pairs == {("UniSRec", "SASRec"), ("CKD-MDSR", "SASRec")}
    assert {each.family for each in found.differences} == {12}
    for each in found.differences:
        assert each.p <= each.p_corrected <= 1
        assert each.low <= each.value - each.other <= each.high
        if each.improvement is not None:
            assert each.improvement == pytest.approx(each.value / each.other - 1)
    assert [row[0] for row in improvements.rows] == ["UniSRec over SASRec", "CKD-MDSR over SASRec"]
    assert [row[0] for row in headline.rows] == ["R@5", "R@10", "R@20", "N@5", "N@10", "N@20"]
    assert "Holm-corrected over 12 comparisons" in headline.notes[0]


def test_an_interrupted_experiment_goes_on(
    tmp_path: Path, encoded: list[tuple[str, str]], small: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Options(methods=("SASRec",))
    whole = reproduce("table3", study_of(tmp_path / "whole", small), base)
    step: Callable[..., Any] = Trainer._step
    taken: list[int] = []

    def killed(self: Trainer, *given: Any) -> Any:
        taken.append(1)
        if len(taken) == 3:
            raise KeyboardInterrupt
        return step(self, *given)

    study = study_of(tmp_path / "cut", small)
    monkeypatch.setattr(Trainer, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        reproduce("table3", study, base)
    assert not list((tmp_path / "cut" / "experiments").glob("*.json"))
    plan = dry_run("table3", study, base)
    assert [each.state for each in plan.steps] == ["done", "done", "begun"]
    again = reproduce("table3", study, base)
    assert [run.metrics for run in again.runs] == [run.metrics for run in whole.runs]


def test_a_result_says_what_it_was_made_with_and_takes_no_others_place(
    tmp_path: Path, encoded: list[tuple[str, str]], small: RunConfig
) -> None:
    work = tmp_path / "work"
    base = Options(methods=("SASRec",))
    several = reproduce("table3", study_of(work, small, seeds=2), base)
    kept = {path: path.read_bytes() for path in (work / "experiments").glob("*.json")}
    one = reproduce("table3", study_of(work, small), base)
    longer = small.model_copy(update={"plan": small.plan.model_copy(update={"epochs": 2})})
    other = reproduce("table3", study_of(work, longer), base)
    # A plain base model is the same whatever the teachers are.
    assert reproduce("table3", study_of(work, small, teachers=["recformer"]), base).stem == one.stem
    marks = [each.mark for each in (several, one, other)]
    assert len(set(marks)) == 3
    assert marks[0].startswith("2seeds-")
    assert {path: path.read_bytes() for path in kept} == kept
    distilled = reproduce("table3", study_of(work, small, seeds=2, teacher_seeds=1), METHODS)
    assert distilled.made is not None
    assert (distilled.made.teachers, distilled.made.teacher_seeds, distilled.made.sources) == (("unisrec",), (3,), ())
    settings = distilled.made.settings
    assert {key: settings[key] for key in ("plan.buckets", "train.epochs")} == {"plan.buckets": 2, "train.epochs": 1}
    assert not {"seed", "train.device"} & set(settings)
    assert [run.settings["train"] for run in distilled.runs[1:]] == [{"epochs": 1, "patience": 15}] * 4
    assert distilled.runs[0].settings["teacher"]["hidden_size"] == 8
    assert distilled.made_with is not None
    assert distilled.made_with.startswith("Made with seeds 3, 4; teachers unisrec of seed 3; plan.batch_size=32, ")
    assert re.search(r", plan\.epochs=3, score\.shard_batches=2 and \d+ more settings\.$", distilled.made_with)


def test_a_former_result_of_other_runs_is_kept(
    tmp_path: Path, encoded: list[tuple[str, str]], small: RunConfig
) -> None:
    work, said = tmp_path / "work", list[str]()
    study = study_of(work, small, say=said.append)
    base = Options(methods=("SASRec",))
    first = reproduce("table3", study, base)
    path = work / "experiments" / f"{first.stem}.json"
    # As an older version wrote it, which named results of all seeds alike, and said nothing of how they are made.
    values = json.loads(path.read_text())
    for key in ("made", "mark"):
        del values[key]
    older = {**values, "seeds": [3, 9], "runs": [*values["runs"], {**values["runs"][0], "folder": "students/x/y"}]}
    for run in older["runs"]:
        del run["settings"]
    path.write_text(json.dumps(older))
    assert (Experiment.load(path).made_with, Experiment.load(path).runs[0].settings) == (None, {})
    # The new one, which would stand there, lacks a run of it.
    said.clear()
    again = reproduce("table3", study, base)
    assert Experiment.load(path) == again == first
    assert len(said) == 1
    (kept,) = (each for each in (work / "experiments").glob("*.json") if each != path)
    assert str(kept) in said[0]
    assert len(Experiment.load(kept).runs) == 2
    # One that holds nothing else is replaced.
    reproduce("table3", study, base)
    assert len(list((work / "experiments").glob("*.json"))) == 2


@pytest.fixture
def scientific(tmp_path: Path) -> Path:
    """A small source of a real domain's name, beside a file that is none."""
    source = tmp_path / "data" / "scientific"
    source.mkdir(parents=True)
    draws = np.random.default_rng(0)
    lines = [f"u{u} " + " ".join(f"i{i}" for i in draws.permutation(20)[: 5 + u % 4]) for u in range(30)]
    (source / "user_sequence.txt").write_text("\n".join(lines) + "\n")
    (source / "item_text.txt").write_text("".join(f"i{i} item of kind {i % 5}\n" for i in range(20)))
    return tmp_path / "data"


def test_a_domain_that_was_prepared_otherwise_is_refused(tmp_path: Path, scientific: Path, small: RunConfig) -> None:
    def study(**section: Any) -> Study:
        values = {**small.model_dump(by_alias=True, exclude_unset=True), "prepare": section}
        return study_of(tmp_path / "work", RunConfig.model_validate(values), data=scientific)

    reproduce("table2", study(min_length=2))
    # Whoever says nothing takes what is there.
    for same in (study(), study(min_length=2)):
        assert reproduce("table2", same).tables[0].rows[0][1] == 30
    for act in (dry_run, reproduce):
        with pytest.raises(
            DataError, match=r"domain\.json: prepared with prepare\.min_length=2, not 6\. Leave the key"
        ):
            act("table2", study(min_length=6))


def test_a_domain_that_was_prepared_from_another_folder_is_refused(
    tmp_path: Path, scientific: Path, small: RunConfig
) -> None:
    work, other = tmp_path / "work", tmp_path / "other"
    reproduce("table2", study_of(work, small, data=scientific))
    # The same content in another place is the same.
    shutil.copytree(scientific, other)
    (other / "scientific" / "README.md").write_text("not read")
    methods = Options(methods=("SASRec",))
    assert states(study_of(work, small, data=other), options=methods)["prepare scientific"] == "done"
    texts = other / "scientific" / "item_text.txt"
    texts.write_text(texts.read_text().replace("kind", "sort"))
    described = work / "domains" / "scientific" / "domain.json"
    line = (
        f"{described}: prepared from {scientific / 'scientific'}, not from {other / 'scientific'}: {texts} is not what "
        f"it was then. Take another --work, or prepare the domain again with `ckd prepare {other / 'scientific'} "
        "--name scientific --replace`."
    )
    for act in (dry_run, reproduce):
        with pytest.raises(DataError) as caught:
            act("table3", study_of(work, small, data=other), methods)
        assert str(caught.value) == line
    texts.unlink()
    with pytest.raises(DataError, match=r"not from .*item_text\.txt is not there\. Take another --work"):
        dry_run("table3", study_of(work, small, data=other), methods)
    changed = scientific / "scientific" / "user_sequence.txt"
    changed.write_text(changed.read_text() + "u99 i1 i2 i3 i4 i5\n")
    with pytest.raises(DataError, match=r"prepared from \S+scientific: \S+user_sequence\.txt is not what it was then"):
        dry_run("table3", study_of(work, small, data=scientific), methods)
    # A domain of before says nothing of its files, and is taken.
    meta = json.loads(described.read_text())
    del meta["notes"]["inputs"]
    described.write_text(json.dumps(meta))
    dry_run("table3", study_of(work, small, data=scientific), methods)


def test_an_item_file_elsewhere_is_one_of_a_domains_files(
    tmp_path: Path, scientific: Path, small: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = (scientific / "scientific" / "item_text.txt").rename(tmp_path / "texts.txt")
    monkeypatch.chdir(tmp_path)
    values = {**small.model_dump(by_alias=True, exclude_unset=True), "prepare": {"items": items.name}}
    study = study_of(tmp_path / "work", RunConfig.model_validate(values), data=scientific)
    reproduce("table2", study)
    reproduce("table2", study)
    monkeypatch.chdir(scientific)
    reproduce("table2", study_of(tmp_path / "work", small, data=scientific))
    monkeypatch.chdir(tmp_path)
    items.write_text(items.read_text().replace("kind", "sort"))
    with pytest.raises(DataError, match=r"texts\.txt is not what it was then"):
        reproduce("table2", study)


def test_vectors_that_were_brought_in_are_kept(
    tmp_path: Path, scientific: Path, encoded: list[tuple[str, str]], small: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tmp_path / "work", small, data=scientific)
    reproduce("table3", study, Options(methods=("UniSRec",)))
    path = tmp_path / "work" / "domains" / "scientific" / "features" / "text.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "source": {"imported": "v.npy"}}))
    monkeypatch.setattr(chain, "encode_items", lambda *_: pytest.fail("the user's vectors were made anew"))
    reproduce("table3", study, Options(methods=("UniSRec",)))


def test_teachers_of_other_features_are_other_runs(
    tmp_path: Path, encoded: list[tuple[str, str]], small: RunConfig
) -> None:
    study = study_of(tmp_path / "work", small)
    reproduce("table3", study, Options(methods=("UniSRec",)))
    values = {**small.model_dump(by_alias=True, exclude_unset=True), "features": {"text": {"pooling": "cls"}}}
    other = study_of(tmp_path / "work", RunConfig.model_validate(values))
    tuned = [state for what, state in states(other).items() if what.startswith("fine-tune")]
    assert tuned == ["to do"]


def test_real_domains_come_from_a_folder(
    tmp_path: Path, scientific: Path, encoded: list[tuple[str, str]], small: RunConfig
) -> None:
    (tmp_path / "data" / "a-file.txt").write_text("no domain")
    study = study_of(tmp_path / "work", small, data=tmp_path / "data")
    found = reproduce("table3", study, Options(methods=("SASRec", "CKD-MDSR")))
    assert encoded == [("scientific", "text")]
    assert (found.example, found.domains) == (False, ("scientific",))
    table, _, headline = found.tables
    assert table.title == "scientific: test, 30 users, 20 items, seed 3"
    # The domain is one of the paper's by name: its figures stand beside ours, marked.
    assert [row[0] for row in table.rows] == ["SASRec", "  the paper's SASRec", "CKD-MDSR", "  the paper's CKD-MDSR"]
    assert table.paper_rows == (1, 3)
    assert table.rows[1][1:3] == (0.0735, 0.1064)
    assert [column.name for column in headline.columns if column.paper] == ["The paper's"]
    assert headline.rows[1][-1] == pytest.approx(0.157)
    statistics = reproduce("table2", study)
    assert [row[0] for row in statistics.tables[0].rows] == ["scientific", "  the paper's Scientific"]
    assert statistics.tables[0].rows[0][1:3] == (30, 20)
    assert statistics.tables[0].paper_rows == (1,)
    assert [note.split(" is ")[0] for note in found.notes] == ["RecGURU"]


def test_teachers_start_from_what_was_pretrained(
    tmp_path: Path, encoded: list[tuple[str, str]], small: RunConfig
) -> None:
    values = small.model_dump(by_alias=True, exclude_unset=True)
    values["methods"] = {"unisrec": {"pretrain.epochs": 1, "pretrain.batch_size": 32}}
    sources = ["example-kitchen", "example-garden"]
    study = study_of(tmp_path, RunConfig.model_validate(values), sources=sources)
    scratch = study_of(tmp_path, RunConfig.model_validate(values))
    options = Options(methods=("UniSRec",))
    found = reproduce("table3", study, options)
    (run,) = found.runs
    assert {domain for domain, name in encoded if name == "text-dropped"} == set(sources)
    (pretrained,) = (tmp_path / "pretrained").iterdir()
    assert pretrained.name in (tmp_path / run.folder / "result.json").read_text()
    # From scratch it is another run.
    assert "to do" in states(scratch, options=options).values()


def test_without_pictures_of_the_sources_pretraining_reads_texts_alone(tmp_path: Path, small: RunConfig) -> None:
    for name in ("shop", "market", "fair"):
        (tmp_path / "data" / name).mkdir(parents=True)
    options = {"data": tmp_path / "data", "names": ["shop"], "sources": ["market", "fair"], "teachers": ["unim2rec"]}
    wanted = Options(methods=("UniM²Rec",))
    study = study_of(tmp_path / "work", small, **options)
    assert study.notes == ("UniM²Rec is pre-trained on texts alone: market, fair without pictures.",)
    here = states(study, options=wanted)
    assert [what for what in here if what.startswith("encode")] == [
        "encode text of shop",
        "encode image of shop",
        "encode text of market",
        "encode text of fair",
    ]
    for source in ("market", "fair"):
        features = tmp_path / "work" / "domains" / source / "features"
        features.mkdir(parents=True)
        (features / "image.json").write_text("{}")
    seen = study_of(tmp_path / "work", small, **options)
    assert seen.notes == ()
    both = states(seen, options=wanted)
    assert both["encode image of market"] == "done"


def test_a_teacher_finished_without_ranking_lists_serves_all_but_hetcomp(
    tmp_path: Path, encoded: list[tuple[str, str]], small: RunConfig
) -> None:
    work = tmp_path / "work"
    reproduce("table3", study_of(work, small), Options(methods=("UniSRec",)))
    (teacher,) = (work / "teachers" / "example-studio").iterdir()
    shutil.rmtree(teacher / "rankings")
    kept = everything(teacher)
    reproduce("table3", study_of(work, small), Options(methods=("UniSRec", "CKD-MDSR")))
    with pytest.raises(DataError, match=r"no ranking lists kept\. .* or delete its folder"):
        reproduce("table3", study_of(work, small), Options(methods=("HetComp",)))
    assert everything(teacher) == kept


def test_runs_of_other_content_are_not_taken_for_finished(tmp_path: Path, scientific: Path, small: RunConfig) -> None:
    study = study_of(tmp_path / "work", small, data=tmp_path / "data")
    options = Options(methods=("SASRec",))
    reproduce("table3", study, options)
    assert set(states(study, options=options).values()) == {"done"}
    path = domain_folder(tmp_path / "work", "scientific") / "domain.json"
    described = json.loads(path.read_text())
    path.write_text(json.dumps({**described, "fingerprint": "other"}))
    for act in (dry_run, reproduce):
        with pytest.raises(DataError, match=r"sasrec-seed3-\w+: trained on content \w+, scientific now has other"):
            act("table3", study, options)


def test_weights_and_temperatures_are_given_by_teacher(
    tmp_path: Path, encoded: list[tuple[str, str]], small: RunConfig
) -> None:
    values = small.model_dump(by_alias=True, exclude_unset=True)

    def study(**distill: Any) -> Study:
        return study_of(tmp_path, RunConfig.model_validate({**values, "distill": distill}))

    options = Options(methods=("CKD-MDSR",))
    for section, message in (({"weights": {"recformer": 1}}, "weights"), ({"temperature": {"x": 1}}, "temperature")):
        with pytest.raises(ConfigError, match=rf"distill\.{message}: none for teacher 'unisrec'; given: \["):
            dry_run("table3", study(**section), options)
    found = reproduce("table3", study(weights={"unisrec": 2}, temperature={"unisrec": 0.3}), options)
    (run,) = found.runs
    described = json.loads((tmp_path / run.folder / "student.json").read_text())
    (teacher,) = described["identity"]["teachers"]
    assert described["identity"]["distill"]["temperature"] == {teacher: 0.3}


def test_recguru_takes_another_domain_of_the_example(tmp_path: Path, small: RunConfig) -> None:
    for name, source in (("example-kitchen", "example-garden"), ("example-studio", "example-kitchen")):
        study = study_of(tmp_path, small, names=[name])
        here = states(study, options=Options(methods=("RecGURU",)))
        assert f"prepare {source}" in here


def test_an_unknown_method_is_refused_before_anything_is_made(tmp_path: Path, small: RunConfig) -> None:
    study = study_of(tmp_path / "work", small)
    for act in (dry_run, reproduce):
        with pytest.raises(ConfigError, match=r"no method 'SASRek' here\. Did you mean 'SASRec'"):
            act("table3", study, Options(methods=("SASRek",)))
    assert not (tmp_path / "work").exists()
