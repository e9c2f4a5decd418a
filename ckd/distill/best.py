"""The best model of a run, of the epoch that its last checkpoint says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from ckd.data.atomic import link_or_copy, write_json
from ckd.nn.weights import write_weights


class Best:
    """Weights and log row of the best epoch so far, and those before them until a checkpoint counts the new ones.

    After a kill in between, an epoch taken again by other processes or on another device may turn out otherwise.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.weights = folder / "best.safetensors"
        self.log = folder / "best.json"

    def save(self, model: nn.Module, row: dict[str, Any], identity: dict[str, Any]) -> None:
        """Write what is the best now, and keep what was until `settle`; an attempt at the same epoch is nothing."""
        if self.log.exists() and _epoch(self.log) != row["epoch"]:
            for path in (self.weights, self.log):
                if path.exists():
                    link_or_copy(path, _former(path))
        write_weights(self.weights, model)
        write_json(self.log, {"log": row, "identity": identity})

    def settle(self, epoch: int) -> None:
        """Let the best be that of this epoch, which the last checkpoint has as its best, and forget the one before."""
        former = _former(self.log)
        if former.exists() and _epoch(former) == epoch:
            # The log last: until it is there, whoever is killed here begins here again.
            for path in (self.weights, self.log):
                if _former(path).exists():
                    _former(path).replace(path)
        for path in (self.weights, self.log):
            _former(path).unlink(missing_ok=True)


def _former(path: Path) -> Path:
    return path.with_name(f".former.{path.name}")


def _epoch(log: Path) -> int:
    epoch: int = json.loads(log.read_text())["log"]["epoch"]
    return epoch
