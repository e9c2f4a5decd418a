"""Processes that are killed or starved while they write, for real: what they leave is whole or written anew."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckd.errors import StoreError
from ckd.store import location
from ckd.store.layout import Sink

#: Runs the fixture's case in a process of its own, which a test then kills or starves.
SCRIPT = """
import importlib.util, os, resource, signal, sys
import ckd.errors
spec = importlib.util.spec_from_file_location("cases", sys.argv[1])
cases = importlib.util.module_from_spec(spec)
sys.modules["cases"] = cases
spec.loader.exec_module(cases)
folder, fault = sys.argv[2:4]
case = cases.Case()
score = case.score

def killed(batch_ids):
    for batch_id, matrix in score(batch_ids):
        if batch_id == int(fault):
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch_id, matrix

if fault == "manifest":
    import ckd.store.shards
    ckd.store.shards.Manifest.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
elif fault == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
elif fault != "none":
    case.score = killed
try:
    case.write(folder)
except ckd.errors.StoreError as error:
    print(error)
    sys.exit(1)
print(*case.scored)
"""


def start(folder: Path, fault: str) -> subprocess.Popen[str]:
    conftest = Path(__file__).with_name("conftest.py")
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(conftest), str(folder), fault], stdout=subprocess.PIPE, text=True
    )


def run(folder: Path, fault: str) -> tuple[int, str]:
    process = start(folder, fault)
    out, _ = process.communicate(timeout=120)
    return process.returncode, out


@pytest.mark.parametrize(
    ("fault", "left"),
    [("5", [4, 5, 6, 7, 8, 9]), ("4", [4, 5, 6, 7, 8, 9]), ("8", [8, 9]), ("0", list(range(10))), ("manifest", [])],
    ids=["mid-shard", "between shards", "last shard", "at once", "before the manifest"],
)
def test_kill_9_loses_the_shard_in_flight(tmp_path: Path, whole: Path, case: Any, fault: str, left: list[int]) -> None:
    folder = tmp_path / "killed"
    assert run(folder, fault)[0] == -signal.SIGKILL
    with pytest.raises(StoreError, match=r"manifest.json: no such file"):
        case.open(folder)
    case.write(folder)
    assert case.scored == left
    assert case.files(folder) == case.files(whole)


def test_killed_again_and_again(tmp_path: Path, whole: Path, case: Any) -> None:
    folder = tmp_path / "killed"
    for fault in ("1", "6", "9", "manifest"):
        assert run(folder, fault)[0] == -signal.SIGKILL
    case.write(folder)
    assert case.scored == []
    assert case.files(folder) == case.files(whole)


def test_two_writers_at_once_share_the_work(tmp_path: Path, whole: Path, case: Any) -> None:
    folder = tmp_path / "shared"
    writers = [start(folder, "none") for _ in range(2)]
    scored = [writer.communicate(timeout=120)[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sorted(int(batch_id) for ids in scored for batch_id in ids) == list(range(10))
    assert case.files(folder) == case.files(whole)


def test_a_full_disk(tmp_path: Path, whole: Path, case: Any) -> None:
    folder = tmp_path / "full"
    code, out = run(folder, "full")
    assert code == 1
    assert "part-00000.parquet: File too large. Mend that and run again" in out
    assert out.count("\n") == 1
    assert case.files(folder) == {}
    case.write(folder)
    assert case.files(folder) == case.files(whole)


def test_a_file_that_takes_little_at_a_time_gets_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: Any) -> int:
            return int(self._file.write(data[:1000]))

        def fileno(self) -> int:
            return int(self._file.fileno())

    create = location._Synced.__init__
    monkeypatch.setattr(location._Synced, "__init__", lambda self, file, pool: create(self, Slow(file), pool))
    content = os.urandom(5000)
    with location.Location(tmp_path).create("whole") as file:
        assert file.write(content) == len(content)
    assert (tmp_path / "whole").read_bytes() == content


def test_a_slow_owner_whose_work_another_has_done_goes_on(tmp_path: Path, case: Any) -> None:
    place = location.Location(tmp_path)
    with place.create("shard") as file:
        file.write(b"the same")
        with location.Location(tmp_path).create("shard") as other:
            other.write(b"the same")
        for partial in tmp_path.glob(".*.partial"):
            partial.unlink()
    assert case.files(tmp_path) == {"shard": b"the same"}
    lost = place.create("lost")
    lost.__enter__()
    for partial in tmp_path.glob(".*.partial"):
        partial.unlink()
    with pytest.raises(StoreError, match="No such file"):
        lost.__exit__(None, None, None)


def test_a_full_tmpfs(tmp_path: Path, make_case: Any) -> None:
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "ckd", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        case = make_case(batches=40, size=96)
        with pytest.raises(StoreError, match="No space left on device"):
            case.write(folder)
        kept = case.files(folder)
        assert kept
        assert all(name.startswith("part-") for name in kept)
        subprocess.run(["mount", "-o", "remount,size=4m", folder], check=True, capture_output=True)
        case.scored.clear()
        case.write(folder)
        assert case.scored == list(range(len(kept) * case.shard_batches, 40))
        assert {name: case.files(folder)[name] for name in kept} == kept
    finally:
        subprocess.run(["umount", folder], check=True, capture_output=True)


def test_a_folder_that_cannot_be_written(tmp_path: Path, case: Any) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    # Permissions do not hold root back; the kernel's own read-only tree does.
    folder = Path("/proc/ckd") if os.geteuid() == 0 else closed / "store"
    with pytest.raises(StoreError, match=rf"^{folder}[^\n]*Mend that and run again"):
        case.write(folder)


def test_a_read_only_file_system(tmp_path: Path, whole: Path, case: Any) -> None:
    if subprocess.run(["mount", "--bind", whole, whole], capture_output=True).returncode:
        pytest.skip("a bind mount is not allowed here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", whole], check=True, capture_output=True)
        assert len(case.read(whole)) == case.batches
        with pytest.raises(StoreError, match="Read-only file system"):
            replace(case, batches=11).write(whole / "below")
    finally:
        subprocess.run(["umount", whole], check=True, capture_output=True)


def test_a_killed_workers_claim_is_taken_over(tmp_path: Path, whole: Path, case: Any) -> None:
    folder = tmp_path / "claimed"
    assert run(folder, "5")[0] == -signal.SIGKILL
    assert [path.name for path in folder.iterdir() if ".claim." in path.name] == [".part-00001.parquet.claim.0"]
    case.write(folder)
    assert case.files(folder) == case.files(whole)


def test_a_file_in_place_of_the_folder(tmp_path: Path, case: Any) -> None:
    (tmp_path / "store").write_text("precious")
    with pytest.raises(StoreError, match=r"store: File exists"):
        case.write(tmp_path / "store")
    assert (tmp_path / "store").read_text() == "precious"


@pytest.mark.parametrize("at_once", [1, 7, None], ids=["one", "seven", "all, unsaid"])
def test_a_file_that_takes_less_than_it_is_given_gets_the_rest(at_once: int | None) -> None:
    data, taken = bytes(range(100)), bytearray()

    def write(view: memoryview) -> int | None:
        taken.extend(view[:at_once])
        return None if at_once is None else min(at_once, len(view))

    sink = Sink(write)
    sink.write(data[:10])
    sink.mark()
    assert sink.write(data[10:]) == 90
    assert taken == data
    assert (sink.size, sink.tell(), sink.tail) == (100, 100, data[10:])
    assert sink.digest.hexdigest() == hashlib.sha256(data).hexdigest()
