"""Every fault is injected for real, and is refused or repaired; nothing good is deleted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ckd.errors import StoreError
from ckd.store import ScoreReader, location
from ckd.store.verify import verify_store

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


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def whole(tmp_path: Path, case: Any) -> Path:
    """A finished store of the case."""
    case.write(tmp_path / "whole")
    case.scored.clear()
    return tmp_path / "whole"


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
    assert files(folder) == files(whole)


def test_killed_again_and_again(tmp_path: Path, whole: Path, case: Any) -> None:
    folder = tmp_path / "killed"
    for fault in ("1", "6", "9", "manifest"):
        assert run(folder, fault)[0] == -signal.SIGKILL
    case.write(folder)
    assert case.scored == []
    assert files(folder) == files(whole)


def test_two_writers_at_once_share_the_work(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "shared"
    writers = [start(folder, "none") for _ in range(2)]
    scored = [writer.communicate(timeout=120)[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sorted(int(batch_id) for ids in scored for batch_id in ids) == list(range(10))
    assert files(folder) == files(whole)


def test_a_full_disk(tmp_path: Path, whole: Path, case: Any) -> None:
    folder = tmp_path / "full"
    code, out = run(folder, "full")
    assert code == 1
    assert "part-00000.parquet: File too large. Mend that and run again" in out
    assert out.count("\n") == 1
    assert files(folder) == {}
    case.write(folder)
    assert files(folder) == files(whole)


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


def test_a_slow_owner_whose_work_another_has_done_goes_on(tmp_path: Path) -> None:
    place = location.Location(tmp_path)
    with place.create("shard") as file:
        file.write(b"the same")
        with location.Location(tmp_path).create("shard") as other:
            other.write(b"the same")
        for partial in tmp_path.glob(".*.partial"):
            partial.unlink()
    assert files(tmp_path) == {"shard": b"the same"}
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
        kept = files(folder)
        assert kept
        assert all(name.startswith("part-") for name in kept)
        subprocess.run(["mount", "-o", "remount,size=4m", folder], check=True, capture_output=True)
        case.scored.clear()
        case.write(folder)
        assert case.scored == list(range(len(kept) * case.shard_batches, 40))
        assert {name: files(folder)[name] for name in kept} == kept
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
    assert files(folder) == files(whole)


def test_a_file_in_place_of_the_folder(tmp_path: Path, case: Any) -> None:
    (tmp_path / "store").write_text("precious")
    with pytest.raises(StoreError, match=r"store: File exists"):
        case.write(tmp_path / "store")
    assert (tmp_path / "store").read_text() == "precious"


def regions(path: Path) -> dict[str, range]:
    """Where headers, hash, payload and footer of a shard's second batch lie."""
    metadata = pq.read_metadata(path)
    columns = {metadata.row_group(1).column(i).path_in_schema: metadata.row_group(1).column(i) for i in range(5)}
    payload, digest = columns["payload"], columns["hash"]
    end = payload.data_page_offset + payload.total_compressed_size
    value = end - payload.total_uncompressed_size
    size = path.stat().st_size
    footer = size - 8 - int.from_bytes(path.read_bytes()[-8:-4], "little")
    # A page header takes 25 bytes of the hash's 33; the payload's is a few bytes longer.
    return {
        "hash header": range(digest.data_page_offset, digest.data_page_offset + 25),
        "hash": range(digest.data_page_offset + 25, payload.data_page_offset),
        "payload header": range(payload.data_page_offset, value + 27),
        "payload": range(value + 27, end),
        "footer": range(footer, size - 8),
        "length of the footer": range(size - 8, size - 4),
        "magic": range(size - 4, size),
    }


REGIONS = ["hash header", "hash", "payload header", "payload", "footer", "length of the footer", "magic"]


