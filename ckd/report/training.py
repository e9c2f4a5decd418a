"""How a run's training went: loss parts, validation, and which teacher was dropped when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ckd.distill.curriculum import FULL
from ckd.pipelines.reproduce.result import Panel, Series
from ckd.report.charts import Mark
from ckd.report.figures import bare_figure, gallery, line
from ckd.report.markup import behind
from ckd.report.work import Run

#: Columns of the log that are no parts of a loss.
NOT_LOSS = {"epoch", "stage", "instances", "seconds", "instances_per_second", "waiting_share", "phase", "step"}

LOSS_NAMES = {"loss": "loss", "ce": "cross-entropy", "kd": "KL"}
VALID = {"valid_ndcg@10": "NDCG@10", "valid_recall@10": "Recall@10"}

#: Most runs side by side in one picture.
SIDE_BY_SIDE = 6


def figures_of(run: Run, name: str) -> str:
    """Pictures of one run, and below them its whole log, which is their data; nothing where it kept no log."""
    if not run.rows:
        return ""
    marks = _marks(run)
    panels = [*_losses(run), *_validation(run), *_dropped(run)]
    drawn = gallery([bare_figure(panel, marks) for panel in panels])
    headers = list(dict.fromkeys(key for row in run.rows for key in row))
    rows = [[row.get(key) for key in headers] for row in run.rows]
    return drawn + behind(headers, rows, f"{name}-log", run.name, "Data: the whole log")


def _marks(run: Run) -> list[Mark]:
    """Where the curriculum ends, and the best epoch."""
    marks = []
    stages = [row.get("stage", FULL) for row in run.rows]
    if stages[0] != FULL and FULL in stages:
        marks.append(Mark(_epoch(run.rows, stages.index(FULL)) - 0.5, "full data"))
    if run.best_epoch is not None:
        marks.append(Mark(float(run.best_epoch), "best"))
    return marks


def _epoch(rows: Sequence[dict[str, Any]], at: int) -> float:
    return float(rows[at].get("epoch", at))


def _series(run: Run, key: str, name: str) -> Series:
    points = [(_epoch(run.rows, at), float(row[key])) for at, row in enumerate(run.rows) if _is_number(row.get(key))]
    return line(name, points)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _panel(run: Run, title: str, y: str, series: Sequence[Series]) -> list[Panel]:
    drawn = tuple(each for each in series if each.points)
    return [Panel(title, run.domain, "lines", "epoch", y, drawn)] if drawn else []


def _losses(run: Run) -> list[Panel]:
    """Parts of the loss; KL, which is far smaller, in a picture of its own."""
    keys = [key for key in dict.fromkeys(key for row in run.rows for key in row) if _is_loss(key)]
    if all(row.get("loss") == row.get("ce") for row in run.rows):
        keys = [key for key in keys if key != "loss"]
    large = [_series(run, key, LOSS_NAMES.get(key, key)) for key in sorted(keys, key=_order) if key != "kd"]
    small = [_series(run, "kd", "KL")] if "kd" in keys else []
    return _panel(run, "Loss while training", "mean over instances", large) + _panel(
        run, "KL to the teachers' target", "mean over instances, in nats", small
    )


def _is_loss(key: str) -> bool:
    return key not in NOT_LOSS and not key.startswith(("valid", "dropped_"))


def _order(key: str) -> tuple[int, str]:
    known = list(LOSS_NAMES)
    return (known.index(key) if key in known else len(known), key)


def _validation(run: Run) -> list[Panel]:
    series = [_series(run, key, name) for key, name in VALID.items()]
    return _panel(run, "Validation", "all items ranked", series)


def _dropped(run: Run) -> list[Panel]:
    """The share of instances for which each teacher was dropped as the least consistent one (paper 3.6)."""
    teachers = [key for key in dict.fromkeys(key for row in run.rows for key in row) if key.startswith("dropped_")]
    if not any(row.get(key) for row in run.rows for key in teachers):
        return []
    series = [_series(run, key, key.removeprefix("dropped_")) for key in teachers]
    return _panel(run, "Which teacher was dropped", "share of instances", series)


def side_by_side(runs: Sequence[tuple[str, Run]], domain: str, seed: int) -> list[Panel]:
    """Validation NDCG@10 of several methods, epoch by epoch."""
    series = [_series(run, "valid_ndcg@10", name) for name, run in runs]
    series = [each for each in series if each.points]
    if not any(len(each.points) > 1 for each in series):
        return []
    count = -(-len(series) // SIDE_BY_SIDE)
    size = -(-len(series) // count)
    return [
        Panel(
            f"{domain}: validation while training, seed {seed}",
            domain,
            "lines",
            "epoch",
            "NDCG@10",
            tuple(series[start : start + size]),
        )
        for start in range(0, len(series), size)
    ]
