"""Bad input to every `ckd` command: one line that names file, value and remedy, and nothing half-written."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckd import cli
from ckd.errors import StoreError

Ckd = Callable[..., Any]
Snapshots = Callable[[Path], dict[str, tuple[int, bytes]]]

#: Words of a command, {name} filled in; and what the line must say.
BAD: list[tuple[str, str]] = [
    ("prepare {tmp}/absent", r"absent: .*no such"),
    ("prepare {csv} --name ../x", r"domain '\.\./x': use letters.* Give another --name"),
    ("prepare {tmp}/no(such)", r"no\(such\): no such file"),
    ("prepare {csv} --format cvs", r"unknown ingest format 'cvs'\. Did you mean 'csv'"),
    ("prepare {csv} -o prepare.k_core=3", r"unknown key 'prepare\.k_core'\. Did you mean 'k_core_"),
    ("prepare {csv} --config {tmp}/absent.yaml", r"absent\.yaml: no such configuration file"),
    ("prepare {csv} --config {tmp}", r": a folder, expected a configuration file"),
    ("prepare {bad_csv}", r"bad\.csv:3: the time is no number: 'not-a-time'"),
    ("example --seed -1", r"seed"),
    ("encode-items --domain absent", r"absent: no prepared domain here\. Run `ckd prepare`"),
    ("encode-items --domain {domain} --modality sound", r"modality='sound': input should be 'text' or 'image'"),
    ("encode-items --domain {domain} --model {tmp}/absent", r"absent"),
    ("encode-items --domain {domain} --vectors {tmp}/absent.npy", r"absent\.npy"),
    ("encode-items --domain {domain} --vectors {csv} --feature a/b", r"'a/b': use letters"),
    ("encode-items --domain {domain} -o features.modalty=text", r"unknown key 'modalty'\. Did you mean 'modality'"),
    ("pretrain-teacher --teacher unisrek --domains {domain}", r"unknown teacher 'unisrek'\. Did you mean 'unisrec'"),
    ("pretrain-teacher --teacher unisrec --domains absent", r"absent: no prepared domain"),
    ("pretrain-teacher --teacher vectors --domains {domain}", r"teacher 'vectors' has no pre-training"),
    ("finetune-teacher --domain absent --teacher unisrec", r"no prepared domain"),
    ("finetune-teacher --domain {domain} --teacher unisrek", r"Did you mean 'unisrec'"),
    ("finetune-teacher --domain {domain} --teacher unisrec --run a/b", r"run 'a/b': use letters"),
    ("finetune-teacher --domain {domain} --teacher unisrec --run unisrec-0", r"Give another --run"),
    ("finetune-teacher --domain {domain} --teacher unisrec -o teacher.x=1", r"teacher: unknown key 'x'"),
    ("finetune-teacher --domain {domain} --teacher unisrec -o teacher.feature=nope", r"nope\.json: no such feature"),
    ("finetune-teacher --domain {domain} --teacher unisrec -o teacher.start=/no", r"/no/teacher\.json: no such file"),
    ("finetune-teacher --domain {domain} --teacher unisrec -o train.device=tpu9", r"train\.device='tpu9'"),
    (
        "finetune-teacher --domain {domain} --teacher unisrec -o train.device=meta",
        r"train\.device='meta': holds no numb",
    ),
    ("plan --domain absent", r"no prepared domain"),
    ("plan --domain {domain} -o plan.difficulty=sll", r"'sll'\. Did you mean 'ssl'"),
    ("plan --domain {domain} -o plan.difficulty=teacher_loss", r"teacher_loss: needs .*--scored-plan; plans of .*"),
    ("plan --domain {domain} -o plan.difficulty=teacher-loss", r"Did you mean 'teacher_loss'"),
    ("plan --domain {domain} --scored-plan {plan}", r"--scored-plan: plan\.difficulty=ssl asks nothing of teachers"),
    ("plan --domain {domain} --teachers a --scores {tmp}", r"--teachers and --scores: plan\.difficulty=ssl asks"),
    ("plan --domain absent -o plan.difficulty=teacher_loss", r"no prepared domain"),
    ("plan --domain {domain} -o plan.difficulty=teacher_loss --scored-plan nope", r"no plan 'nope'"),
    (
        "plan --domain {domain} -o plan.difficulty=teacher_loss --scored-plan {plan} --teachers absent",
        r"absent/result\.json: no such file",
    ),
    (
        "plan --domain {domain} -o plan.difficulty=teacher_loss --scored-plan {plan} --scores {tmp}",
        r"no teacher has scored plan",
    ),
    (
        "plan --domain {domain} -o plan.difficulty=teacher_loss --scored-plan {plan} --scores {tmp} --teachers {run}",
        r"unisrec-0/manifest\.json",
    ),
    (
        "plan --domain {domain} -o plan.difficulty=teacher_disagreement --scored-plan {plan} --teachers unisrec-1",
        r"takes two teachers .* unisrec-1 alone",
    ),
    ("plan --domain {domain} -o plan.batch_size=1", r"plan\.batch_size=1: input should be greater"),
    ("plan --domain {domain} --config {broken}", r"broken\.yaml: not valid YAML"),
    ("plan --domain {domain} --figure {tmp}/x.gif", r"x\.gif.*png, svg, pdf"),
    ("teacher-score --domain absent --teacher t", r"no prepared domain"),
    ("teacher-score --domain {domain} --teacher absent", r"absent/result\.json: no such file\. Run `ckd finetune"),
    ("teacher-score --domain {domain} --teacher vectors", r"vectors/result\.json: no such file\. Name the files"),
    ("finetune-teacher --domain {domain} --teacher vectors", r"teacher: user_vectors has no default\. Give it"),
    ("teacher-score --domain {domain} --teacher unisrec-0 --plan nope", r"no plan 'nope'"),
    ("teacher-score --domain {domain} --teacher unisrec-0 --codec f61", r"unknown codec 'f61'\. Did you mean 'f16'"),
    ("teacher-score --domain {domain} --teacher unisrec-0 --codec u8 --plan {plan}", r"made for codec f16, expected"),
    ("teacher-score --domain {domain} --teacher unisrec-0 --scores s9://b/x", r"s9.*Use a path, or a URI"),
    (
        "teacher-score --domain {domain} --teacher vectors --user-vectors {tmp}/no.npy --item-vectors {csv}",
        r"no\.npy: no such file\. Name the file that holds the vectors",
    ),
    ("train-student --domain absent", r"no prepared domain"),
    ("train-student --domain {domain} --student sasrek", r"unknown student 'sasrek'\. Did you mean 'sasrec'"),
    ("train-student --domain {domain} --teachers absent", r"absent/result\.json: no such file"),
    ("train-student --domain {domain} --plan nope", r"no plan 'nope'"),
    ("train-student --domain {domain} --scores {tmp}/nowhere", r"no teacher has scored plan"),
    ("train-student --domain {domain} --run .. --restart", r"run '\.\.': use letters"),
    ("train-student --domain {domain} -o student.x=1", r"student: unknown key 'x'"),
    ("train-student --domain {domain} -o distill.weights.b=-1", r"distill\.weights.*greater than or equal to 0"),
    ("train-student --domain {domain} -o distill.weight=1", r"unknown key 'distill\.weight'\. Did you mean 'weights'"),
    ("train-student --domain {domain} -o distill.weights.a=1", r"no weight for teacher 'unisrec-0'"),
    ("train-student --domain {domain} -o train.precision=fp8", r"train\.precision='fp8': input should be 'fp32' or"),
    ("evaluate --domain absent --run r", r"no prepared domain"),
    ("evaluate --domain {domain} --run absent", r"no such run\. Runs of .*: unisrec-0, unisrec-1, unisrec-2"),
    ("evaluate --domain {domain} --run unisrec-0 --split train", r"--split train: test or valid"),
    ("evaluate --domain {domain} --run unisrec-0 --against absent", r"absent: no such run"),
    (
        "recommend --domain {domain} --run unisrec-0 {csv}",
        r"unisrec-0: a teacher, and this takes a student\. Train one",
    ),
    ("export --domain {domain} --run unisrec-0", r"unisrec-0: a teacher, and this takes a student\. Train one"),
    ("teacher import {tmp}/absent.pth --teacher unisrec", r"absent\.pth: no such file"),
    ("teacher import {csv} --teacher unisrec", r"shop\.csv: not a readable"),
    ("teacher import {csv} --teacher nope", r"unknown teacher 'nope'"),
    ("store inspect {tmp}/absent", r"absent/manifest\.json: no such file"),
    ("store inspect {store} --figure {tmp}/x.gif", r"x\.gif: a picture ends in"),
    ("store inspect {store} --batch 999 --figure {tmp}/x.png", r"no batch 999, expected 0\.\.16"),
    ("store inspect s9://bucket/x", r"s9.*Use a path, or a URI"),
    ("store verify", r"give a store's location, or --domain and --teacher"),
    ("store verify {store} --domain {domain}", r"give a store's location, or --domain and --teacher"),
    ("encode-items --domain {domain} --vectors {csv} --modality imgae", r"modality='imgae': input should be 'text' or"),
    ("reproduce table2 --data {tmp}/none", r"none: holds no folder of a domain"),
    ("store verify {tmp}", r"manifest\.json: no such file"),
    ("store verify --domain {domain} --teacher unisrec-0 --sample lots", r"--sample lots: write a share"),
    ("reproduce table3 --data {tmp}/absent", r"absent: no such folder"),
    ("reproduce table3 --domains nope", r"no domain 'nope' in the built-in example"),
    ("reproduce table3 -o plan.epochs=0", r"plan\.epochs=0: input should be greater"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[words for words, _ in BAD])
def test_bad_input_is_one_line(
    ckd: Ckd, everything: Snapshots, studio: Any, tmp_path: Path, words: str, message: str
) -> None:
    (tmp_path / "shop.csv").write_text("user,item,timestamp\nu1,i1,1\nu1,i2,2\nu1,i3,3\nu1,i4,4\nu1,i5,5\n")
    (tmp_path / "bad.csv").write_text("user,item,timestamp\nu1,i1,1\nu1,i2,not-a-time\n")
    (tmp_path / "broken.yaml").write_text("plan: [")
    (tmp_path / "none").mkdir()
    places = {
        "tmp": tmp_path,
        "csv": tmp_path / "shop.csv",
        "bad_csv": tmp_path / "bad.csv",
        "broken": tmp_path / "broken.yaml",
        "domain": studio.domain.name,
        "run": studio.teachers[0],
        "plan": studio.plan,
        "store": studio.work / "scores" / studio.domain.name / studio.plan / "unisrec-0",
    }
    filled = [word.format(**places) for word in words.split()]
    if filled[0] != "store" or "--domain" in filled:
        filled += ["--work", str(studio.work)]
    before = everything(tmp_path)
    found = ckd(*filled)
    assert (found.code, found.out) == (1, "")
    assert found.err.startswith("ckd: ")
    assert found.err.count("\n") == 1, found.err
    assert re.search(message, found.err), found.err
    after = everything(tmp_path)
    assert after.keys() == before.keys()
    assert [name for name in before if before[name][1] != after[name][1]] == []


#: Options that are well formed and would have no effect, and what the usage error says of them.
WITHOUT_EFFECT = [
    ("encode-items --domain d --ids f", "--ids f: is for importing vectors"),
    ("encode-items --domain d --vectors f --model m", "--model m: nothing is encoded"),
    ("plan --domain d --dry-run --show", "--show: there is no plan to show or draw"),
    ("plan --domain d --dry-run --figure f.png", "--figure f.png: there is no plan to show or draw"),
    ("teacher-score --domain d --teacher t --run other", "--run other: names the teacher that --user-vectors and"),
    ("teacher-score --domain d --teacher t --dry-run --workers 2", "--workers 2: nothing is computed or written"),
    ("teacher-score --domain d --teacher t --dry-run --scores s", "--scores s: nothing is computed or written"),
    ("train-student --domain d --no-distill --scores s", "--scores s: nothing is distilled"),
    ("train-student --domain d --no-distill --allow-mismatch", "--allow-mismatch: nothing is distilled"),
    ("tune --domain d --no-distill --scores s", "--scores s: nothing is distilled"),
    ("store inspect s --batch 0", "--batch 0: nothing is drawn without --figure"),
]

#: Lists of names that are given and empty, which is not to leave them out.
EMPTY = [
    ("plan --domain d", "--teachers"),
    ("train-student --domain d", "--teachers"),
    ("train-student --domain d --no-distill", "--teachers"),
    ("train-baseline --domain d --baseline hetcomp", "--teachers"),
    ("tune --domain d", "--teachers"),
    ("tune --domain d --no-distill", "--teachers"),
    *(("reproduce table3 --dry-run", option) for option in ("--domains", "--teachers", "--sources", "--methods")),
    ("reproduce figure5 --dry-run", "--what"),
]


@pytest.mark.parametrize(("words", "message"), WITHOUT_EFFECT, ids=[words for words, _ in WITHOUT_EFFECT])
def test_options_without_effect_are_refused(ckd: Ckd, words: str, message: str) -> None:
    found = ckd(*words.split())
    assert found.code == 2
    assert message in found.err
    assert found.err.endswith(". Leave it out.\n")


@pytest.mark.parametrize(("words", "option"), EMPTY, ids=[" ".join(each) for each in EMPTY])
def test_an_empty_list_is_not_everything(ckd: Ckd, words: str, option: str) -> None:
    found = ckd(*words.split(), option, "")
    assert found.code == 2
    assert re.search(r"'' names nothing|--no-distill", found.err)


def test_errors_of_the_disk_are_one_line(ckd: Ckd, studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a full disk the system does not name the file; we do."""
    words = ["train-student", "--domain", studio.domain.name, "--work", studio.work, "--no-distill"]

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ckd.data.atomic.fsync_path", fail)
    found = ckd(*words, "-o", "student.hidden_size=8")
    assert found.code == 1
    assert re.fullmatch(r"ckd: /.*/student\.json: No space left on device\. Free or allow[^\n]*\n", found.err)
    assert not list((studio.work / "students").rglob("*.partial"))
    blocked = studio.work / "blocked"
    blocked.write_text("a file, where a folder is needed")
    found = ckd("example", "--work", blocked)
    assert found.code == 1
    assert re.fullmatch(r"ckd: .*blocked/domains.*: Not a directory\. Free or allow[^\n]*\n", found.err)


