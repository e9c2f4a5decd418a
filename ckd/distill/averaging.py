"""An exponential moving average of the weights that are trained, as Polyak and Juditsky (1992) average iterates.

The steps go on from the weights as they are; what is validated and kept is their average, which is smoother than any
one of them late in training, where a constant learning rate keeps them moving around the optimum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The moving average of some parameters.

    Args:
        parameters: which; the average begins at their present values.
        decay: what the average keeps of itself at each step, in (0, 1); it looks back about 1 / (1 - decay) steps.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters = list(parameters)
        self._values: list[torch.Tensor | nn.Parameter] = [parameter.detach().clone() for parameter in parameters]
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Take in the parameters as the last step left them."""
        self._average(self._values, list(self._parameters), 0)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the parameters hold the average; afterwards what they held before, to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The average, for a checkpoint."""
        return {str(index): value for index, value in enumerate(self._values)}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `tensors` gave."""
        with torch.no_grad():
            for index, value in enumerate(self._values):
                value.copy_(tensors[str(index)])

    @torch.no_grad()
    def _exchange(self) -> None:
        for value, parameter in zip(self._values, self._parameters, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(held)
