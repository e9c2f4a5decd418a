"""Every command of `ckd reproduce`, through its entry point, on the example at its smallest with all three teachers.

The commands share one work folder, as they do in use: each finds the runs of those before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import BertConfig, BertModel, BertTokenizer
from transformers.utils import logging

from ckd.pipelines.reproduce import EXPERIMENTS, serving
from ckd.pipelines.reproduce.result import Experiment, load_experiments

Ckd = Callable[..., Any]

DOMAIN = "example-studio"

#: One epoch of everything.
CONFIG: dict[str, Any] = {
    "seed": 3,
    "plan": {"batch_size": 64, "buckets": 2, "epochs": 2},
    "train": {"epochs": 1, "device": "cpu"},
    "student": {"hidden_size": 8, "inner_size": 8, "embedding_size": 8, "n_layers": 1, "n_heads": 2},
    "teacher": {"hidden_size": 8, "inner_size": 8, "n_experts": 2, "n_layers": 1, "n_heads": 2},
    "baseline": {"epochs": 1, "warmup_epochs": 1, "hidden_size": 8, "inner_size": 8, "n_layers": 1},
}
RECFORMER: dict[str, Any] = {
    "teacher.layers": 1,
    "teacher.window": 8,
    "teacher.max_attribute_length": 6,
    "teacher.max_items": 3,
    "teacher.max_tokens": 24,
    "train.batch_size": 128,
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reproduce") / "work"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration, with a language model of sixteen numbers that spells."""
    folder = tmp_path_factory.mktemp("backbone")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *(h + c for c in "abcdefghijklmnopqrstuvwxyz" for h in ("", "##")),
    ]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        BertModel(
            BertConfig(vocab_size=len(words), pad_token_id=0, max_position_embeddings=40, **sizes)
        ).save_pretrained(folder)
    BertTokenizer(vocab={word: at for at, word in enumerate(words)}).save_pretrained(folder)
    path = folder / "ckd.yaml"
    methods = {"recformer": {**RECFORMER, "teacher.backbone": str(folder)}}
    path.write_text(yaml.safe_dump({**CONFIG, "methods": methods}))
    return path


