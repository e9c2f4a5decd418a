"""A run's curves for TensorBoard, where the extra `tensorboard` is installed and the configuration asks for them."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckd.config import TrainConfig
from ckd.errors import ConfigError

#: Values of a step and columns of the log that are drawn, and under which heading; see `_tag` for those by name.
TAGS = {
    "loss": "train/loss",
    "ce": "train/ce",
    "kd": "train/kd",
    "stage": "curriculum/stage",
    "instances_per_second": "speed/instances_per_second",
    "waiting_share": "speed/waiting_share",
}


def require_tensorboard(config: TrainConfig) -> None:
    """Refuse `train.tensorboard` where nothing could write it.

    Raises:
        ConfigError: the package is missing; names the extra.
    """
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "train.tensorboard=True: the package tensorboard is not installed. Install the extra: "
            "pip install 'ckd-mdsr[tensorboard]', or leave the key out."
        )


class Events:
    """Writes scalars by number of steps taken. A folder that is not written to does not come into being.

    What an interrupted process wrote after its last checkpoint is declared void when the run goes on, so that readers
    show every step once.

    Args:
        folder: where event files go; none: write nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._writer: Any = None

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Draw the values, after `step` steps of the run; those that have no curve are left out."""
        if self.folder is None:
            return
        if self._writer is None:
            # Imported here: it is an extra, and takes seconds.
            from torch.utils.tensorboard import SummaryWriter

            _wait_for_next_second(self.folder)
            self._writer = SummaryWriter(str(self.folder), purge_step=step)
        for name, value in values.items():
            if tag := _tag(name):
                self._writer.add_scalar(tag, value, step)

    def flush(self) -> None:
        """Have everything on the disk before the checkpoint that counts on it."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Finish the file; a later `add` begins another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _wait_for_next_second(folder: Path) -> None:
    """Readers take files by the second in their names; a later one declares what of an earlier is void."""
    seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
    time.sleep(max(0.0, min(1.0, max(seconds, default=0) + 1 - time.time())))


def _tag(name: str) -> str | None:
    for prefix, heading in (("dropped_", "dropped"), ("valid_", "valid")):
        if name.startswith(prefix):
            return f"{heading}/{name.removeprefix(prefix)}"
    return TAGS.get(name)
