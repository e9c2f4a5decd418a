"""Files and folders appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import save_file

from ckd.data.atomic import naming, replace_file, replace_folder, write_json
from ckd.errors import CkdError
from ckd.nn.weights import write_tensors


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_written(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    with replace_file(target) as partial:
        partial.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert entries(target.parent) == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="which knows no modes")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_may_be_read_by_whom_every_new_file_may(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in sorted(tmp_path.iterdir())] == [mode, mode]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def interrupted() -> None:
        with replace_file(target) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert entries(tmp_path) == ["file"]


def test_a_file_never_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replace_file(tmp_path / "file"):
        pass
    assert entries(tmp_path) == []


def test_a_folder_appears_when_written(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with replace_folder(target) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "a").write_text("1")
        assert not target.exists()
    assert (target / "inner" / "a").read_text() == "1"
    assert entries(target.parent) == ["folder"]


def test_a_folder_is_replaced_whole_but_for_what_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for name in ("kept", "own", "gone"):
        (target / name).mkdir(parents=True)
        (target / name / "old").write_text("old")
    with replace_folder(target, keep=("kept", "own", "absent")) as partial:
        (partial / "own").mkdir()
    assert entries(target) == ["kept", "own"]
    assert (target / "kept" / "old").read_text() == "old"
    assert entries(target / "own") == []
    assert entries(tmp_path) == ["folder"]


def test_an_error_while_writing_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "a").write_text("old")

    def failing() -> None:
        with replace_folder(target, keep=("a",)) as partial:
            (partial / "b").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert entries(target) == ["a"]
    assert entries(tmp_path) == ["folder"]


@pytest.mark.parametrize("failing", range(2))
def test_an_error_at_any_rename_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "kept").write_text("old")
    (target / "domain").write_text("old")
    rename, calls = Path.rename, 0

    def fails_once(self: Path, other: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == failing + 1:
            raise OSError("no space")
        return rename(self, other)

    def save() -> None:
        with replace_folder(target, keep=("kept",)) as partial:
            (partial / "domain").write_text("new")
            monkeypatch.setattr(Path, "rename", fails_once)

    with pytest.raises(OSError, match="no space"):
        save()
    assert calls > failing
    assert {path.name: path.read_text() for path in target.iterdir()} == {"kept": "old", "domain": "old"}
    assert entries(tmp_path) == ["folder"]


def test_a_link_and_a_file_are_replaced_and_leave_nothing_aside(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_text("old")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with replace_folder(tmp_path / name) as partial:
            (partial / "a").write_text("new")
        assert (tmp_path / name / "a").read_text() == "new"
    assert (tmp_path / "real" / "a").read_text() == "old"
    assert entries(tmp_path) == ["file", "link", "real"]


@pytest.mark.parametrize("before", [True, False])
def test_of_two_writers_of_a_folder_the_slower_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    target = tmp_path / "folder"
    if before:
        (target / "features").mkdir(parents=True)
        (target / "features" / "a").write_text("old")
    rename = Path.rename

    def write(text: str) -> None:
        with replace_folder(target, keep=("features",)) as partial:
            (partial / "domain").write_text(text)
            if text == "slow":
                monkeypatch.setattr(Path, "rename", slow)

    def slow(self: Path, place: Path) -> Path:
        if place == target:
            monkeypatch.setattr(Path, "rename", rename)
            monkeypatch.setattr(os, "getpid", lambda: 2)
            write("fast")
        return rename(self, place)

    with pytest.raises(CkdError, match=r"folder: another process has put a folder here.*Run this again"):
        write("slow")
    assert (target / "domain").read_text() == "fast"
    # The faster one has found nothing to keep.
    assert entries(target) == (["domain", "features"] if before else ["domain"])
    assert entries(tmp_path) == ["folder"]


def test_a_folder_that_another_writer_has_just_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    rename = Path.rename

    def slow(self: Path, place: Path) -> Path:
        if self == target:
            rename(target, tmp_path / "elsewhere")
        return rename(self, place)

    with replace_folder(target) as partial:
        (partial / "a").write_text("new")
        monkeypatch.setattr(Path, "rename", slow)
    assert (target / "a").read_text() == "new"
    assert entries(tmp_path) == ["elsewhere", "folder"]


def test_an_error_of_the_writer_is_not_another_processes(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError), replace_folder(tmp_path / "folder") as partial:
        partial.mkdir()
    assert entries(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from ckd.data.atomic import replace_folder
target, rename = Path(sys.argv[1]), Path.rename
def dies(self, other):
    if self == target:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, other)
Path.rename = dies
with replace_folder(target, keep=("features", "alone")) as partial:
    (partial / "domain").write_text("new")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal there")
def test_a_kill_before_the_swap_leaves_the_old_folder_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    (target / "features" / "deep").mkdir(parents=True)
    for name in ("domain", "alone", "features/deep/a"):
        (target / name).write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert done.returncode == -9
    assert entries(target) == ["alone", "domain", "features"]
    assert (target / "features" / "deep" / "a").read_text() == (target / "domain").read_text() == "old"


@pytest.mark.parametrize("linking", [True, False])
def test_what_is_kept_is_linked_or_else_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linking: bool) -> None:
    target, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    (target / "features").mkdir(parents=True)
    elsewhere.mkdir()
    (target / "features" / "a").write_text("old")
    (target / "images").symlink_to(elsewhere)
    before = (target / "features" / "a").stat().st_ino

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    if not linking:
        monkeypatch.setattr("os.link", refuse)
    with replace_folder(target, keep=("features", "images")) as partial:
        (partial / "domain").write_text("new")
    assert (target / "features" / "a").read_text() == "old"
    assert ((target / "features" / "a").stat().st_ino == before) == linking
    assert (target / "images").readlink() == elsewhere
    assert entries(tmp_path) == ["elsewhere", "folder"]


def test_json_is_sorted_and_ends_with_a_line_feed(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"b": Path("x"), "a": [1, 2]})
    text = path.read_text()
    assert json.loads(text) == {"a": [1, 2], "b": "x"}
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")


def test_a_folder_without_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with replace_folder(Path()) as partial:
        (partial / "a").write_text("new")
    assert (tmp_path / "here" / "a").read_text() == "new"


@pytest.mark.parametrize("replace", [replace_file, replace_folder])
def test_an_error_without_a_files_name_is_given_it(tmp_path: Path, replace: Any) -> None:
    with pytest.raises(OSError, match="No space") as raised, replace(tmp_path / "new"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert raised.value.filename == str(tmp_path / "new")
    with pytest.raises(OSError, match="denied") as raised, replace(tmp_path / "new"):
        raise PermissionError(errno.EACCES, "denied", "elsewhere")
    assert raised.value.filename == "elsewhere"
    with pytest.raises(OSError, match="a message alone"), replace(tmp_path / "new"):
        raise OSError("a message alone")


def of_polars(path: Path) -> None:
    pl.DataFrame({"a": np.random.default_rng(0).random(100_000)}).write_parquet(path)


def of_safetensors(path: Path) -> None:
    save_file({"a": np.zeros(100_000)}, path)


@pytest.mark.parametrize("write", [of_polars, of_safetensors])
def test_a_full_disk_is_one_whatever_library_writes(tmp_path: Path, write: Any) -> None:
    """A limit on the size of files fails a write in its middle, as a full disk does."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, limits[1]))
        with pytest.raises(OSError, match="too large") as raised, replace_file(tmp_path / "new") as partial:
            write(partial)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(tmp_path / "new"))
    assert entries(tmp_path) == []
    with pytest.raises(ValueError, match="os error 2"), naming(tmp_path / "new"):
        raise ValueError("another file is missing (os error 2)")
