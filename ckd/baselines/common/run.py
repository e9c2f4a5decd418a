"""The folder of a baseline's run: checkpoints, log and early stopping, in the form that students have."""

from __future__ import annotations

import csv
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ckd.data.atomic import discard_partials, replace_file, write_json
from ckd.distill.best import Best
from ckd.distill.checkpoint import TrainState, load_checkpoint, save_checkpoint
from ckd.distill.trainer import EXPLODED, Trained, TrainingDiverged
from ckd.nn.memory import hold_freed_memory
from ckd.nn.weights import put_weights, read_weights


class Run:
    """Where a run is and what it leaves in its folder.

    Args:
        folder: where `best.*`, `last.*` and `log.csv` go.
        identity: configuration and fingerprints of the run; a checkpoint of another run is refused.
        metric: validation metric that chooses the best epoch.
        patience: validations without a better one before the run ends.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], metric: str, patience: int) -> None:
        self.folder = folder
        self.identity = identity
        self.metric = metric
        self.patience = patience
        self.state = TrainState()
        self.best = Best(folder)

    @property
    def last(self) -> Path:
        return self.folder / "last.safetensors"

    def resume(self, everything: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Begin, or go on from the last checkpoint where there is one.

        Raises:
            DataError: it is damaged, or of another run.
        """
        hold_freed_memory()
        self.folder.mkdir(parents=True, exist_ok=True)
        discard_partials(self.folder)
        if self.last.exists():
            self.state = load_checkpoint(self.last, everything, optimizer, self.identity)
            # Whoever was killed between the checkpoint and what follows from it left these behind.
            self.best.settle(self.state.best_epoch)
            self._write_state()

    def note_metrics(self, row: dict[str, Any], metrics: dict[str, float], model: nn.Module) -> None:
        """Add a validation's metrics to the log row, and keep the model if it is the best so far."""
        row |= {f"valid_{name}": value for name, value in metrics.items()}
        if metrics[self.metric] > self.state.best:
            self.state.best, self.state.best_epoch, self.state.stale = metrics[self.metric], row["epoch"], 0
            self.best.save(model, row, self.identity)
        else:
            self.state.stale += 1

    def finish_epoch(self, row: dict[str, Any], last: bool) -> None:
        """Count the epoch, and decide whether it was the last."""
        self.state.rows.append(row)
        self.state.epoch += 1
        self.state.finished = last or self.state.stale >= self.patience

    def save(self, everything: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write the last checkpoint, and beside it what people read without opening it."""
        save_checkpoint(self.last, everything, optimizer, self.state, self.identity)
        self.best.settle(self.state.best_epoch)
        self._write_state()

    def require_sound(self, loss: float, step: int, remedy: str) -> None:
        """Stop where the loss is not finite, or has exploded.

        Args:
            loss: mean over what the step has summed it over.
            step: within the epoch.
            remedy: ends the message.

        Raises:
            TrainingDiverged: names the step and the last good checkpoint.
        """
        if not math.isfinite(loss) or abs(loss) > EXPLODED:
            kept = self.last if self.last.exists() else "none"
            raise TrainingDiverged(
                f"loss {loss} at epoch {self.state.epoch}, step {step}; last good checkpoint: {kept}. {remedy}"
            )

    def result(self, model: nn.Module) -> Trained:
        """The outcome of a finished run, with the best epoch's weights put into `model`."""
        put_weights(model, read_weights(self.best.weights), str(self.best.weights))
        row = next(row for row in self.state.rows if row["epoch"] == self.state.best_epoch)
        metrics = {name.removeprefix("valid_"): value for name, value in row.items() if name.startswith("valid_")}
        return Trained(self.state.best_epoch, metrics, self.state.rows)

    def _write_state(self) -> None:
        write_json(self.folder / "last.json", asdict(self.state))
        names = list(dict.fromkeys(name for row in self.state.rows for name in row))
        with replace_file(self.folder / "log.csv") as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(self.state.rows)
