"""The curriculum as pictures: what each epoch trains on, and what the buckets hold (paper 3.4)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ckd.distill.curriculum import FULL, Bucket, Spread, stage_of
from ckd.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, axes, svg
from ckd.report.markup import element
from ckd.report.scales import linear, whole
from ckd.report.work import PlanInfo

#: Full epochs shown after the curriculum; all of them look alike.
FULL_SHOWN = 3

QUANTITIES = {
    "difficulty": "Difficulty",
    "length": "Items in a sequence",
    "popularity": "Popularity of a sequence's items",
}

#: Classes of the page for buckets, light to dark.
SHADES = 8


def pictures(plan: PlanInfo) -> list[tuple[str, str]]:
    """(title, SVG) of the epochs, and with a curriculum of difficulty, length and popularity by bucket."""
    found = [("Training instances in an epoch", _epochs(plan))]
    for quantity, title in QUANTITIES.items():
        spreads = [getattr(bucket, quantity) for bucket in plan.curriculum]
        if None not in spreads and len(spreads) > 1:
            name = f"{title} ({plan.config.difficulty})" if quantity == "difficulty" else title
            found.append((name, _boxes(plan.curriculum, spreads, name)))
    return found


def data(plan: PlanInfo) -> tuple[list[str], list[list[Any]]]:
    """What the pictures are drawn from: one row for each bucket."""
    headers = ["bucket", "samples", "instances"]
    for quantity in QUANTITIES:
        headers += [f"{quantity} {part}" for part in ("mean", "p10", "p25", "p50", "p75", "p90")]
    rows: list[list[Any]] = []
    for number, bucket in enumerate(plan.curriculum, start=1):
        row: list[Any] = [number, bucket.samples, bucket.instances]
        for quantity in QUANTITIES:
            spread: Spread | None = getattr(bucket, quantity)
            row += [None] * 6 if spread is None else [spread.mean, *spread.percentiles]
        rows.append(row)
    return headers, rows


def _shade(number: int, of: int) -> str:
    """Class of a bucket's colour: it darkens with difficulty, so that it reads in grey as well."""
    return f"b{round((number - 1) / max(of - 1, 1) * (SHADES - 1))}"


def _epochs(plan: PlanInfo) -> str:
    """Columns, one upon the other: the instances of each bucket that an epoch visits."""
    config = plan.config
    stages = [stage_of(epoch, config.buckets, config.epochs_per_stage) for epoch in range(config.epochs)]
    shown = [*(s for s in stages if s != FULL), *[s for s in stages if s == FULL][:FULL_SHOWN]]
    total = sum(bucket.instances for bucket in plan.curriculum)
    x = whole(1, len(shown), LEFT, WIDTH - RIGHT, count=12)
    y = linear([0, total], HEIGHT - BOTTOM, TOP, zero=True)
    width = min(x(2) - x(1), 60.0) * 0.82 if len(shown) > 1 else 60.0
    parts = []
    for epoch, stage in enumerate(shown, start=1):
        low = 0
        for number, bucket in enumerate(plan.curriculum, start=1):
            if stage != FULL and number > stage:
                continue
            high = low + bucket.instances
            tip = f"<title>epoch {epoch}, bucket {number}: {bucket.instances:,} instances</title>"
            parts.append(
                element(
                    "rect",
                    tip,
                    class_=f"box {_shade(number, len(plan.curriculum))}",
                    x=x(epoch) - width / 2,
                    y=y(high),
                    width=width,
                    height=y(low) - y(high),
                )
            )
            low = high
    more = config.epochs - len(shown)
    label = f"epoch (and {more} more like the last)" if more else "epoch"
    return svg([*axes(x, y, label), *parts], f"Training instances in each epoch of plan {plan.id}")


def _boxes(buckets: tuple[Bucket, ...], spreads: list[Spread], title: str) -> str:
    """A box for each bucket (middle half; whiskers: middle 80%), and the mean of each stage as a line."""
    x = whole(1, len(spreads), LEFT, WIDTH - RIGHT, count=12)
    y = linear([value for s in spreads for value in (*s.percentiles, s.mean)], HEIGHT - BOTTOM - 4, TOP + 4)
    half = min(x(2) - x(1), 70.0) * 0.3
    parts = []
    for number, spread in enumerate(spreads, start=1):
        low, q1, middle, q3, high = (y(value) for value in spread.percentiles)
        at = x(number)
        tip = f"<title>bucket {number}: median {spread.percentiles[2]:.4g}, mean {spread.mean:.4g}</title>"
        parts += [
            element("line", class_="rule", x1=at, x2=at, y1=low, y2=high),
            *(element("line", class_="rule", x1=at - half / 2, x2=at + half / 2, y1=v, y2=v) for v in (low, high)),
            element(
                "rect",
                tip,
                class_=f"box {_shade(number, len(spreads))}",
                x=at - half,
                y=q3,
                width=2 * half,
                height=max(q1 - q3, 1.0),
            ),
            element("line", class_="median", x1=at - half, x2=at + half, y1=middle, y2=middle),
        ]
    samples = np.cumsum([bucket.samples for bucket in buckets])
    means = np.cumsum([s.mean * b.samples for s, b in zip(spreads, buckets, strict=True)]) / samples
    path = " ".join(f"{x(number):.1f},{y(mean):.1f}" for number, mean in enumerate(means.tolist(), start=1))
    parts.append(element("polyline", class_="stage", points=path))
    parts += [element("circle", class_="stage", cx=x(n), cy=y(m), r=3.4) for n, m in enumerate(means.tolist(), start=1)]
    return svg([*axes(x, y, "bucket, and the stage that opens it"), *parts], title)
