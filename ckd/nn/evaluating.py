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
    if not isinstance(model, nn.Module):
        with torch.no_grad():
            yield
        return
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        # First as the model has it, which may forget or freeze something by the way; then each part's own.
        model.train(modes[0][1])
        for part, training in modes:
            part.training = training
