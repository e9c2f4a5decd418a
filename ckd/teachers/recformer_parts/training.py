"""What pre-training and fine-tuning share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from ckd.data.atomic import replace_file


def linear_schedule(peak: float, warmup: int, total: int) -> Callable[[int], float]:
    """The learning rate of each step from 0: up to `peak` over `warmup` steps, then straight down to zero at `total`.

    A run shorter than twice the warm-up warms up over its first half.
    """
    warmup = min(warmup, total // 2)

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        return peak * max(0.0, (total - step) / (total - warmup))

    return rate


def seed_torch(seed: int, epoch: int) -> None:
    """Seed dropout, so that it is a function of seed and epoch."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]))


def write_log(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write `rows` as `log.csv`, atomically."""
    with replace_file(folder / "log.csv") as partial:
        pl.DataFrame(rows).write_csv(partial)
