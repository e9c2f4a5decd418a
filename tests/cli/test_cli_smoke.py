"""Every `ckd` command through its entry point: help, usage, and results for people and for programs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
import pytest
import torch
import typer.main

from ckd import cli
from ckd.data.domain import Domain
from ckd.data.example import TINY
from ckd.pipelines import example
from ckd.teachers.unisrec import UniSRec

Ckd = Callable[..., Any]
Snapshots = Callable[[Path], dict[str, tuple[int, bytes]]]


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    def walk(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield path, command
        for name, child in getattr(command, "commands", {}).items():
            yield from walk((*path, name), child)

    yield from walk((), typer.main.get_command(cli.app))


# --- help and usage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_command_explains_itself(ckd: Ckd, path: tuple[str, ...]) -> None:
    found = ckd(*path, "--help")
    assert (found.code, found.err) == (0, "")
    command = dict(commands())[path]
    assert command.help
    assert " ".join(command.help.split())[:40] in " ".join(found.out.split())
    for parameter in command.params:
        if parameter.name != "help":
            assert getattr(parameter, "help", None), f"{parameter.name} has no help"
            assert max(parameter.opts, key=len).lstrip("-").replace("_", "-").lower() in found.out.lower()


def test_the_commands_are_these() -> None:
    assert {" ".join(path) for path, _ in commands()} >= {
        *("", "prepare", "example", "encode-items", "pretrain-teacher", "finetune-teacher", "plan", "teacher-score"),
        *("train-student", "evaluate", "teacher import", "store inspect", "store verify", "reproduce table3"),
    }


HEAVY = ("torch", "polars", "numpy", "yaml", "pyarrow", "transformers", "matplotlib", "rich.table")


@pytest.mark.parametrize("words", [["--help"], ["store", "--help"], ["train-student", "--help"], ["plan"]])
def test_help_and_usage_import_nothing_heavy(words: list[str]) -> None:
    script = f"""
import sys
from ckd.cli import main
sys.argv = ["ckd", *{words!r}]
try:
    main()
except SystemExit:
    pass
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("start", [[sys.executable, "-m", "ckd"], [str(Path(sys.executable).parent / "ckd")]])
def test_the_installed_command(tmp_path: Path, start: list[str]) -> None:
    if not Path(start[0]).exists():
        pytest.skip("ckd is not installed as a script here")

    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*start, *words], capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **env}
        )

    assert "teacher-score" in run("--help").stdout
    assert run("plan").returncode == 2
    wrong = run("store", "inspect", str(tmp_path / "absent"))
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert re.fullmatch(r"ckd: .*absent/manifest\.json: no such file[^\n]*\n", wrong.stderr)
    assert "Traceback" in run("store", "inspect", str(tmp_path / "absent"), CKD_DEBUG="1").stderr