@pytest.mark.parametrize("region", REGIONS)
def test_a_flipped_bit(whole: Path, case: Any, region: str) -> None:
    path = whole / "part-00001.parquet"
    sound, good = path.read_bytes(), case.read(whole)
    places = regions(path)[region]
    for at in places[:: max(1, len(places) // 40)]:
        changed = bytearray(sound)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        with pytest.raises(
            StoreError, match=r"part-00001.parquet: .*[Ee]xpected|part-00001.parquet: damaged"
        ) as refused:
            case.open(whole).read(5)
        assert "\n" not in str(refused.value)
        assert "part-00001.parquet" in verify_store(whole).problems[0]
    before = files(whole)
    case.write(whole)
    assert case.scored == [4, 5, 6, 7]
    assert path.read_bytes() == sound
    assert {n: c for n, c in before.items() if n != path.name} == {
        n: c for n, c in files(whole).items() if n != path.name
    }
    for found, wanted in zip(case.read(whole), good, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("region", REGIONS)
def test_a_flipped_bit_before_there_is_a_manifest(tmp_path: Path, whole: Path, case: Any, region: str) -> None:
    path = whole / "part-00001.parquet"
    sound = files(whole)
    places = regions(path)[region]
    for at in places[:: max(1, len(places) // 8)]:
        changed = bytearray(sound[path.name])
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        (whole / "manifest.json").unlink()
        try:
            case.write(whole)
        except StoreError as error:
            # The bit made the shard say that it belongs elsewhere; then it is left for a person to look at.
            assert "part-00001.parquet: " in str(error)  # noqa: PT017
            assert path.read_bytes() == bytes(changed)
            path.unlink()
            case.write(whole)
        assert files(whole) == sound


def test_a_flipped_bit_in_the_manifest(whole: Path, case: Any) -> None:
    path = whole / "manifest.json"
    sound = files(whole)
    for at in range(0, len(sound[path.name]) - 1, 5):
        changed = bytearray(sound[path.name])
        changed[at] ^= 1 << at % 7
        path.write_bytes(changed)
        try:
            same = json.loads(changed) == json.loads(sound[path.name])
        except ValueError:
            same = False
        if same:
            continue
        with pytest.raises(StoreError, match=r"manifest.json: ") as refused:
            case.open(whole)
        assert "\n" not in str(refused.value)
    case.write(whole)
    assert case.scored == []
    assert files(whole) == sound


@pytest.mark.parametrize("kept", [0, 3, 200, -1])
def test_truncation(whole: Path, case: Any, kept: int) -> None:
    path = whole / "part-00000.parquet"
    sound = files(whole)
    path.write_bytes(sound[path.name][:kept])
    size = len(sound[path.name])
    with pytest.raises(StoreError, match=rf"part-00000.parquet: {path.stat().st_size} bytes, expected {size} bytes"):
        case.open(whole)
    case.write(whole)
    assert case.scored == [0, 1, 2, 3]
    assert files(whole) == sound


def test_truncation_while_it_is_being_read(whole: Path, case: Any) -> None:
    reader = case.open(whole)
    reader.read(0)
    path = whole / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(StoreError, match=r"part-00000.parquet: damaged: batch 3: file ends at \d+, expected \d+"):
        reader.read(3)
    path.unlink()
    with pytest.raises(StoreError, match=r"part-00000.parquet: No such file"):
        reader.read(3)


def test_a_truncated_manifest(whole: Path, case: Any) -> None:
    path = whole / "manifest.json"
    sound = files(whole)
    for kept in (0, 1, len(sound[path.name]) // 2):
        path.write_bytes(sound[path.name][:kept])
        with pytest.raises(StoreError, match=r"manifest.json: damaged: not JSON"):
            case.open(whole)
    case.write(whole)
    assert case.scored == []
    assert files(whole) == sound


def test_two_shards_swapped(whole: Path, case: Any) -> None:
    one, two = whole / "part-00000.parquet", whole / "part-00001.parquet"
    sound = files(whole)
    one.write_bytes(sound[two.name])
    two.write_bytes(sound[one.name])
    with pytest.raises(StoreError, match=r"part-0000\d.parquet: .*expected"):
        case.open(whole)
    # Both are good: neither may be overwritten, with the manifest or without.
    for _ in range(2):
        with pytest.raises(StoreError, match=r"holds what was written as part-0000\d.parquet, expected part-0000\d"):
            case.write(whole)
        assert one.read_bytes() == sound[two.name]
        (whole / "manifest.json").unlink(missing_ok=True)


@pytest.mark.parametrize("key", ["domain", "plan", "teacher", "temperature"])
def test_a_shard_of_another_store(tmp_path: Path, whole: Path, case: Any, key: str) -> None:
    other = 0.09 if key == "temperature" else f"{key}-b"
    foreign = replace(case, binding=replace(case.binding, **{key: other}))
    foreign.write(tmp_path / "other")
    stray = whole / "part-00001.parquet"
    shutil.copy(tmp_path / "other" / stray.name, stray)
    line = rf"part-00001.parquet: made for {key} {other}, expected {key} {getattr(case.binding, key)}"
    with pytest.raises(StoreError, match=line):
        case.open(whole)
    assert line.split(":")[1][:20] in verify_store(whole).problems[0]
    for _ in range(2):
        with pytest.raises(StoreError, match=line):
            case.write(whole)
        assert stray.read_bytes() == (tmp_path / "other" / stray.name).read_bytes()
        (whole / "manifest.json").unlink(missing_ok=True)


def test_a_missing_shard(whole: Path, case: Any) -> None:
    sound = files(whole)
    (whole / "part-00002.parquet").unlink()
    with pytest.raises(StoreError, match=r"part-00002.parquet: no such file, expected \d+ bytes"):
        case.open(whole)
    assert "part-00002.parquet: no such file" in verify_store(whole).problems[0]
    case.write(whole)
    assert case.scored == [8, 9]
    assert files(whole) == sound


def test_a_surplus_shard(whole: Path, case: Any) -> None:
    stray = whole / "part-00003.parquet"
    shutil.copy(whole / "part-00000.parquet", stray)
    # What begins with a dot is no part of a store.
    (whole / ".manifest.json.claim.0").touch()
    (problem,) = verify_store(whole).problems
    assert "part-00003.parquet: belongs to no shard" in problem
    (whole / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"part-00003.parquet: belongs to no shard of this store, which has 3"):
        case.write(whole)
    assert stray.exists()


def test_an_unknown_format(whole: Path, case: Any) -> None:
    path = whole / "manifest.json"
    values = json.loads(path.read_text())
    values["format"] = 99
    path.write_text(json.dumps(values))
    with pytest.raises(StoreError, match=r"manifest.json: store format 99, expected 1"):
        case.open(whole)


def test_a_store_of_a_later_version_is_neither_read_nor_overwritten(
    tmp_path: Path, case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as later:
        later.setattr("ckd.store.manifest.FORMAT", 2)
        case.write(tmp_path)
    before = files(tmp_path)
    with pytest.raises(StoreError, match=r"manifest.json: store format 2, expected 1"):
        case.open(tmp_path)
    with pytest.raises(StoreError, match=r"part-00000.parquet: store format 2, expected 1"):
        case.write(tmp_path)
    assert files(tmp_path) == before


def test_another_shard_size_is_refused(whole: Path, case: Any) -> None:
    with pytest.raises(StoreError, match="made with shard_batches 4, expected shard_batches 5"):
        replace(case, shard_batches=5).write(whole)


def test_weights_changed_under_the_store(whole: Path, case: Any) -> None:
    with pytest.raises(StoreError, match=r"made for teacher teacher-a, expected teacher retrained"):
        ScoreReader(whole, replace(case.binding, teacher="retrained"), case.index)


@pytest.mark.parametrize("codec", ["u8", "tensor"])
def test_flipped_bits_of_the_other_codecs(tmp_path: Path, make_case: Any, codec: str) -> None:
    case = make_case(codec=codec)
    case.write(tmp_path)
    path = tmp_path / "part-00000.parquet"
    sound, good = path.read_bytes(), case.read(tmp_path)[:4]
    for at in range(4, len(sound), 97):
        changed = bytearray(sound)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        try:
            reader = case.open(tmp_path)
            found = [reader.read(batch_id) for batch_id in range(4)]
        except StoreError as error:
            assert "part-00000.parquet" in str(error)  # noqa: PT017
            continue
        # The bit lies in what reading does not use.
        for a, b in zip(found, good, strict=True):
            np.testing.assert_array_equal(a, b)
    assert verify_store(tmp_path).problems
    case.write(tmp_path)
    assert path.read_bytes() == sound
