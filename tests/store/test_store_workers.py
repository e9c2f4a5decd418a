"""Sharing the work: claims, takeovers, and processes started from one."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ckd.errors import StoreError
from ckd.store.claims import Claims
from ckd.store.location import Location
from ckd.store.workers import run_workers

NAME = "part-00000.parquet"


def claim_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if ".claim." in path.name)


def owner(**changes: Any) -> str:
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": "1", "token": "x", **changes})


class TestClaims:
    """Who may write a shard."""

    def test_one_of_many_gets_it(self, tmp_path: Path) -> None:
        location = Location(tmp_path)
        claims = [Claims(location) for _ in range(8)]
        got: list[bool] = []
        barrier = threading.Barrier(len(claims))

        def take(mine: Claims) -> None:
            barrier.wait()
            got.append(mine.take(NAME, {}))

        threads = [threading.Thread(target=take, args=(mine,)) for mine in claims]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == [False] * 7 + [True]

    def test_a_living_process_keeps_its_claim(self, tmp_path: Path) -> None:
        location = Location(tmp_path)
        with Claims(location) as one, Claims(location) as two:
            assert one.take(NAME, location.sizes())
            assert not two.take(NAME, location.sizes())
            one.release(NAME)
            assert two.take(NAME, location.sizes())
        assert claim_files(tmp_path) == []

    def test_a_dead_process_loses_it_at_once(self, tmp_path: Path) -> None:
        location = Location(tmp_path)
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        claim = tmp_path / f".{NAME}.claim.0"
        claim.write_text(owner(pid=process.pid, started=started))
        with Claims(location) as claims:
            assert not claims.take(NAME, location.sizes())
            process.kill()
            process.wait()
            assert claims.take(NAME, location.sizes())
            assert claim_files(tmp_path) == [claim.name, f".{NAME}.claim.1"]
            claims.release(NAME)
        assert claim_files(tmp_path) == []

    def test_a_number_used_again_is_another_process(self, tmp_path: Path) -> None:
        (tmp_path / f".{NAME}.claim.0").write_text(owner(pid=os.getpid(), started="1"))
        with Claims(Location(tmp_path)) as claims:
            assert claims.take(NAME, Location(tmp_path).sizes())

    @pytest.mark.parametrize("content", [owner(host="elsewhere"), ""], ids=["another machine", "killed while claiming"])
    def test_silence_is_death_elsewhere(self, tmp_path: Path, content: str) -> None:
        location = Location(tmp_path)
        (tmp_path / f".{NAME}.claim.0").write_text(content)
        with Claims(location, stale=0.05) as claims:
            assert not claims.take(NAME, location.sizes())
            time.sleep(0.1)
            assert claims.take(NAME, location.sizes())

    def test_a_sign_of_life_elsewhere_is_respected(self, tmp_path: Path) -> None:
        location = Location(tmp_path)
        claim = tmp_path / f".{NAME}.claim.0"
        claim.write_text(owner(host="elsewhere"))
        with Claims(location, stale=0.05) as claims:
            for beat in range(4):
                os.utime(claim, ns=(beat, beat))
                assert not claims.take(NAME, location.sizes())
                time.sleep(0.06)

    def test_the_heart_beats(self, tmp_path: Path) -> None:
        location = Location(tmp_path)
        with Claims(location, heartbeat=0.01) as claims:
            claims.take(NAME, {})
            claim = tmp_path / f".{NAME}.claim.0"
            os.utime(claim, ns=(1, 1))
            deadline = time.monotonic() + 10
            while claim.stat().st_mtime_ns == 1 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert claim.stat().st_mtime_ns > 1

    def test_only_one_takes_over(self, tmp_path: Path) -> None:
        location = Location(tmp_path)
        (tmp_path / f".{NAME}.claim.0").write_text(owner(pid=2**22 + 1))
        seen = location.sizes()
        with Claims(location) as one, Claims(location) as two:
            # Both saw the same dead claim.
            assert one.take(NAME, seen)
            assert not two.take(NAME, seen)
            assert not two.take(NAME, location.sizes())


def write_case(folder: str) -> list[int]:
    """Write the fixture's case and return the batches that this process scored."""
    spec = importlib.util.spec_from_file_location("cases", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    cases = importlib.util.module_from_spec(spec)
    sys.modules["cases"] = cases
    spec.loader.exec_module(cases)
    case = cases.Case()
    case.write(folder)
    return case.scored


WORKERS = """
import importlib.util, os, pathlib, sys
sys.path.insert(0, {folder!r})
from {module} import {function}
from ckd.store.workers import run_workers
if __name__ == "__main__":
    try:
        print(run_workers({count}, {function}, *{args!r}))
    except Exception as error:
        print(f"{{type(error).__name__}}: {{error}}")
"""


def run_script(tmp_path: Path, function: str, count: int, *args: Any) -> str:
    """Run workers from a script: their function must be found by name in fresh processes."""
    module = Path(__file__)
    script = tmp_path / "script.py"
    script.write_text(
        WORKERS.format(folder=str(module.parent), module=module.stem, function=function, count=count, args=args)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def refuse(folder: str) -> None:
    raise StoreError(f"{folder}: refused")


def die(folder: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_first(folder: str) -> list[int]:
    """The first process to come dies, the others write."""
    try:
        Path(folder).parent.joinpath("first").touch(exist_ok=False)
    except FileExistsError:
        return write_case(folder)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class TestRunWorkers:
    """Processes started from one."""

    def test_the_result_is_one_workers(self, tmp_path: Path, case: Any) -> None:
        case.write(tmp_path / "one")
        run_script(tmp_path, "write_case", 2, str(tmp_path / "many"))
        found, wanted = (
            {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("many", "one")
        )
        assert found == wanted

    def test_a_dead_workers_share_is_done_by_the_others(self, tmp_path: Path) -> None:
        assert run_script(tmp_path, "die_first", 2, str(tmp_path / "s")) == str(list(range(10)))

    def test_a_refusal_is_passed_on(self, tmp_path: Path) -> None:
        assert run_script(tmp_path, "refuse", 2, "folder") == "StoreError: folder: refused"

    def test_all_dead_is_said(self, tmp_path: Path) -> None:
        assert run_script(tmp_path, "die", 2, "x") == (
            "StoreError: all 2 workers died. Run again: finished shards are kept."
        )

    def test_one_worker_runs_here(self) -> None:
        assert run_workers(1, os.getpid) == os.getpid()

    def test_none_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="0 workers"):
            run_workers(0, os.getpid)
