"""Memory that training frees is held, where the C library can be told so."""

from __future__ import annotations

import ctypes
import json
import os
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


#: Bytes in use after products of many shapes in bfloat16, less those after the first hundred.
GROWTH = """
import ctypes, torch
from ckd.nn.memory import keep_few_kernels

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ord smb hblks hblkhd usm fsm used free keep".split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Info
torch.set_num_threads(1)
if {bounded}:
    keep_few_kernels()
table = torch.randn(64, 64).bfloat16()
for rows in range(100, 700):
    torch.randn(rows, 64).bfloat16() @ table
    if rows == 200:
        early = library.mallinfo2().used
print(library.mallinfo2().used - early)
"""


def test_kernels_of_shapes_that_do_not_come_again_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("this C library does not tell what is in use")
    for name in memory.KERNELS:
        monkeypatch.delenv(name, raising=False)
    grown = {}
    for bounded in (False, True):
        command = [sys.executable, "-c", GROWTH.format(bounded=bounded)]
        grown[bounded] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    if grown[False] < 1 << 20:
        pytest.skip("no kernels are kept here")
    assert grown[True] < grown[False] / 4


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = memory.KERNELS
    monkeypatch.setenv(first, "7")
    monkeypatch.delenv(second, raising=False)
    memory.keep_few_kernels()
    assert (os.environ[first], os.environ[second]) == ("7", memory.KERNELS[second])
