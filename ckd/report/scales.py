"""From values to places: linear and logarithmic axes with round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: Steps between ticks, times a power of ten.
ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """An axis.

    Attributes:
        low, high: values at its ends.
        start, stop: places of its ends.
        log: whether it is logarithmic.
        ticks: values to mark.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        low, high, value = (
            (math.log(self.low), math.log(self.high), math.log(value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


def linear(values: Iterable[float], start: float, stop: float, count: int = 5, zero: bool = False) -> Scale:
    """A linear axis over the values, its ends at ticks.

    Args:
        count: about how many ticks.
        zero: whether it has to begin at zero.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if zero:
        low, high = min(0.0, low), max(0.0, high)
    if high - low <= max(1e-12 * max(abs(low), abs(high)), 1e-290):
        spare = abs(low) * 0.1 or 0.5
        low, high = (low, high + spare) if zero else (low - spare, high + spare)
    step = round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(_clean(number * step) for number in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], start, stop, False, ticks)


def whole(low: int, high: int, start: float, stop: float, count: int = 6) -> Scale:
    """An axis over whole numbers, with half a step to spare at either end."""
    step = max(1, math.ceil((high - low + 1) / count))
    step = next(nice for nice in (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, step) if nice >= step)
    ticks = tuple(float(n) for n in range(math.ceil(low / step) * step, high + 1, step))
    return Scale(low - 0.5, high + 0.5, start, stop, False, ticks)


def logarithmic(values: Iterable[float], start: float, stop: float) -> Scale:
    """A logarithmic axis over positive values."""
    positive = [value for value in values if value > 0 and math.isfinite(value)] or [1.0, 10.0]
    low, high = min(positive), max(positive)
    spare = (high / low) ** 0.06 if high > low else 2.0
    low, high = low / spare, high * spare
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps: Sequence[float] = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    ticks = tuple(_clean(m * 10.0**d) for d in decades for m in steps if low <= m * 10.0**d <= high)
    return Scale(low, high, start, stop, True, ticks or (_clean(low), _clean(high)))


def round_step(least: float) -> float:
    """The smallest round number that is at least so large."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * each for each in ROUND if power * each >= least * (1 - 1e-9))


def _clean(value: float) -> float:
    return float(f"{value:.10g}")


def tick_texts(scale: Scale) -> list[str]:
    """Labels of the ticks, short; on a linear axis all with as many decimals."""
    texts = [_short(tick) for tick in scale.ticks]
    if scale.log or any("e" in text or "M" in text for text in texts):
        return texts
    decimals = max(len(text.partition(".")[2]) for text in texts)
    return [f"{tick:,.{decimals}f}" for tick in scale.ticks]


def _short(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value:,.6g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}".replace("e-0", "e-")
