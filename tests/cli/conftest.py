"""The `ckd` command in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from ckd import cli


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as strict JSON: no NaN, no infinity, nothing before or after."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        return json.loads(self.out, parse_constant=refuse)


@pytest.fixture
def ckd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Outcome]:
    """Runs a command line in this process; relative paths would lie in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("CKD_WORK", raising=False)
    monkeypatch.delenv("CKD_DEBUG", raising=False)

    def run(*words: Any) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["ckd", *map(str, words)])
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        found = capsys.readouterr()
        return Outcome(code, found.out, found.err)

    return run


@pytest.fixture
def config(studio: Any, tmp_path: Path) -> Path:
    """The studio's configuration as a file."""
    path = tmp_path / "ckd.yaml"
    path.write_text(yaml.safe_dump(studio.config.model_dump(mode="json", by_alias=True, exclude_unset=True)))
    return path


Snapshot = dict[str, tuple[int, bytes]]


@pytest.fixture
def everything() -> Callable[[Path], Snapshot]:
    """What lies below a folder: when it was written, and its bytes."""

    def snapshot(folder: Path) -> Snapshot:
        return {
            str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
            for path in sorted(folder.rglob("*"))
        }

    return snapshot
