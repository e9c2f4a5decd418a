"""What serving costs: the paper's Table 5 and Figure 1, measured."""

from __future__ import annotations

from collections.abc import Sequence

from ckd.pipelines.reproduce import paper
from ckd.pipelines.reproduce.compare import describe_seeds, label, spread_of
from ckd.pipelines.reproduce.methods import BASE_METHOD, Method, distilled, teacher
from ckd.pipelines.reproduce.result import Cell, Column, Panel, Point, Series, Table
from ckd.pipelines.reproduce.study import Ran, Study
from ckd.pipelines.serving_cost import Latency, ServingTable, serving_cost

#: Histories in a request.
BATCH_SIZES = (1, 256)

#: Requests that a median is over.
REPEATS = 50

#: The paper does not name the performance on Figure 1's y axis.
FIGURE_METRIC = "ndcg@10"


def serving_methods(study: Study) -> list[Method]:
    """The base model first, which the others are compared with; then the teachers, and the distilled student."""
    return [BASE_METHOD, *(teacher(model) for model in study.teachers), distilled(study.teachers)]


def measure(study: Study, ran: Sequence[Ran], domain: str) -> tuple[list[str], ServingTable]:
    """Names of the methods, and what requests to the first seed's run of each cost."""
    first = [each.record for each in ran if each.record.domain == domain and each.record.seed == study.seeds[0]]
    found = serving_cost(
        study.work,
        domain,
        [record.run for record in first],
        BATCH_SIZES,
        REPEATS,
        study.config.train.device,
        study.progress,
    )
    return [record.method for record in first], found


def show_table5(study: Study, ran: Sequence[Ran]) -> list[Table]:
    """Memory and time of a request, as multiples of the base model's and in full, with the paper's beside them."""
    return [_table(ran, domain, *measure(study, ran, domain)) for domain in study.domains]


def show_figure1(study: Study, ran: Sequence[Ran]) -> tuple[list[Table], list[Panel]]:
    """Time of a request against quality, the mark's area being memory."""
    tables, panels = [], []
    for domain in study.domains:
        names, found = measure(study, ran, domain)
        tables.append(_table(ran, domain, names, found))
        size = BATCH_SIZES[0]
        points = tuple(
            Point(
                row.latency[size].median_ms,
                spread_of(ran, domain, name, FIGURE_METRIC),
                row.peak_bytes[size] / 1e6,
                name,
            )
            for name, row in zip(names, found.rows, strict=True)
        )
        panels.append(
            Panel(
                title=f"Quality, time and memory on {domain}",
                domain=domain,
                style="bubbles",
                x_label="Time of a request of one history (ms)",
                y_label=label(FIGURE_METRIC),
                size_label="Peak memory of a request (MB)",
                series=(Series("ours", points),),
            )
        )
    return tables, panels


def _table(ran: Sequence[Ran], domain: str, names: Sequence[str], found: ServingTable) -> Table:
    one, many = BATCH_SIZES
    claimed = paper.serving_of(domain)
    rows: list[tuple[Cell, ...]] = []
    for name, row in zip(names, found.rows, strict=True):
        theirs = claimed.get(name, (None, None))
        rows.append(
            (
                name,
                spread_of(ran, domain, name, FIGURE_METRIC),
                found.memory_ratio(row, one),
                found.time_ratio(row, one),
                found.memory_ratio(row, many),
                found.time_ratio(row, many),
                row.parameters,
                row.flops,
                row.peak_bytes[one],
                _quartiles(row.latency[one]),
                _quartiles(row.latency[many]),
                *(theirs if claimed else ()),
            )
        )
    columns = (
        Column("Model"),
        Column(label(FIGURE_METRIC), "metric"),
        Column(f"Memory, B={one}", "ratio"),
        Column(f"Time, B={one}", "ratio"),
        Column(f"Memory, B={many}", "ratio"),
        Column(f"Time, B={many}", "ratio"),
        Column("Parameters", "count"),
        Column("FLOPs", "count"),
        Column(f"Peak, B={one}", "bytes"),
        Column(f"ms, B={one}"),
        Column(f"ms, B={many}"),
        *(
            (Column("The paper's memory", "ratio", paper=True), Column("The paper's time", "ratio", paper=True))
            if claimed
            else ()
        ),
    )
    note = (
        f"{label(FIGURE_METRIC)} is of test, {describe_seeds(ran, domain)}. Multiples are of {names[0]}'s; the first "
        f"seed's runs are served. A request encodes B histories and ranks all {found.n_items:,} items, whose vectors "
        f"are made beforehand; median (quartiles) of {found.repeats} requests "
        f"on {found.device}, {found.threads} threads."
    )
    return Table(f"{domain}: cost of a request", columns, tuple(rows), domain, (note,))


def _quartiles(latency: Latency) -> str:
    return f"{latency.median_ms:,.2f} ({latency.low_ms:,.2f}–{latency.high_ms:,.2f})"