@pytest.fixture(autouse=True)
def _small(encoded: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny domains, features without an encoder, few requests."""
    monkeypatch.setattr(serving, "REPEATS", 2)


@pytest.fixture
def reproduce(ckd: Ckd, work: Path, settings: Path) -> Callable[..., Any]:
    """`ckd reproduce` with the shared work folder and configuration."""

    def run(name: str, *words: Any) -> Any:
        return ckd("reproduce", name, "--work", work, "--config", settings, *words)

    return run


def loaded(work: Path, name: str, seeds: str = "") -> Experiment:
    """A result of the configuration, which its name ends with."""
    (path,) = (work / "experiments").glob(f"{name}-{DOMAIN}{seeds}-[0-9a-f]*.json")
    return Experiment.load(path)


def test_every_experiment_has_a_command(ckd: Ckd) -> None:
    listed = ckd("reproduce", "--help").out
    assert all(f"\n  {name} " in listed for name in EXPERIMENTS)


def test_a_dry_run_lists_every_step_and_makes_nothing(reproduce: Any, ckd: Ckd, settings: Path, tmp_path: Path) -> None:
    words = ["reproduce", "table3", "--work", tmp_path / "w", "--config", settings, "--dry-run"]
    dry = ckd(*words, "--json").json
    assert {step["state"] for step in dry["steps"]} == {"to do"}
    assert {step["source"] for step in dry["steps"]} == {"assumed"}
    assert dry["seconds"] == pytest.approx(sum(step["seconds"] for step in dry["steps"]))
    # What it takes on two cores, as the README has it: minutes.
    assert 240 < dry["seconds"] < 480
    steps = [step["what"] for step in dry["steps"]]
    for word in ("prepare", "encode image", "fine-tune Recformer", "plan", "score", "train HetComp", "train RecGURU"):
        assert any(step.startswith(word) for step in steps)
    people = ckd(*words).out
    assert f"{len(steps)} of {len(steps)} steps to do" in people
    assert "Assumed rates are those of two cores on the example" in people
    assert not (tmp_path / "w").exists()


def test_table2(reproduce: Any, work: Path) -> None:
    found = reproduce("table2", "--domains", f"example-garden,{DOMAIN}")
    assert found.code == 0, found.err
    assert "Sparsity" in found.out
    assert (work / "experiments" / f"table2-example-garden+{DOMAIN}.json").exists()


def test_table3(reproduce: Any, work: Path) -> None:
    found = reproduce("table3")
    assert found.code == 0, found.err
    assert "train CKD-MDSR" in found.err
    printed = " ".join(found.out.split())
    # Nine comparisons with the base and one with PRM-KD, on six metrics.
    assert "Holm-corrected over 60 comparisons" in printed
    result = loaded(work, "table3")
    methods = ["UniSRec", "Recformer", "UniM²Rec", "GRU4Rec", "SASRec", "BERT4Rec", "RecGURU", "HetComp", "PRM-KD"]
    assert [run.method for run in result.runs] == [*methods, "CKD-MDSR"]
    assert all(name in found.out for name in methods)
    teachers = {run.run for run in result.runs if run.kind == "teacher"}
    by_name = {run.method: run for run in result.runs}
    assert set(by_name["CKD-MDSR"].teachers) == set(by_name["HetComp"].teachers) == teachers
    assert result.command.startswith("ckd reproduce table3 --work ")
    assert result.made_with is not None
    assert result.made_with.startswith("Made with seed 3; teachers unisrec, recformer, unim2rec; ")
    assert result.made_with in printed
    assert f"Kept in the work folder as experiments/{result.stem}.json." in printed
    again = reproduce("table3", "--json")
    assert again.err == ""
    assert [run["metrics"] for run in again.json["runs"]] == [run.metrics for run in result.runs]
    some = reproduce("table3", "--methods", "sasrec, gru4rec", "--json").json
    assert [run["method"] for run in some["runs"]] == ["GRU4Rec", "SASRec"]
    # A part does not take the place of the whole.
    assert len(loaded(work, "table3").runs) == 10
    assert len(loaded(work, "table3-gru4rec-sasrec").runs) == 2


def test_numbers_are_never_cut_off(reproduce: Any, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckd.console.out.width", 60)
    found = reproduce("table3")
    for table in loaded(work, "table3").tables:
        for row in range(len(table.rows)):
            for column in range(1, len(table.columns)):
                assert table.text(row, column) in found.out
    assert "(continued)" in found.out


def test_table5_and_figure1(reproduce: Any, work: Path) -> None:
    found = reproduce("table5")
    assert found.code == 0, found.err
    (table,) = loaded(work, "table5").tables
    assert [row[0] for row in table.rows] == ["SASRec", "UniSRec", "Recformer", "UniM²Rec", "CKD-MDSR"]
    base, *_, ours = table.rows
    assert base[2:6] == (1.0, 1.0, 1.0, 1.0)
    # The distilled student is the base model with other weights.
    assert (ours[2], ours[4], ours[6:9]) == (1.0, 1.0, base[6:9])
    assert reproduce("figure1", "--json").json["panels"][0]["style"] == "bubbles"
    points = loaded(work, "figure1").panels[0].series[0].points
    assert [point.label for point in points] == [row[0] for row in table.rows]
    assert all(isinstance(point.x, float) and point.size and point.x > 0 for point in points)


def test_figure3(reproduce: Any, work: Path) -> None:
    reproduce("table3")
    found = reproduce("figure3")
    assert found.code == 0, found.err
    result = loaded(work, "figure3")
    changed = {run.method: run for run in result.runs}
    assert list(changed) == [
        *("SASRec", "CKD-MDSR", "w/o MT1 (UniSRec alone)", "w/o MT2 (Recformer alone)", "w/o MT3 (UniM²Rec alone)"),
        *("w/o CSS", "w/o IN", "w/o WA"),
    ]
    assert len({run.run for run in result.runs}) == 8
    assert [len(run.teachers) for run in result.runs] == [0, 3, 1, 1, 1, 3, 3, 3]
    # The base and the distilled student are those of Table 3, and so is PRM-KD, which has no curriculum.
    table3 = {run.method: run.run for run in loaded(work, "table3").runs}
    assert [changed[name].run for name in ("SASRec", "CKD-MDSR", "w/o CSS")] == [
        table3[name] for name in ("SASRec", "CKD-MDSR", "PRM-KD")
    ]
    assert [len(panel.series[0].points) for panel in result.panels] == [7, 7]
    assert result.panels[0].reference is not None


def test_figure4(reproduce: Any, work: Path) -> None:
    found = reproduce("figure4")
    assert found.code == 0, found.err
    result = loaded(work, "figure4")
    assert {(each.method, each.against) for each in result.differences} == {
        (f"CKD-MDSR {name}", name) for name in ("FM", "DeepFM", "LightGCN")
    }
    assert [series.name for series in result.panels[0].series] == ["without", "with distillation"]
    one = reproduce("figure4", "--methods", "fm", "--json").json
    assert [run["method"] for run in one["runs"]] == ["FM", "CKD-MDSR FM"]


def test_figure5(reproduce: Any, work: Path) -> None:
    found = reproduce("figure5", "--what", "dimension")
    assert found.code == 0, found.err
    result = loaded(work, "figure5-dimension")
    (panel,) = result.panels
    assert (panel.style, [point.x for point in panel.series[0].points]) == ("lines", [16, 32, 64, 128])
    assert [row[0] for row in result.tables[0].rows] == ["SASRec", "as configured", "16", "32", "64", "128"]
    steps = reproduce("figure5", "--dry-run", "--json").json["steps"]
    trained = [step["what"] for step in steps if step["what"].startswith("train ") and step["state"] == "to do"]
    # Seven temperatures and six weights, of which the configured one is there already, and so are the dimensions.
    assert len(trained) == 7 + 5


def test_open_questions(reproduce: Any, work: Path) -> None:
    found = reproduce("open-questions", "--what", "difficulty,direction")
    assert found.code == 0, found.err
    result = loaded(work, "open-questions-difficulty-direction")
    assert [panel.x_label for panel in result.panels] == ["Difficulty", "First in KL"]
    runs = {run.method: run.run for run in result.runs}
    # What is configured, and what another experiment has trained, is not trained again.
    assert runs["Difficulty ssl"] == runs["First in KL student"] == runs["CKD-MDSR"]
    assert reproduce("table3", "--methods", "prm-kd", "--json").json["runs"][0]["run"] == runs["Difficulty none"]
    dry = reproduce("open-questions", "--dry-run", "--json").json["steps"]
    listed = " ".join(step["what"] for step in dry)
    for what in ("Buckets B", "Popularity's weight α", "Share that keeps", "Normalisation", "Pool fresh"):
        assert what in listed


def test_cold_start(reproduce: Any, work: Path) -> None:
    found = reproduce("cold-start")
    assert found.code == 0, found.err
    result = loaded(work, "cold-start")
    lengths, popularity = result.tables
    for table in (lengths, popularity):
        assert sum(int(row[1]) for row in table.rows) == 60  # type: ignore[arg-type]
    assert len(result.panels) == 2
    assert {each.metric.split(" of ")[0] for each in result.differences} == {"recall@10", "ndcg@10"}


def test_what_was_measured_is_what_is_estimated(reproduce: Any, work: Path) -> None:
    reproduce("table3", "--methods", "SASRec")
    dry = reproduce("table3", "--methods", "SASRec", "--seeds", 2, "--dry-run", "--json").json
    left = {step["what"]: step["source"] for step in dry["steps"] if step["state"] == "to do"}
    assert left[f"train SASRec on {DOMAIN}, seed 4"] == "measured"
    assert "like runs here" in reproduce("table3", "--methods", "SASRec", "--seeds", 2, "--dry-run").out


#: Words of a command, and what the line must say.
BAD = [
    ("table3 --methods SASRek", r"no method 'SASRek' here\. Did you mean 'SASRec'"),
    ("table3 --teachers unisrek", r"unknown teacher 'unisrek'\. Did you mean 'unisrec'"),
    ("table3 --sources example-studio", r"domain 'example-studio': a source of pre-training cannot be a target too"),
    ("figure4 --methods SASRec", r"no method 'SASRec' here\. .*FM"),
    ("figure5 --what buckets", r"--what buckets: no such setting\. Known: dimension, lambda, temperature"),
    ("open-questions --what epsilon --teachers unisrec", r"--what epsilon: has an effect with 3 teachers or more"),
    ("table2 --domains absent", r"no domain 'absent' in the built-in example"),
    ("cold-start --data absent", r"absent: no such folder"),
    ("figure3 -o student.hidden_sise=8", r"student: no model has a key 'hidden_sise'\. Did you mean 'hidden_size'"),
    ("table5 -o methods.unisrek={}", r"methods: no method 'unisrek'\. Did you mean 'unisrec'"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input_is_one_line(ckd: Ckd, tmp_path: Path, words: str, message: str) -> None:
    found = ckd("reproduce", *words.split(), "--work", tmp_path / "w")
    assert found.code == 1
    assert re.fullmatch(rf"ckd: .*{message}[^\n]*\n", found.err), found.err
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    "words", ["table2 --seeds 2", "table2 --methods SASRec", "table5 --what x", "figure5 --seeds 0"]
)
def test_options_that_would_do_nothing_are_no_options(ckd: Ckd, words: str) -> None:
    assert ckd("reproduce", *words.split()).code == 2


def test_all_results_load_together(reproduce: Any, work: Path) -> None:
    reproduce("table2")
    assert "table2" in {experiment.name for experiment in load_experiments(work)}
