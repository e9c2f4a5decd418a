"""The trials of a search, as they are kept: one Parquet row each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from ckd.data.atomic import replace_file
from ckd.errors import DataError, first_line
from ckd.tune.space import Value

#: The metric that decides, of the validation part.
METRIC = "ndcg@10"

State = Literal["complete", "diverged"]

#: What every trial has, whatever was searched.
COLUMNS: dict[str, type[pl.DataType]] = {
    "number": pl.Int32,
    "state": pl.String,
    f"valid_{METRIC}": pl.Float64,
    "valid_recall@10": pl.Float64,
    "best_epoch": pl.Int32,
    "epochs": pl.Int32,
    "seconds": pl.Float64,
    "values": pl.String,
}


@dataclass(frozen=True)
class Trial:
    """One trained setting.

    Attributes:
        number: from 0.
        state: `diverged` has no metric.
        values: by dimension; empty: the configuration as it is.
        metric: validation NDCG@10 of the best epoch.
        recall: validation Recall@10 of the same epoch.
        best_epoch: which epoch that is, from 0.
        epochs: how many were trained.
        seconds: spent on their steps, validation not counted.
    """

    number: int
    state: State
    values: dict[str, Value]
    metric: float | None
    recall: float | None
    best_epoch: int | None
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Budget:
    """What a search was given: finished trials, and the epochs and seconds of training in them."""

    trials: int
    epochs: int
    seconds: float

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> Budget:
        return cls(len(trials), sum(t.epochs for t in trials), round(sum(t.seconds for t in trials), 3))


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the highest validation NDCG@10, the first of equals; None where all diverged."""
    finished = [trial for trial in trials if trial.metric is not None]
    return max(finished, key=lambda trial: (trial.metric, -trial.number), default=None)


def save_trials(trials: Sequence[Trial], names: Sequence[str], path: Path) -> None:
    """Write all trials, atomically: what every trial has, then one column for each searched dimension.

    Args:
        names: of the dimensions. Their columns are for readers, and hold text where kinds are mixed; what is read
            back is the JSON in `values`.
    """
    columns: dict[str, pl.Series] = {
        name: pl.Series(name, [_of(trial, name) for trial in trials], dtype=kind) for name, kind in COLUMNS.items()
    }
    for name in names:
        columns[name] = _column(name, [trial.values.get(name) for trial in trials])
    with replace_file(path) as partial:
        pl.DataFrame(columns).write_parquet(partial, compression="zstd", statistics=False)


def _of(trial: Trial, name: str) -> object:
    if name == "values":
        return json.dumps(trial.values)
    return {f"valid_{METRIC}": trial.metric, "valid_recall@10": trial.recall}.get(name, getattr(trial, name, None))


def _column(name: str, values: Sequence[Value]) -> pl.Series:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and kinds != {int}:
        return pl.Series(name, [None if v is None else float(v) for v in values], dtype=pl.Float64)
    if len(kinds) == 1:
        return pl.Series(name, values, dtype={int: pl.Int64, bool: pl.Boolean, str: pl.String}[kinds.pop()])
    return pl.Series(name, [None if v is None else str(v) for v in values], dtype=pl.String)


def load_trials(path: Path) -> list[Trial]:
    """The trials in a file, by number.

    Raises:
        DataError: no such file, damaged, or not trials.
    """
    remedy = "Give --restart to search again."
    try:
        table = pl.read_parquet(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no trials here. {remedy}") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: damaged ({first_line(error)}). {remedy}") from None
    if not set(table.columns) >= COLUMNS.keys():
        raise DataError(f"{path}: Parquet, but holds no trials. {remedy}")
    return [
        Trial(
            number=row["number"],
            state=row["state"],
            values=json.loads(row["values"]),
            metric=row[f"valid_{METRIC}"],
            recall=row["valid_recall@10"],
            best_epoch=row["best_epoch"],
            epochs=row["epochs"],
            seconds=row["seconds"],
        )
        for row in table.sort("number").iter_rows(named=True)
    ]
