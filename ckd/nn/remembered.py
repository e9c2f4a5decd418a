"""A tensor computed from weights, kept for as long as the weights are what they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


class Remembered:
    """Computes once what depends on weights and a constant.

    Weights are compared by content, so that no way of changing them goes unseen; the constant, which may be large, by
    identity and version.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop what is kept."""
        self._value: torch.Tensor | None = None
        self._weights: list[torch.Tensor] = []
        self._constant: torch.Tensor | None = None
        self._version = -1
        self._precision: torch.dtype | None = None

    def get(
        self, weights: Sequence[torch.Tensor], constant: torch.Tensor, compute: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """What `compute` returns, or returned when called with the same weights, constant and precision."""
        device = constant.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        if (
            self._value is None
            or self._constant is not constant
            or self._version != constant._version
            or self._precision != precision
            or not _equal(self._weights, weights)
        ):
            self.forget()
            value = compute()
            self._weights = [weight.detach().clone() for weight in weights]
            self._constant, self._version, self._precision = constant, constant._version, precision
            self._value = value
        return self._value


def _equal(kept: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> bool:
    return len(kept) == len(weights) and all(
        a.device == b.device and a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(kept, weights, strict=True)
    )
