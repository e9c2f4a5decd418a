"""Whom distillation helps: test users by the length of their history, test items by their popularity, in quintiles.

Everything comes from the stored ranks; nothing is ranked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ckd.data.domain import Domain
from ckd.evaluation.metrics import per_user
from ckd.evaluation.ranks import Ranks
from ckd.evaluation.significance import compare, holm
from ckd.pipelines.reproduce.compare import describe, label, ranks_of
from ckd.pipelines.reproduce.methods import BASE, DISTILLED
from ckd.pipelines.reproduce.result import Cell, Column, Difference, Panel, Point, Series, Spread, Table
from ckd.pipelines.reproduce.study import Ran, Study
from ckd.pipelines.workspace import domain_folder

GROUPS = 5
METRICS = ("recall@10", "ndcg@10")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stratum:
    """Test targets of one quintile.

    Attributes:
        number: of the quintile, from 1, the shortest histories or rarest items first.
        low, high: the least and greatest value of its members.
        rows: which test targets.
    """

    number: int
    low: int
    high: int
    rows: Ints


def quintiles(values: Ints, of: Ints | None = None) -> list[Stratum]:
    """Rows by their value, into five parts that are as equal as ties allow; equal values are never parted.

    Args:
        values: (n,) one for each test target.
        of: (m,) the values whose quintiles are meant, such as all items' popularity; none: `values` themselves.

    Returns:
        Up to five strata; a part that ties have emptied, or that no test target is of, is left out.
    """
    population = np.sort(values if of is None else of)
    ends = population[np.ceil(np.arange(1, GROUPS + 1) * len(population) / GROUPS).astype(int) - 1]
    part = np.searchsorted(ends, values)
    found = []
    for number in range(GROUPS):
        rows = np.flatnonzero(part == number)
        if len(rows):
            found.append(Stratum(number + 1, int(values[rows].min()), int(values[rows].max()), rows))
    return found


def subset(ranks: Ranks, rows: Ints) -> Ranks:
    """Some of the test targets."""
    chosen = {name: getattr(ranks, name)[rows] for name in ("user", "target", "rank", "history_length", "popularity")}
    return replace(ranks, **chosen, raw_id=ranks.raw_id[rows.tolist()])


def show_cold_start(study: Study, ran: Sequence[Ran]) -> tuple[list[Table], list[Panel], list[Difference]]:
    """For each domain a table and a figure by history length, and one each by popularity."""
    tables, panels, found = [], [], []
    for domain in study.domains:
        base, ours = (ranks_of(ran, domain, method) for method in (BASE, DISTILLED))
        popularity = Domain.load(domain_folder(study.work, domain)).popularity[1:].astype(np.int64)
        for what, unit, strata in (
            ("Users by history length", "items in the history", quintiles(ours[0].history_length)),
            ("Items by popularity", "interactions in the training part", quintiles(ours[0].popularity, popularity)),
        ):
            tests = _tests(domain, ours, base, strata)
            title = f"{what}, {describe(ran, domain, spread=False)}"
            tables.append(_table(domain, title, unit, strata, tests))
            panels.append(_panel(domain, f"{what} on {domain}", unit, strata, ours, base))
            found += tests
    return tables, panels, found


def _tests(domain: str, ours: Sequence[Ranks], base: Sequence[Ranks], strata: Sequence[Stratum]) -> list[Difference]:
    """Paired tests within each stratum, corrected together; a stratum of one target has no test and p = 1."""
    found = []
    for stratum in strata:
        for metric in METRICS:
            left, right = ([subset(ranks, stratum.rows) for ranks in side] for side in (ours, base))
            if len(stratum.rows) > 1:
                test = compare(left, right, (metric,))[metric]
                value, other, low, high, p = test.mean, test.other_mean, test.low, test.high, test.p_value
            else:
                value, other = (float(np.mean([per_user(metric, r.rank) for r in side])) for side in (left, right))
                low = high = value - other
                p = 1.0
            found.append(
                Difference(
                    domain=domain,
                    metric=f"{metric} of quintile {stratum.number}",
                    method=DISTILLED,
                    against=BASE,
                    value=value,
                    other=other,
                    improvement=value / other - 1 if other else None,
                    low=low,
                    high=high,
                    p=p,
                    p_corrected=1.0,
                    family=len(strata) * len(METRICS),
                )
            )
    return [replace(f, p_corrected=p) for f, p in zip(found, holm([f.p for f in found]), strict=True)]


def _table(domain: str, title: str, unit: str, strata: Sequence[Stratum], tests: Sequence[Difference]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for number, stratum in enumerate(strata):
        cells: list[Cell] = [f"{stratum.number}: {_range(stratum)}", len(stratum.rows)]
        for test in tests[number * len(METRICS) : (number + 1) * len(METRICS)]:
            cells += [test.other, test.value, test.improvement, test.p_corrected]
        rows.append(tuple(cells))
    columns = [Column(f"Quintile: {unit}"), Column("Test users", "count")]
    for metric in METRICS:
        name = label(metric)
        columns += [
            Column(f"{name} {BASE}", "metric"),
            Column(f"{name} {DISTILLED}", "metric"),
            Column(f"{name} improv.", "change"),
            Column(f"{name} p", "p"),
        ]
    note = (
        "Equal values stay together, so quintiles differ in size. p: paired t-test over a quintile's users of the mean "
        f"over seeds, Holm-corrected over {len(tests)} comparisons."
    )
    return Table(title, tuple(columns), tuple(rows), domain, (note,))


def _range(stratum: Stratum) -> str:
    return f"{stratum.low:,}" if stratum.low == stratum.high else f"{stratum.low:,}–{stratum.high:,}"


def _panel(
    domain: str, title: str, unit: str, strata: Sequence[Stratum], ours: Sequence[Ranks], base: Sequence[Ranks]
) -> Panel:
    metric = METRICS[-1]
    series = []
    for name, side in ((BASE, base), (DISTILLED, ours)):
        values = [Spread.of([per_user(metric, r.rank[s.rows]).mean() for r in side]) for s in strata]
        points = tuple(Point(f"{s.number}: {_range(s)}", value) for s, value in zip(strata, values, strict=True))
        series.append(Series(name, points))
    return Panel(title, domain, "bars", f"Quintile: {unit}", label(metric), tuple(series))
