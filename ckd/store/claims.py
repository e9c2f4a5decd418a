"""How processes that write one store share its shards without a server.

A claim is a small file created atomically beside the shard. A dead worker's claim is taken over by creating the next
generation of it, so that no file is ever deleted and made again under the eyes of a third process: of all generations
the highest owns the shard. Claims only save work. Shards are written aside and appear whole, so that two owners, which
an object store without atomic creation allows, cost time and nothing else.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ckd.store.location import Location

CLAIM = ".claim."

#: Seconds between two signs of life, and without any before a worker of another machine counts as dead.
HEARTBEAT = 5.0
STALE = 60.0


class Claims:
    """The claims of one worker; a background thread keeps them alive until the `with` block ends.

    Args:
        location: where the store lies.
        heartbeat: seconds between two signs of life.
        stale: seconds without one before a worker elsewhere counts as dead. Workers of this machine are looked up.
    """

    def __init__(self, location: Location, heartbeat: float = HEARTBEAT, stale: float = STALE) -> None:
        self.location = location
        self.heartbeat = heartbeat
        self.stale = stale
        me = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
        self._me = json.dumps({**me, "token": uuid.uuid4().hex}).encode()
        self._held: dict[str, int] = {}
        self._seen: dict[str, tuple[int | None, float]] = {}
        self._stop = threading.Event()
        # An object that is touched after it was deleted would be there again.
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="ckd-claims", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)

    def take(self, name: str, files: dict[str, int]) -> bool:
        """Claim `name` if nobody alive holds it.

        Args:
            name: the shard's file.
            files: what `Location.sizes` listed just now.
        """
        generations = sorted(int(f.rpartition(".")[2]) for f in files if f.startswith(f".{name}{CLAIM}"))
        if generations and not self._dead(f".{name}{CLAIM}{generations[-1]}"):
            return False
        generation = generations[-1] + 1 if generations else 0
        if not self.location.create_exclusive(f".{name}{CLAIM}{generation}", self._me):
            return False
        with self._lock:
            self._held[name] = generation
        return True

    def release(self, name: str) -> None:
        """Give a claim back, with those it took over: the oldest first, so that the highest stays ours till the end."""
        with self._lock:
            last = self._held.pop(name)
            for generation in range(last + 1):
                self.location.delete(f".{name}{CLAIM}{generation}")

    def _beat(self) -> None:
        while not self._stop.wait(self.heartbeat):
            # A beat that fails is followed by the next; twelve may before anyone takes this for death.
            with self._lock, suppress(OSError):
                for name, generation in self._held.items():
                    self.location.touch(f".{name}{CLAIM}{generation}", self._me)

    def _dead(self, file: str) -> bool:
        try:
            owner = json.loads(self.location.read(file))
            here = owner["host"] == socket.gethostname()
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, TypeError):
            # Killed between creating the claim and filling it.
            here = False
        if here:
            return owner["started"] != _started(owner["pid"])
        # Whether the time stamp moves is judged by this machine's clock alone: the clocks of two may differ.
        modified, now = self.location.modified(file), time.monotonic()
        before = self._seen.setdefault(file, (modified, now))
        if before[0] != modified:
            self._seen[file] = (modified, now)
        return now - self._seen[file][1] > self.stale


def _started(pid: int) -> str | None:
    """When a process of this machine started, None where there is none: a number may be used again."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        state, *fields = stat.read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except OSError:
        pass  # no such process, or a system without /proc
    if stat.parent.parent.joinpath("self").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "running"
    return "running"
