"""Tables of methods side by side, and the paired tests between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ckd.evaluation.metrics import ranking_metrics
from ckd.evaluation.ranks import Ranks
from ckd.evaluation.significance import compare, holm
from ckd.pipelines.reproduce import paper
from ckd.pipelines.reproduce.result import Cell, Column, Difference, Panel, Point, Series, Spread, Table
from ckd.pipelines.reproduce.study import Ran

#: Metrics of the paper's Tables 3 and 4.
METRICS = paper.METRICS

#: Below this, a difference is marked.
SIGNIFICANT = 0.05

HOLM = "p: paired t-test over users of the mean over seeds, Holm-corrected over {} comparisons; * is p < 0.05."


def runs_of(ran: Sequence[Ran], domain: str, method: str) -> list[Ran]:
    """The runs of a method on a domain, by seed."""
    return [each for each in ran if (each.record.domain, each.record.method) == (domain, method)]


def ranks_of(ran: Sequence[Ran], domain: str, method: str) -> list[Ranks]:
    return [each.ranks for each in runs_of(ran, domain, method)]


def spread_of(ran: Sequence[Ran], domain: str, method: str, metric: str) -> Spread:
    """A metric of the test part over seeds."""
    return Spread.of([ranking_metrics(ranks.rank)[metric] for ranks in ranks_of(ran, domain, method)])


def valid_of(ran: Sequence[Ran], domain: str, method: str, metric: str) -> Spread:
    """A metric of the validation part, at the best epoch, over seeds."""
    return Spread.of([each.record.valid[metric] for each in runs_of(ran, domain, method)])


def methods_of(ran: Sequence[Ran], domain: str) -> list[str]:
    """Names of the methods on a domain, in their order."""
    return list(dict.fromkeys(each.record.method for each in ran if each.record.domain == domain))


def domains_of(ran: Sequence[Ran]) -> list[str]:
    return list(dict.fromkeys(each.record.domain for each in ran))


def label(metric: str) -> str:
    """`R@10` for `recall@10`."""
    name, _, k = metric.partition("@")
    return f"{name[0].upper()}@{k}" if k else name.upper()


def describe(ran: Sequence[Ran], domain: str, spread: bool = True) -> str:
    """What was ranked and how often it was run; `spread`: whether cells show how far seeds lie apart."""
    ranks = next(each.ranks for each in ran if each.record.domain == domain)
    return f"{domain}: test, {len(ranks):,} users, {ranks.n_items:,} items, {describe_seeds(ran, domain, spread)}"


def describe_seeds(ran: Sequence[Ran], domain: str, spread: bool = True) -> str:
    """How often what is shown of a domain was run; `spread` as in `describe`."""
    seeds = sorted({each.record.seed for each in ran if each.record.domain == domain})
    several = f"{len(seeds)} seeds, mean ± standard deviation" if spread else f"mean over {len(seeds)} seeds"
    return several if len(seeds) > 1 else f"seed {seeds[0]}"


def differences(
    ran: Sequence[Ran], domain: str, pairs: Sequence[tuple[str, str]], metrics: Sequence[str] = METRICS
) -> list[Difference]:
    """Paired tests of (method, against) on each metric, corrected together.

    Raises:
        DataError: two runs did not rank the same targets.
    """
    found = []
    for method, against in pairs:
        tests = compare(ranks_of(ran, domain, method), ranks_of(ran, domain, against), metrics)
        for metric, test in tests.items():
            found.append(
                Difference(
                    domain=domain,
                    metric=metric,
                    method=method,
                    against=against,
                    value=test.mean,
                    other=test.other_mean,
                    improvement=test.difference / test.other_mean if test.other_mean else None,
                    low=test.low,
                    high=test.high,
                    p=test.p_value,
                    p_corrected=1.0,
                    family=len(pairs) * len(metrics),
                )
            )
    corrected = holm([each.p for each in found])
    return [replace(each, p_corrected=p) for each, p in zip(found, corrected, strict=True)]


def methods_table(ran: Sequence[Ran], domain: str, metrics: Sequence[str] = METRICS) -> Table:
    """A row for each method, and below it the paper's own figures where it has any."""
    rows: list[tuple[Cell, ...]] = []
    from_paper = []
    for method in methods_of(ran, domain):
        rows.append((method, *(spread_of(ran, domain, method, metric) for metric in metrics)))
        known = paper.metrics_of(domain, method)
        if known:
            from_paper.append(len(rows))
            rows.append((f"  the paper's {method}", *(known.get(metric) for metric in metrics)))
    notes = []
    if from_paper:
        notes.append(
            f"The paper's rows are its own figures on its {paper.name_of(domain)!r}, which is another version of this "
            "domain: see `ckd reproduce table2`."
        )
    runs = {method: len(runs_of(ran, domain, method)) for method in methods_of(ran, domain)}
    fewer = [f"{method} ({count})" for method, count in runs.items() if count < max(runs.values())]
    if fewer:
        notes.append(f"Of fewer seeds, as all students learn from the same runs: {', '.join(fewer)}.")
    columns = (Column("Method"), *(Column(label(metric), "metric") for metric in metrics))
    return Table(describe(ran, domain), columns, tuple(rows), domain, tuple(notes), tuple(from_paper))


