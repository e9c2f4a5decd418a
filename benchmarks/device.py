"""What a measurement asks of the device: that its work is done, and the most memory that was held."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

#: What each figure of `peak_memory` is called in a table.
HEADERS = {"peak_memory_mb": "peak MB", "peak_gpu_mb": "peak GPU MB"}


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was given: before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory() -> dict[str, float]:
    """Most memory this process has held, by `HEADERS`; ru_maxrss would not do, which is inherited from who started it.

    A GPU's is what its tensors took, and is there where a GPU is.
    """
    status = Path("/proc/self/status").read_text()
    found = {"peak_memory_mb": int(status.split("VmHWM:")[1].split()[0]) / 1024}
    if torch.cuda.is_available():
        found["peak_gpu_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def memory_headers() -> list[str]:
    """Headers of what `peak_memory` has to say on this machine."""
    return list(HEADERS.values()) if torch.cuda.is_available() else [HEADERS["peak_memory_mb"]]


def memory_cells(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Medians under `memory_headers`; empty where runs do not say."""
    keys = [key for key, header in HEADERS.items() if header in memory_headers()]
    return [f"{statistics.median(run[key] for run in runs):,.0f}" if key in runs[0] else "" for key in keys]