def test_an_interrupted_command_says_so(tmp_path: Path) -> None:
    script = "import sys; from ckd.cli import main; sys.argv[0] = 'ckd'; main()"
    words = ["example", "--work", str(tmp_path / "w")]
    hold = """
import time
from ckd.pipelines import example
example.prepare_example = lambda *_, **__: print("on", flush=True) or time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", hold + script, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (
        err == "\nckd: interrupted; nothing half-made counts. The same command goes on where training or scoring was.\n"
    )


#: Unknown commands and options, missing and surplus ones, and values that no option takes.
WRONG = [
    "no-such-command",
    "plan",
    "plan --domain",
    "plan --domain d --no-such-option",
    "plan --domain d --seed x",
    "prepare",
    "encode-items",
    "pretrain-teacher --teacher unisrec",
    "pretrain-teacher --teacher unisrec --domains ,",
    "finetune-teacher --domain d",
    "teacher-score --domain d --teacher t --workers 0",
    "teacher-score --domain d --teacher t --user-vectors f",
    "teacher-score --domain d --teacher t --user-vectors f --item-vectors f",
    "teacher-score --domain d --teacher vectors --user-vectors f --item-vectors f --dry-run",
    "train-student --domain d --teachers t --no-distill",
    "train-student --domain d --teachers ,",
    "evaluate --domain d",
    "teacher import",
    "store",
    "store inspect",
    "store inspect s --batch -1",
    "reproduce table9",
    "reproduce table3 --seeds 0",
    "example surplus",
]


@pytest.mark.parametrize("words", WRONG)
def test_wrong_usage_exits_with_two(ckd: Ckd, everything: Snapshots, tmp_path: Path, words: str) -> None:
    found = ckd(*words.split())
    assert found.code == 2
    assert re.search(r"^(Usage: ckd |Error: Option)", found.err + found.out)
    assert "Traceback" not in found.err
    assert everything(tmp_path / "here") == {}


# --- results for programs and for people -----------------------------------------------------------------------------


def test_prepare(ckd: Ckd, tmp_path: Path) -> None:
    source = tmp_path / "shop.csv"
    source.write_text("user,item,timestamp\n" + "".join(f"u{n % 9},i{n % 7},{n}\n" for n in range(60)))
    found = ckd("prepare", source, "--work", tmp_path / "w", "-o", "prepare.k_core_user=2", "--json")
    assert (found.code, found.err) == (0, "")
    assert (found.json["domain"], found.json["format"], found.json["read"]) == ("shop", "csv", 60)
    assert found.json["statistics"]["users"] == 9
    assert Domain.load(tmp_path / "w" / "domains" / "shop").fingerprint == found.json["fingerprint"]
    people = ckd("prepare", source, "--work", tmp_path / "w", "--name", "other", "-o", "prepare.k_core_user=2")
    assert people.code == 0
    assert "Sparsity" in people.out
    assert "read as csv; 60 interactions" in people.out
    source.write_text(source.read_text() + "u1,i1,99\n")
    again = ("prepare", source, "--work", tmp_path / "w", "-o", "prepare.k_core_user=2")
    refused = ckd(*again)
    assert refused.code == 1
    assert re.fullmatch(r"ckd: \S+shop/domain\.json: is another domain, .* or say --replace\.\n", refused.err)
    assert ckd(*again, "--replace", "--json").json["read"] == 61


def test_example(ckd: Ckd, everything: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = example.prepare_example
    monkeypatch.setattr(example, "prepare_example", lambda work, seed, replace: real(work, seed, TINY, replace))
    found = ckd("example", "--work", tmp_path / "w", "--seed", "5", "--json")
    assert found.json["example-studio"]["users"] == 60
    monkeypatch.setenv("CKD_WORK", str(tmp_path / "w"))
    people = ckd("example", "--seed", 5)
    assert "example-kitchen" in people.out
    assert everything(tmp_path / "here") == {}


def test_encode_items(ckd: Ckd, studio: Any, tmp_path: Path) -> None:
    name, n = studio.domain.name, studio.domain.n_items
    np.save(tmp_path / "v.npy", np.ones((n, 3), dtype=np.float32))
    (tmp_path / "ids.txt").write_text("\n".join(studio.domain.item_table["raw_id"]) + "\n")
    words = ["encode-items", "--work", studio.work, "--domain", name, "--vectors", tmp_path / "v.npy"]
    words += ["--ids", tmp_path / "ids.txt", "--feature", "mine"]
    found = ckd(*words, "--json").json
    assert (found["feature"], found["dim"], found["present"]) == ("mine", 3, n)
    people = ckd(*words)
    assert f"Feature mine of {name}" in people.out


def test_pretrain_teacher(ckd: Ckd, studio: Any, config: Path) -> None:
    sources = ",".join(sorted(p.name for p in (studio.work / "domains").iterdir() if p.name != studio.domain.name))
    words = ["pretrain-teacher", "--teacher", "unisrec", "--domains", sources, "--work", studio.work]
    words += ["--config", config, "-o", "train.epochs=1", "-o", "teacher.item_drop_share=1"]
    found = ckd(*words, "--json")
    assert found.code == 0, found.err
    assert found.json["reused"] is False
    assert Path(found.json["folder"], "model.safetensors").exists()
    assert ckd(*words, "--json").json == {**found.json, "reused": True}
    assert "Pre-trained unisrec" in ckd(*words).out


def test_finetune_teacher(ckd: Ckd, studio: Any, config: Path) -> None:
    words = ["finetune-teacher", "--domain", studio.domain.name, "--teacher", "unisrec", "--work", studio.work]
    words += ["--config", config, "--seed", 8, "--run", "eighth"]
    found = ckd(*words)
    assert found.code == 0, found.err
    assert "R@10" in found.out
    assert len(re.findall(r"epoch +\d+ full +loss \d", found.err)) == 3
    again = ckd(*words, "--json")
    assert again.json["reused"] is True
    assert set(again.json["metrics"]) == {"valid", "test"}
    assert again.err == ""


def test_teacher_import(ckd: Ckd, studio: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = UniSRec.create(UniSRec.Config(**studio.config.teacher), studio.domain)
    torch.save(published.state_dict(), tmp_path / "published.pth")
    words = ["teacher", "import", tmp_path / "published.pth", "--teacher", "unisrec", "--work", studio.work]
    found = ckd(*words, "--run", "one", "-o", "teacher.n_heads=2", "--json")
    assert found.code == 0, found.err
    assert found.json["parameters"] > 0
    people = ckd(*words, "--run", "two", "-o", "teacher.n_heads=2")
    assert "Imported unisrec" in people.out


def test_plan(ckd: Ckd, studio: Any, config: Path, tmp_path: Path) -> None:
    words = ["plan", "--domain", studio.domain.name, "--work", studio.work, "--config", config]
    found = ckd(*words, "--json")
    assert (found.json["plan"], found.json["reused"], found.json["stages"]) == (studio.plan, True, [])
    shown = ckd(*words, "--show", "--figure", tmp_path / "plan.svg", "--json")
    assert [stage["stage"] for stage in shown.json["stages"]] == ["1", "2", "full"]
    assert (tmp_path / "plan.svg").read_bytes().startswith(b"<?xml")
    people = ckd(*words, "--show")
    assert "Curriculum" in people.out
    assert (studio.work / "plans" / studio.domain.name / studio.plan / "curriculum.png").exists()


@pytest.mark.parametrize(("epochs", "short"), [(1, True), (2, False), (3, False)])
def test_a_plan_that_ends_within_its_curriculum_says_so(
    ckd: Ckd, studio: Any, config: Path, epochs: int, short: bool
) -> None:
    words = ["plan", "--domain", studio.domain.name, "--work", studio.work, "--config", config]
    found = ckd(*words, "-o", f"plan.epochs={epochs}")
    assert ("ends in stage 1 of 2: the harder instances are in no epoch" in found.out) == short
    assert ("plan.epochs has to be at least 2." in found.out) == short


def test_plan_dry_run(ckd: Ckd, everything: Snapshots, studio: Any, config: Path) -> None:
    before = everything(studio.work)
    words = ["plan", "--domain", studio.domain.name, "--work", studio.work, "--config", config, "--seed", 99]
    found = ckd(*words, "--dry-run", "--json").json
    assert set(found["bytes"]) == {"f16", "tensor", "u8", "vectors"}
    assert "Bytes for one teacher" in ckd(*words, "--dry-run").out
    assert everything(studio.work) == before


def test_teacher_score(ckd: Ckd, everything: Snapshots, studio: Any, config: Path, tmp_path: Path) -> None:
    words = ["teacher-score", "--domain", studio.domain.name, "--teacher", "unisrec-0", "--work", studio.work]
    words += ["--config", config]
    before = everything(studio.work)
    dry = ckd(*words, "--dry-run", "--codec", "u8", "--json").json
    assert (dry["instances"], dry["items"]) == (len(studio.domain.instances("train")), studio.domain.n_items)
    assert "would take" in ckd(*words, "--dry-run").out
    assert everything(studio.work) == before
    found = ckd(*words, "--codec", "u8", "--scores", tmp_path / "s", "--plan", studio.plan, "--json")
    assert found.code == 0, found.err
    assert (found.json["codec"], found.json["encoded now"]) == ("u8", 0)
    assert Path(found.json["store"], "manifest.json").exists()
    assert "Scored" in ckd(*words).out


def test_teacher_score_with_vectors_of_any_model(ckd: Ckd, studio: Any, tmp_path: Path) -> None:
    domain, draws = studio.domain, np.random.default_rng(0)
    for name, column, ids in (("u", "user", domain.user_ids), ("i", "item", domain.item_table["raw_id"])):
        vectors = draws.normal(size=(len(ids), 4)).astype(np.float32).tolist()
        pl.DataFrame({column: ids, "vector": vectors}).write_parquet(tmp_path / f"{name}.parquet")
    words = ["teacher-score", "--domain", domain.name, "--teacher", "vectors", "--work", studio.work]
    words += ["--user-vectors", tmp_path / "u.parquet", "--item-vectors", tmp_path / "i.parquet", "--run", "theirs"]
    found = ckd(*words, "--json")
    assert found.code == 0, found.err
    assert found.json["store"].endswith("/theirs")
    assert found.json["encoded now"] == len(domain.instances("train")) + domain.n_items


def test_train_student(ckd: Ckd, studio: Any, config: Path) -> None:
    words = ["train-student", "--domain", studio.domain.name, "--work", studio.work, "--config", config]
    found = ckd(*words)
    assert found.code == 0, found.err
    assert "best epoch" in found.out
    lines = found.err.splitlines()
    assert len(lines) == 3
    assert all(
        re.fullmatch(r"epoch +\d+ .*\(CE \d.*, KL \d.*\)  .*valid N@10 .*inst/s, waiting .*", line) for line in lines
    )
    again = ckd(*words, "--json")
    assert (again.json["reused"], again.json["mismatches"]) == (True, {})
    assert again.json["folder"].endswith("sasrec-unisrec-0-unisrec-1-unisrec-2")
    assert [row["epoch"] for row in again.json["log"]] == [0, 1, 2]
    some = ckd(*words, "--teachers", "unisrec-2, unisrec-0", "--plan", studio.plan, "--json").json
    assert some["folder"].endswith("sasrec-unisrec-2-unisrec-0")
    base = ckd(*words, "--no-distill", "--run", "base", "-o", "train.epochs=1", "--json")
    assert (base.err, len(base.json["log"])) == ("", 1)
    other = ckd(*words, "--no-distill", "--run", "base", "--restart", "--json")
    assert len(other.json["log"]) == 3


def test_a_mismatch_is_shown_wherever_the_student_is(ckd: Ckd, studio: Any, config: Path) -> None:
    teachers = studio.work / "teachers" / studio.domain.name
    for name in ("model.safetensors", "teacher.json"):
        (teachers / "unisrec-1" / name).write_bytes((teachers / "unisrec-2" / name).read_bytes())
    words = ["train-student", "--domain", studio.domain.name, "--work", studio.work, "--config", config]
    refused = ckd(*words)
    assert refused.code == 1
    assert "made for teacher" in refused.err
    found = ckd(*words, "--allow-mismatch")
    assert found.code == 0
    assert "trained on scores of unisrec-1 that were made for teacher" in " ".join(found.out.split())
    assert ckd(*words, "--allow-mismatch", "--json").json["mismatches"].keys() == {"unisrec-1"}


def test_evaluate(ckd: Ckd, studio: Any) -> None:
    words = ["evaluate", "--domain", studio.domain.name, "--work", studio.work, "--run", "unisrec-0"]
    found = ckd(*words, "--against", "unisrec-1", "--json").json
    assert set(found["metrics"]) == {f"{m}@{k}" for m in ("recall", "ndcg") for k in (5, 10, 20, 50)} | {"mrr"}
    assert found["comparisons"]["mrr"]["n"] == studio.domain.n_users
    assert {name: each["improvement"] for name, each in found["comparisons"].items()} == {
        name: pytest.approx(each["mean"] / each["other_mean"] - 1) if each["other_mean"] else None
        for name, each in found["comparisons"].items()
    }
    people = ckd(*words, "--against", "unisrec-1", "--split", "valid", "--mask-history")
    assert people.code == 0, people.err
    assert "60 users, 40 items" in people.out
    assert "paired t-test over users" in people.out


def test_recommend_and_export(ckd: Ckd, studio: Any, config: Path, tmp_path: Path) -> None:
    domain = ["--domain", studio.domain.name, "--work", studio.work]
    assert ckd("train-student", *domain, "--config", config, "--no-distill", "--run", "base", "--json").code == 0
    history = studio.domain.item_table["raw_id"][:3].to_list()
    requests = tmp_path / "requests.jsonl"
    asked = [{"history": history, "id": 7}, {"history": ["nobody's"]}]
    # As editors write it that begin a file with a byte order mark.
    requests.write_text("".join(json.dumps(each) + "\r\n" for each in asked), encoding="utf-8-sig", newline="")
    found = ckd("recommend", *domain, "--run", "base", "-k", 4, "--exclude-history", "--on-error", "skip", requests)
    first, second = (json.loads(line) for line in found.out.splitlines())
    assert (first["id"], first["unknown"], len(first["items"])) == (7, 0, 4)
    assert not set(first["items"]) & set(history)
    assert "error" in second
    refused = ckd("recommend", *domain, "--run", "base", "--ids", "names", requests)
    assert (refused.code, refused.err) == (1, "ckd: --ids names: raw or number.\n")
    exported = ckd("export", *domain, "--run", "base", "--to", "recbole", "--json")
    assert exported.code == 0, exported.err
    assert "model.pth" in exported.json["files"]
    assert ckd("export", *domain, "--run", "base", "--to", "paper").err.startswith("ckd: export to 'paper'")


def test_store_inspect_and_verify(ckd: Ckd, studio: Any, tmp_path: Path) -> None:
    place = studio.work / "scores" / studio.domain.name / studio.plan / "unisrec-0"
    found = ckd("store", "inspect", place, "--figure", tmp_path / "m.png", "--batch", 2, "--json").json
    assert (found["codec"], found["plan"][:12]) == ("f16", studio.plan)
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    assert "temperature" in ckd("store", "inspect", place).out
    assert ckd("store", "verify", place, "--json").json["shards"] == found["shards"]
    words = ["store", "verify", "--domain", studio.domain.name, "--teacher", "unisrec-0", "--work", studio.work]
    sampled = ckd(*words, "--sample", "20%", "--json").json
    assert 0 < sampled["batches"] < found["batches"]
    assert "Verified" in ckd(*words).out