def test_a_disk_that_fills_while_a_source_is_read_is_one_line(ckd: Ckd, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    source = tmp_path / "events.csv"
    source.write_text("user,item,time\n" + "".join(f"u{n},i{n * 7919 % 10007},{n}\n" for n in range(20_000)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, limits[1]))
        found = ckd("prepare", source, "--work", tmp_path / "work")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert found.code == 1
    assert re.fullmatch(r"ckd: /.*/part-00000\.parquet: File too large\. Free or allow[^\n]*\n", found.err)
    assert not list((tmp_path / "work" / "domains").iterdir())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError("Unable to allocate 16.0 GiB"), "Unable to allocate 16.0 GiB"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"), "CUDA out of memory. Tried to"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried"), "DefaultCPUAllocator: can't"),
    ],
)
def test_no_memory_is_one_line(
    ckd: Ckd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("ckd.pipelines.example.prepare_example", fail)
    found = ckd("example", "--work", tmp_path)
    assert found.code == 1
    assert re.fullmatch(r"ckd: out of memory \([^\n]*\)\. Take smaller batches[^\n]*\n", found.err)
    assert told in found.err
    monkeypatch.setattr("ckd.pipelines.example.prepare_example", lambda *_, **__: [].pop())
    with pytest.raises(IndexError):
        ckd("example", "--work", tmp_path)


def test_a_number_of_processes_is_torchruns(ckd: Ckd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("evaluate", "--domain", "absent", "--run", "r", "--work", tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "x")
    assert "no prepared domain" in ckd(*words).err
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for command in (words, ("train-student", *words[1:])):
        found = ckd(*command)
        assert (found.code, found.out) == (1, "")
        assert found.err == "ckd: WORLD_SIZE=x: no number of processes. Leave it as torchrun sets it.\n"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("ckd.distill.parallel.fails_first", lambda: True)
    assert ckd(*words).err == "ckd: ckd evaluate: only train-student can be started by torchrun; use ckd alone.\n"


def test_debugging_shows_the_traceback(ckd: Ckd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKD_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["ckd", "store", "inspect", str(tmp_path)])
    with pytest.raises(StoreError, match="no such file"):
        cli.main()
