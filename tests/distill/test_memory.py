"""Memory that training frees is held, where the C library can be told so."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from ckd.nn import memory
from ckd.nn.memory import hold_freed_memory

#: Pages that the kernel had to provide for 64 MiB: given back each time, and held, once the heap has settled.
FAULTS = """
import json, resource, torch
from ckd.nn.memory import hold_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = min(faults() for _ in range(5))
held = hold_freed_memory()
again = [faults() for _ in range(40)]
print(json.dumps([held, given_back, max(again[-5:])]))
"""


def test_freed_memory_is_there_for_the_next_step() -> None:
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    held, given_back, again = json.loads(found)
    if not held:
        pytest.skip("this C library has no mallopt")
    assert given_back >= 32  # pages, of 2 MiB at most
    assert again <= given_back / 8


class Library:
    """A C library that takes blocks up to `most`."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken: list[tuple[int, int]] = []

    def mallopt(self, number: int, value: int) -> int:
        if number == memory.M_MMAP_THRESHOLD and value > self.most:
            return 0
        self.taken.append((number, value))
        return 1


@pytest.mark.parametrize(
    ("most", "limits"),
    [(1 << 31, [memory.HELD, memory.HELD]), (1 << 25, [memory.MOST_OF_OLD, memory.HELD]), (0, [])],
)
def test_a_limit_that_is_refused_is_not_left_half_set(
    monkeypatch: pytest.MonkeyPatch, most: int, limits: list[int]
) -> None:
    library = Library(most)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    assert hold_freed_memory() == bool(limits)
    assert [value for _, value in library.taken] == limits


def test_without_such_a_setting_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: Any) -> Any:
        raise OSError("no such library")

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert not hold_freed_memory()
    monkeypatch.setattr(memory.ctypes, "CDLL", nothing)
    assert not hold_freed_memory()
