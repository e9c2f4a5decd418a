"""Where a model lies."""

from __future__ import annotations

import torch
from torch import nn


def device_of(model: object) -> torch.device:
    """The device of a module's weights, or of its vectors where it has none; of anything else, the CPU."""
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")
