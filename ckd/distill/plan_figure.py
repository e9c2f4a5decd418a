"""A plan's curriculum as a figure: what each epoch trains on, and what the buckets hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from ckd.data.atomic import replace_file
from ckd.distill.curriculum import Spread
from ckd.distill.plan import FULL, Plan
from ckd.errors import ConfigError

FORMATS = ("png", "svg", "pdf")

#: Random epochs shown after the curriculum; all of them look alike.
FULL_EPOCHS_SHOWN = 3

INK = "#1a1a1a"
FAINT = "#767676"

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    # Fixed, so that the same plan is the same file.
    "svg.hashsalt": "ckd",
}


def picture_format(path: Path) -> str:
    """The format that the ending of `path` names.

    Raises:
        ConfigError: it is not png, svg or pdf.
    """
    ending = path.suffix.lstrip(".").lower()
    if ending not in FORMATS:
        raise ConfigError(f"{path}: cannot draw {ending or 'a file without ending'!r}. Known: {', '.join(FORMATS)}.")
    return ending


def draw_curriculum(plan: Plan, path: Path, title: str = "") -> None:
    """Draw the plan to `path`: instances per epoch by bucket, then difficulty, length and popularity of each bucket.

    Boxes span the middle half of a bucket's sequences, whiskers the middle 80%; the line is the mean of what a stage
    trains on. Buckets darken with difficulty, so that the figure also reads in grey.

    Raises:
        ConfigError: the ending of `path` is not png, svg or pdf.
    """
    ending = picture_format(path)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 6.6), layout="constrained")
        axes = figure.subplots(2, 2)
        _draw_epochs(axes[0, 0], plan)
        _draw_spread(axes[0, 1], plan, "difficulty", f"Difficulty ({plan.config.difficulty})")
        _draw_spread(axes[1, 0], plan, "length", "Items in a sequence")
        _draw_spread(axes[1, 1], plan, "popularity", "Popularity of a sequence's items")
        axes[1, 1].set_ylabel("mean, most popular item = 1")
        figure.supxlabel(
            "Boxes: middle half of a bucket's sequences. Whiskers: middle 80%. Line: mean of what a stage trains on.",
            fontsize=9,
            color=FAINT,
        )
        figure.suptitle(title or f"Plan {plan.id}", x=0.01, ha="left", fontsize=13, fontweight="bold")
        metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(ending, {})
        with replace_file(path) as unfinished:
            figure.savefig(unfinished, format=ending, dpi=150, metadata=metadata)


def _colours(n: int) -> list[Any]:
    """Light to middling dark, so that a black median still shows on the darkest."""
    return [mpl.colormaps["YlGnBu"](x) for x in (np.linspace(0.15, 0.72, n) if n > 1 else [0.45])]


def _draw_epochs(axes: Axes, plan: Plan) -> None:
    """Stairs, one upon the other: the instances of each bucket that an epoch visits."""
    stages = plan.tables.stages.astype(int)
    shown = np.concatenate([stages[stages != FULL], stages[stages == FULL][:FULL_EPOCHS_SHOWN]])
    edges = np.arange(len(shown) + 1) + 0.5
    bottom = np.zeros(len(shown))
    for number, (bucket, colour) in enumerate(
        zip(plan.curriculum, _colours(len(plan.curriculum)), strict=True), start=1
    ):
        top = bottom + np.where((shown == FULL) | (shown >= number), bucket.instances, 0)
        axes.stairs(top, edges, baseline=bottom, fill=True, facecolor=colour, edgecolor="white", linewidth=0.8)
        bottom = top
    axes.set_ylim(0, None)
    axes.set_title("Training instances in an epoch")
    more = plan.epochs - len(shown)
    axes.set_xlabel(f"epoch (and {more} more like the last)" if more else "epoch")
    _number(axes, len(shown))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _draw_spread(axes: Axes, plan: Plan, quantity: str, title: str) -> None:
    """A box for each bucket, and the mean of each stage as a line."""
    spreads: list[Spread | None] = [getattr(bucket, quantity) for bucket in plan.curriculum]
    known = [spread for spread in spreads if spread is not None]
    if not known:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "No curriculum: every epoch\nis over the full data.", ha="center", va="center", color=FAINT)
        return
    axes.set_title(title)
    names = ("whislo", "q1", "med", "q3", "whishi")
    drawn = axes.bxp(
        [dict(zip(names, spread.percentiles, strict=True)) for spread in known],
        positions=range(1, len(known) + 1),
        widths=0.6,
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        medianprops={"color": INK, "linewidth": 1.8},
        whiskerprops={"color": FAINT},
        capprops={"color": FAINT},
    )
    for box, colour in zip(drawn["boxes"], _colours(len(known)), strict=True):
        box.set(facecolor=colour, edgecolor=FAINT)
    samples = np.cumsum([bucket.samples for bucket in plan.curriculum])
    totals = np.cumsum([s.mean * b.samples for s, b in zip(known, plan.curriculum, strict=True)])
    axes.plot(
        range(1, len(known) + 1),
        totals / samples,
        color="#b5361c",
        marker="o",
        markersize=6,
        markeredgecolor="white",
        linewidth=1.8,
    )
    axes.set_xlabel("bucket, and the stage that opens it")
    _number(axes, len(known))


def _number(axes: Axes, n: int) -> None:
    """Number the x axis 1 to n, at most a dozen labels."""
    slack = max(0, 3 - n) / 2
    axes.set_xlim(0.4 - slack, n + 0.6 + slack)
    axes.set_xticks(range(1, n + 1, -(-n // 12)))
