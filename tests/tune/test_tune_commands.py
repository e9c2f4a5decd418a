"""`ckd tune` and `ckd report` as they are typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ckd import cli
from ckd.config import load_config


def ckd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["ckd", *map(str, words)])
    capsys.readouterr()
    code: Any = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code or 0
    found = capsys.readouterr()
    return code, found.out, found.err


def test_a_search_and_its_report(
    studio: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "ckd.yaml"
    config.write_text(studio.config.model_dump_json(by_alias=True, exclude_unset=True))
    space = tmp_path / "space.yaml"
    space.write_text("train.lr: [0.01, 0.001]\n")
    common = ("--domain", studio.domain.name, "--work", studio.work, "--config", config)
    words = ("tune", *common, "--both", "--teachers", "unisrec-0", "--trials", 1, "--space", space, "--name", "mine")
    code, out, err = ckd(monkeypatch, capsys, *words)
    assert code == 0
    assert "base trial   0  valid N@10" in err
    assert "distilled trial   0  valid N@10" in err
    assert "best by validation NDCG@10" in out
    assert out.count("1 trials, 3 epochs") == 4
    assert "both for `ckd reproduce --config`" in out

    code, out, err = ckd(monkeypatch, capsys, *words, "--sampler", "random", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [search["kind"] for search in found["searches"]] == ["base", "distilled"]
    assert set(load_config(Path(found["methods"])).methods) == {"SASRec", "sasrec"}

    page = tmp_path / "page.html"
    code, out, err = ckd(
        monkeypatch, capsys, "report", "--work", studio.work, "--out", page, "--tables", tmp_path / "t"
    )
    assert (code, err) == (0, "")
    assert "2 searches" in out
    assert "written:" in out
    assert page.read_text().startswith("<!doctype html>")
    code, out, _ = ckd(monkeypatch, capsys, "report", "--work", studio.work, "--json")
    assert code == 0
    assert json.loads(out)["searches"] == 2


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["tune", "--domain", "d", "--no-distill", "--both"], 2, "--no-distill contradicts --teachers and --both"),
        (["tune", "--domain", "d", "--no-distill", "--teachers", "t"], 2, "--no-distill contradicts"),
        (["tune", "--domain", "d", "--trials", "0"], 2, "--trials"),
        (["tune", "--domain", "d", "--teachers", ","], 2, "names nothing"),
        (["tune", "--domain", "d"], 1, "ckd: "),
        (["report", "--work", "absent"], 1, "ckd: absent: no such folder"),
    ],
)
def test_what_is_refused(
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    found = ckd(monkeypatch, capsys, *words)
    assert found[0] == code
    assert message in found[2]
    assert list(tmp_path.iterdir()) == []
