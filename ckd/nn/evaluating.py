"""A scope in which a model answers and does not learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Evaluation mode without gradients; the mode of every part, which may be its own, comes back afterwards.

    Args:
        model: a module; anything else has no modes.
    """
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [part.training for part in parts]
    if isinstance(model, nn.Module):
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if isinstance(model, nn.Module):
            # Some teachers keep what is frozen out of training whatever they are told: told first, parts come after.
            model.train(modes[0])
        for part, training in zip(parts, modes, strict=True):
            part.training = training
