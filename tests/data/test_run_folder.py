"""The folder of a run: one process at a time, and restarts that lose nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ckd.data.run_folder import only_process
from ckd.errors import DataError


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


HOLDS = """
import sys, time
from pathlib import Path
from ckd.data.run_folder import only_process
with only_process(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such lock there")
def test_a_second_process_is_kept_out_until_the_first_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(folder)], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "held\n"
            with pytest.raises(DataError, match=r"one: another process is at work here\. Wait"), only_process(folder):
                pytest.fail("two are in")
            with only_process(folder.with_name("two")):
                pass
        finally:
            first.kill()
    # Killed, it has left nothing that would keep anybody out.
    with only_process(folder):
        (folder / "file").write_text("new")
    assert entries(folder) == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="no such lock there")
def test_a_restart_keeps_the_lock_and_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "run" / "deep").mkdir(parents=True)
    (tmp_path / "run" / "deep" / "file").write_text("old")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("kept")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "elsewhere")
    with only_process(tmp_path / "run", restart=True):
        assert entries(tmp_path / "run") == [".replaced"]
        with pytest.raises(DataError, match="another process"), only_process(tmp_path / "run", restart=True):
            pytest.fail("two are in")
        (tmp_path / "run" / "model.safetensors").write_text("new")
    assert entries(tmp_path / "run") == ["model.safetensors"]
    assert entries(tmp_path / "elsewhere") == ["kept"]


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


OLD = {"model.safetensors": "old", "result.json": "old", "rankings/0.parquet": "old"}


def old_run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "rankings").mkdir(parents=True)
    for name, text in OLD.items():
        (folder / name).write_text(text)
    return folder


def test_what_is_replaced_is_gone_once_there_is_something_new(tmp_path: Path) -> None:
    folder = old_run(tmp_path)
    with only_process(folder, restart=True):
        assert files(folder).keys() == {f".replaced/{name}" for name in OLD}
        (folder / "model.safetensors").write_text("new")
    assert files(folder) == {"model.safetensors": "new"}
    with only_process(folder, restart=False):
        assert files(folder) == {"model.safetensors": "new"}


@pytest.mark.parametrize("error", [DataError("refused"), KeyboardInterrupt()])
@pytest.mark.parametrize("weights", [False, True])
def test_what_would_be_replaced_comes_back_where_no_weights_came(
    tmp_path: Path, error: BaseException, weights: bool
) -> None:
    folder = old_run(tmp_path)

    def make() -> None:
        (folder / "rankings").mkdir()
        (folder / "rankings" / "rankings.json").write_text("new")
        if weights:
            (folder / "last.safetensors").write_text("new")
        raise error

    with pytest.raises(type(error)), only_process(folder, restart=True):
        make()
    assert files(folder) == ({"rankings/rankings.json": "new", "last.safetensors": "new"} if weights else OLD)


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from ckd.data.run_folder import only_process
folder, when, after = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
rename, renamed = Path.rename, []

def killed(self, target):
    if len(renamed) == after:
        os.kill(os.getpid(), signal.SIGKILL)
    renamed.append(target)
    return rename(self, target)

if when == "aside":
    Path.rename = killed
with only_process(folder, restart=True):
    Path.rename = killed
    raise SystemExit("refused")
"""
MOVES = len({Path(name).parts[0] for name in OLD}) + 1


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal there")
@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("after", range(MOVES))
@pytest.mark.parametrize("when", ["aside", "back"])
def test_a_kill_amid_the_moves_loses_nothing(tmp_path: Path, when: str, after: int, restart: bool) -> None:
    folder = old_run(tmp_path)
    call = [sys.executable, "-c", INTERRUPTED, str(folder), when, str(after)]
    assert subprocess.run(call, capture_output=True, check=False).returncode == -9
    assert sorted(Path(name).name for name in files(folder)) == sorted(Path(name).name for name in OLD)
    with pytest.raises(DataError, match="refused"), only_process(folder, restart):
        raise DataError("refused")
    assert files(folder) == OLD


KILLED = """
import os, signal, sys
from pathlib import Path
from ckd.data.run_folder import only_process
folder = Path(sys.argv[1])
with only_process(folder, restart=True):
    (folder / sys.argv[2]).write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal there")
@pytest.mark.parametrize("restart", [True, False])
def test_after_a_kill_what_was_put_aside_still_comes_back(tmp_path: Path, restart: bool) -> None:
    folder = old_run(tmp_path)

    def kill(file: str) -> None:
        done = subprocess.run([sys.executable, "-c", KILLED, str(folder), file], capture_output=True, check=False)
        assert done.returncode == -9, done.stderr

    kill("log.csv")
    with pytest.raises(DataError, match="refused"), only_process(folder, restart):
        raise DataError("refused")
    assert files(folder) == OLD
    kill("last.safetensors")
    with only_process(folder):
        (folder / "model.safetensors").write_text("new")
    assert files(folder) == {"last.safetensors": "new", "model.safetensors": "new"}


def test_a_folder_in_which_nothing_was_made_is_gone(tmp_path: Path) -> None:
    with only_process(tmp_path / "run"):
        pass
    assert entries(tmp_path) == []
    with only_process(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    with only_process(tmp_path / "run"):
        pass
    assert entries(tmp_path / "run") == ["file"]


def test_whoever_is_kept_out_leaves_the_folder(tmp_path: Path) -> None:
    with only_process(tmp_path / "run"):
        with pytest.raises(DataError, match="another process"), only_process(tmp_path / "run"):
            pytest.fail("two are at work")
        assert entries(tmp_path) == ["run"]
