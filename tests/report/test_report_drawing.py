"""Axes, scales, palette."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.report.charts import COLOURS, look
from ckd.report.scales import linear, logarithmic, tick_texts, whole
from ckd.report.style import CSS


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6), st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_linear_axis_holds_its_values_between_round_ticks(values: list[float], zero: bool) -> None:
    scale = linear(values, 10, 110, zero=zero)
    slack = 1e-6 * max(1.0, *(abs(v) for v in values))
    assert scale.low - slack <= min(values)
    assert max(values) <= scale.high + slack
    assert scale(scale.low) == pytest.approx(10)
    assert scale(scale.high) == pytest.approx(110)
    assert list(scale.ticks) == sorted(set(scale.ticks))
    assert 2 <= len(scale.ticks) <= 9
    assert not zero or scale.low <= 0 <= scale.high


@given(st.lists(st.floats(1e-8, 1e8), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_logarithmic_axis_holds_its_values(values: list[float]) -> None:
    scale = logarithmic(values, 0, 100)
    assert all(-1e-6 <= scale(value) <= 100 + 1e-6 for value in values)
    assert all(scale.low <= tick * (1 + 1e-9) for tick in scale.ticks)
    assert len(scale.ticks) >= 1


@given(st.integers(-5, 5000), st.integers(0, 5000))
@settings(max_examples=60, deadline=None)
def test_an_axis_of_whole_numbers(low: int, more: int) -> None:
    scale = whole(low, low + more, 0, 100)
    assert all(tick.is_integer() and low <= tick <= low + more for tick in scale.ticks)
    assert 1 <= len(scale.ticks) <= 8
    assert 0 < scale(low) <= scale(low + more) < 100


def test_tick_labels_have_as_many_decimals_as_needed() -> None:
    assert tick_texts(linear([0.18, 0.22], 0, 1)) == ["0.18", "0.19", "0.20", "0.21", "0.22"]
    assert tick_texts(linear([0, 4000], 0, 1)) == ["0", "1,000", "2,000", "3,000", "4,000"]
    assert tick_texts(linear([0, 4e6], 0, 1)) == ["0", "1M", "2M", "3M", "4M"]
    assert tick_texts(logarithmic([0.02, 2], 0, 1)) == ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2"]


def test_no_two_series_look_alike() -> None:
    looks = [look(number) for number in range(3 * COLOURS)]
    assert len(set(looks)) == len(looks)
    for place in (0, 1, 2):
        assert len({look(number)[place] for number in range(COLOURS)}) == COLOURS


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear_ = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear_[0] + 0.7152 * linear_[1] + 0.0722 * linear_[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


#: Viénot, Brettel and Mollon (1999): what a colour is to who lacks red or green cones, in linear RGB.
MISSING = {
    "red": ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
    "green": ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
}


def seen(colour: str, missing: str) -> tuple[float, ...]:
    linear_ = [(int(colour[at : at + 2], 16) / 255) ** 2.2 for at in (1, 3, 5)]
    mixed = [sum(w * v for w, v in zip(row, linear_, strict=True)) for row in MISSING[missing]]
    return tuple(max(v, 0.0) ** (1 / 2.2) for v in mixed)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read_and_told_apart(theme: int) -> None:
    colours = dict(
        re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", CSS.split("@media (prefers-color-scheme: dark)")[theme])
    )
    background = colours["paper"]
    for name in ("ink", "soft", "link", "red", "amber"):
        assert contrast(colours[name], background) >= 4.5, name
    assert contrast(colours["red"], colours["red-paper"]) >= 4.5
    assert contrast(colours["amber"], colours["amber-paper"]) >= 4.5
    series = [colours[f"c{number}"] for number in range(COLOURS)]
    for colour in series:
        assert contrast(colour, background) >= 3
    for number in range(8):
        assert contrast(colours["ink"], colours[f"b{number}"]) >= 3
    # The first two, which most figures have, are far apart for everyone.
    for missing in MISSING:
        assert math.dist(seen(series[0], missing), seen(series[1], missing)) > 0.4