def improvement_table(found: Sequence[Difference], title: str, domain: str) -> Table:
    """A row for each comparison, a column for each metric: relative improvement, with a star where significant."""
    metrics = list(dict.fromkeys(each.metric for each in found))
    pairs = list(dict.fromkeys((each.method, each.against) for each in found))
    by = {(each.method, each.against, each.metric): each for each in found}
    rows = tuple(
        (f"{method} over {against}", *(_starred(by[method, against, metric]) for metric in metrics))
        for method, against in pairs
    )
    columns = (Column("Improvement"), *(Column(label(metric)) for metric in metrics))
    return Table(title, columns, rows, domain, (HOLM.format(len(found)),))


def _starred(found: Difference) -> str:
    if found.improvement is None:
        return "–"
    return f"{found.improvement:+.2%}{'*' if found.p_corrected < SIGNIFICANT else ''}"


def headline_table(found: Sequence[Difference], domain: str, method: str, against: str) -> Table:
    """One comparison in full: both values, improvement, interval and p, and the improvement that the paper prints."""
    chosen = [each for each in found if (each.method, each.against) == (method, against)]
    claimed = paper.improvement_of(domain)
    rows = tuple(
        (
            label(each.metric),
            each.other,
            each.value,
            each.improvement,
            f"[{each.low:+.4f}, {each.high:+.4f}]",
            each.p_corrected,
            *((claimed.get(each.metric),) if claimed else ()),
        )
        for each in chosen
    )
    columns = (
        Column("Metric"),
        Column(against, "metric"),
        Column(method, "metric"),
        Column("Improv.", "change"),
        Column("Difference, 95%"),
        Column("p", "p"),
        *((Column("The paper's", "change", paper=True),) if claimed else ()),
    )
    family = chosen[0].family if chosen else 0
    return Table(f"{domain}: {method} over {against}", columns, rows, domain, (HOLM.format(family),))


def bars(ran: Sequence[Ran], domain: str, metric: str, names: Sequence[str], title: str, base: str | None) -> Panel:
    """A bar for each method; the base model as a line."""
    points = tuple(Point(name, spread_of(ran, domain, name, metric)) for name in names)
    return Panel(
        title=title,
        domain=domain,
        style="bars",
        x_label="Method",
        y_label=label(metric),
        series=(Series("ours", points),),
        reference=None if base is None else (base, spread_of(ran, domain, base, metric)),
    )


def seconds_of(ran: Sequence[Ran]) -> float | None:
    """Time spent on runs, each counted once; None where one was not measured."""
    seconds: dict[str, float | None] = {each.record.folder: each.record.seconds for each in ran}
    known = [value for value in seconds.values() if value is not None]
    return sum(known) if len(known) == len(seconds) else None
