"""Baselines and the serving report through the `ckd` command: results, and bad input in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Ckd = Callable[..., Any]
Snapshots = Callable[[Path], dict[str, tuple[int, bytes]]]

HETCOMP = [
    *("-o", "baseline.length=12", "-o", "baseline.period=1", "-o", "baseline.epochs=2"),
    *("-o", "baseline.validate_every=1", "-o", "baseline.metric=ndcg@10"),
]
RECGURU = [
    *("-o", "baseline.hidden_size=8", "-o", "baseline.inner_size=8", "-o", "baseline.n_layers=1"),
    *("-o", "baseline.recon_negatives=2", "-o", "baseline.warmup_epochs=1", "-o", "baseline.epochs=2"),
    *("-o", "baseline.critic_steps=1"),
]


def at(studio: Any) -> list[str]:
    return ["--domain", studio.domain.name, "--work", str(studio.work)]


def test_hetcomp_from_the_teachers_to_the_recommendations(ckd: Ckd, studio: Any, config: Path) -> None:
    tune = ["finetune-teacher", *at(studio), "--teacher", "unisrec", "--config", config, "-o", "train.epochs=2"]
    found = ckd(*tune, "--run", "kept", "--keep-rankings", 1, "--json")
    assert found.code == 0, found.err
    assert found.json["rankings"][0] == 0
    people = ckd(*tune, "--run", "kept", "--keep-rankings", 1)
    assert "ranking lists kept of epochs 0" in people.out
    train = ["train-baseline", *at(studio), "--baseline", "hetcomp", "--config", config, *HETCOMP, "--student", "mf"]
    people = ckd(*train, "-o", "student={embedding_size: 8}")
    assert people.code == 0, people.err
    assert "hetcomp-mf-kept: best epoch" in people.out
    lines = people.err.splitlines()
    assert len(lines) == 2
    pattern = r"epoch +\d+ (overall|rank) +level \d.*, loss \d.*valid N@10 \d.* s"
    assert [line for line in lines if not re.fullmatch(pattern, line)] == []
    again = ckd(*train, "-o", "student={embedding_size: 8}", "--teachers", "kept", "--json")
    assert (again.json["reused"], again.err) == (True, "")
    assert [row["epoch"] for row in again.json["log"]] == [0, 1]
    evaluated = ckd("evaluate", *at(studio), "--run", "hetcomp-mf-kept", "--against", "kept", "--json").json
    assert evaluated["comparisons"]["mrr"]["n"] == studio.domain.n_users
    told = ckd(*train, "-o", "student={embedding_size: 8}", "-o", "train.lr=1", "-o", "train.device=cpu", "--json")
    assert told.json["reused"]
    assert told.err == (
        "ckd: train.lr: a baseline's settings are its section baseline, and of train the device; "
        "it changes nothing here.\n"
    )
    request = studio.work / "requests.jsonl"
    request.write_text(json.dumps({"user": studio.domain.user_ids[0]}))
    answer = ckd("recommend", *at(studio), "--run", "hetcomp-mf-kept", "-k", 3, request)
    assert len(json.loads(answer.out)["items"]) == 3
    refused = ckd("export", *at(studio), "--run", "hetcomp-mf-kept", "--to", "recbole")
    assert refused.err == "ckd: mf cannot be exported to RecBole: only bert4rec, gru4rec, sasrec can.\n"


def test_recguru_and_the_serving_report(ckd: Ckd, studio: Any, config: Path) -> None:
    source = sorted(p.name for p in (studio.work / "domains").iterdir() if p.name != studio.domain.name)[0]
    train = ["train-baseline", *at(studio), "--baseline", "recguru", "--source", source, "--config", config, *RECGURU]
    people = ckd(*train)
    assert people.code == 0, people.err
    assert [line.split()[2] for line in people.err.splitlines()] == ["warmup", "adversarial", "tuning"]
    run = f"recguru-{source}"
    assert f"{run}: best epoch" in people.out
    told = ckd(*train, "-o", "student.hidden_size=16", "-o", "plan.buckets=2", "-o", "seed=3", "--json")
    assert told.json["reused"]
    assert told.err == (
        "ckd: student.hidden_size: recguru trains a model of its own; it changes nothing here.\n"
        "ckd: plan.buckets: of settings this command reads seed, baseline, student, train; it changes nothing here.\n"
    )
    serve = ["serving", *at(studio), "--runs", f"{run},unisrec-0", "--batch-sizes", "1,4", "--repeats", 2]
    table = ckd(*serve, "--device", "cpu", "--json").json
    assert [row["run"] for row in table["rows"]] == [run, "unisrec-0"]
    student, teacher = table["rows"]
    assert student["time_ratio"] == student["memory_ratio"] == {"1": 1.0, "4": 1.0}
    assert teacher["latency"]["4"]["low_ms"] <= teacher["latency"]["4"]["median_ms"]
    people = ckd(*serve)
    assert people.code == 0, people.err
    text = " ".join(people.out.split())
    for part in (
        "serving 40 items on cpu",
        "Requests of 1 user: median of 2",
        "Requests of 4 users",
        "MFLOPs",
        "1.00x",
    ):
        assert part in text


#: Words of a command, {name} filled in; and what the line must say.
BAD: list[tuple[str, str]] = [
    ("train-baseline --domain absent --baseline hetcomp", r"no prepared domain"),
    ("train-baseline --domain {domain} --baseline hetcomb", r"unknown baseline 'hetcomb'\. Did you mean 'hetcomp'"),
    ("train-baseline --domain {domain} --baseline hetcomp", r"no teacher has kept ranking lists\. Run `ckd finetune-"),
    (
        "train-baseline --domain {domain} --baseline hetcomp --teachers unisrec-0",
        r"unisrec-0: no ranking lists kept\. Fine-tune it with `ckd finetune-teacher --keep-rankings 1`",
    ),
    ("train-baseline --domain {domain} --baseline hetcomp --teachers absent", r"absent/result\.json: no such file"),
    ("train-baseline --domain {domain} --baseline hetcomp --source {domain}", r"hetcomp learns from teachers: name"),
    (
        "train-baseline --domain {domain} --baseline hetcomp -o baseline.epoch=1 --teachers t",
        r"unknown key 'epoch'\. Did",
    ),
    ("train-baseline --domain {domain} --baseline recguru", r"name a source domain \(--source\), and no teachers"),
    ("train-baseline --domain {domain} --baseline recguru --source absent", r"absent: no prepared domain"),
    ("train-baseline --domain {domain} --baseline recguru --source {domain}", r"is the target itself"),
    ("train-baseline --domain {domain} --baseline recguru --source s --student fm", r"leave out the student 'fm'"),
    ("train-baseline --domain {domain} --baseline recguru --source {source} --run a/b", r"run 'a/b': use letters"),
    (
        "train-baseline --domain {domain} --baseline recguru --source {source} -o baseline.n_heads=7",
        r"baseline: n_heads=7: .*hidden_size",
    ),
    (
        "finetune-teacher --domain {domain} --teacher unisrec --run unisrec-0 --keep-rankings 1 {same}",
        r"unisrec-0: a finished teacher of which no ranking lists were kept, not every 1\. Give another --run",
    ),
    ("serving --domain absent --runs r", r"no prepared domain"),
    ("serving --domain {domain} --runs absent", r"no such run\. Runs of .*unisrec-0"),
    ("serving --domain {domain} --runs unisrec-0 --batch-sizes 0", r"a request of 0 users: give from 1 to"),
    ("serving --domain {domain} --runs unisrec-0 --batch-sizes 1000001", r"a request of 1,000,001 users: give from 1"),
    ("serving --domain {domain} --runs unisrec-0 --device tpu9", r"--device='tpu9'"),
    ("serving --domain {domain} --runs unisrec-0 --device meta", r"--device='meta': holds no numbers"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[words for words, _ in BAD])
def test_bad_input_is_one_line(
    ckd: Ckd, everything: Snapshots, studio: Any, config: Path, words: str, message: str
) -> None:
    source = sorted(p.name for p in (studio.work / "domains").iterdir() if p.name != studio.domain.name)[0]
    places = {"domain": studio.domain.name, "source": source, "same": f"--config {config} --seed 0"}
    before = everything(studio.work)
    found = ckd(*words.format(**places).split(), "--work", studio.work)
    assert (found.code, found.out) == (1, "")
    assert found.err.startswith("ckd: ")
    assert found.err.count("\n") == 1, found.err
    assert re.search(message, found.err), found.err
    assert everything(studio.work) == before


@pytest.mark.parametrize(
    "words",
    [
        "train-baseline --domain d",
        "train-baseline --domain d --baseline hetcomp --teachers ,",
        "finetune-teacher --domain d --teacher t --keep-rankings 0",
        "serving --domain d",
        "serving --domain d --runs r --repeats 0",
        "serving --domain d --runs r --batch-sizes 1,x",
        "serving --domain d --runs r --batch-sizes 99999999999999999999999",
        f"serving --domain d --runs r --batch-sizes {'9' * 5000}",
    ],
)
def test_wrong_usage_exits_with_two(ckd: Ckd, words: str) -> None:
    found = ckd(*words.split())
    assert found.code == 2
    assert "Traceback" not in found.err
