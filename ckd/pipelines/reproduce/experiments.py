"""The experiments by name: which methods each runs, and what it shows of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ckd.data.domain import Domain
from ckd.pipelines.reproduce import paper
from ckd.pipelines.reproduce.cold_start import show_cold_start
from ckd.pipelines.reproduce.compare import (
    bars,
    differences,
    domains_of,
    headline_table,
    improvement_table,
    label,
    methods_of,
    methods_table,
    spread_of,
)
from ckd.pipelines.reproduce.methods import (
    BASE,
    BASE_METHOD,
    DISTILLED,
    UNIVERSAL,
    Method,
    ablations,
    choose,
    distilled,
    table3_methods,
    universal,
)
from ckd.pipelines.reproduce.result import Cell, Column, Difference, Panel, Point, Series, Table
from ckd.pipelines.reproduce.serving import serving_methods, show_figure1, show_table5
from ckd.pipelines.reproduce.study import Ran, Study
from ckd.pipelines.reproduce.sweeps import FIGURE_5, OPEN_QUESTIONS, Sweep, choose_sweeps, show_sweeps, sweep_methods
from ckd.pipelines.workspace import domain_folder


@dataclass(frozen=True)
class Options:
    """What an experiment may be restricted to.

    Attributes:
        methods: names as printed; none: all.
        what: settings of a sweep; none: all.
    """

    methods: tuple[str, ...] | None = None
    what: tuple[str, ...] | None = None


#: No restriction.
WHOLE = Options()


@dataclass(frozen=True)
class Shown:
    """What an experiment shows."""

    tables: Sequence[Table] = ()
    panels: Sequence[Panel] = ()
    differences: Sequence[Difference] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Spec:
    """One experiment.

    Attributes:
        title: in a line.
        element: of the paper; none: what the paper leaves open.
        methods: what is run.
        show: what is shown of it.
    """

    title: str
    element: str | None
    methods: Callable[[Study, Options], list[Method]]
    show: Callable[[Study, list[Ran], Options], Shown]


# --- Table 2 ---------------------------------------------------------------------------------------------------------


def _table2(study: Study, ran: list[Ran], options: Options) -> Shown:
    rows: list[tuple[Cell, ...]] = []
    from_paper = []
    for domain in (Domain.load(domain_folder(study.work, name)) for name in study.domains):
        s = domain.statistics()
        counts = (int(s["users"]), int(s["items"]), int(s["interactions"]))
        rows.append((domain.name, *counts, s["average_length"], s["sparsity"]))
        theirs = paper.statistics_of(domain.name)
        if theirs is not None:
            from_paper.append(len(rows))
            name = f"  the paper's {paper.name_of(domain.name)}"
            counts = (theirs.users, theirs.items, theirs.interactions)
            rows.append((name, *counts, theirs.average_length, theirs.sparsity))
    columns = (
        Column("Domain"),
        Column("#Users", "count"),
        Column("#Items", "count"),
        Column("#Inters.", "count"),
        Column("Avg. n", "ms"),
        Column("Sparsity", "percent"),
    )
    told = ("The paper's rows are printed as they are; some contradict their own counts, see docs/method.md.",)
    notes = told if from_paper else ()
    return Shown([Table("Statistics of the domains", columns, tuple(rows), None, notes, tuple(from_paper))])


# --- Tables 3 and 4 --------------------------------------------------------------------------------------------------


def _table3_methods(study: Study, options: Options) -> list[Method]:
    methods = [method for method in table3_methods(study.teachers) if method.model not in study.left_out]
    return choose(methods, options.methods)


def _table3(study: Study, ran: list[Ran], options: Options) -> Shown:
    tables, found = [], []
    for domain in domains_of(ran):
        tables.append(methods_table(ran, domain))
        names = methods_of(ran, domain)
        pairs = [(name, BASE) for name in names if name != BASE] if BASE in names else []
        if DISTILLED in names:
            pairs += [(DISTILLED, name) for name in ("PRM-KD",) if name in names]
        tests = differences(ran, domain, pairs)
        if tests:
            tables.append(improvement_table(tests, f"{domain}: improvements", domain))
        if (DISTILLED, BASE) in pairs:
            tables.append(headline_table(tests, domain, DISTILLED, BASE))
        found += tests
    return Shown(tables, (), found)


# --- Figures 3 and 4 -------------------------------------------------------------------------------------------------


def _figure3_methods(study: Study, options: Options) -> list[Method]:
    return choose([BASE_METHOD, *ablations(study.teachers)], options.methods, keep=(BASE, DISTILLED))


def _figure3(study: Study, ran: list[Ran], options: Options) -> Shown:
    tables, panels, found = [], [], []
    for domain in domains_of(ran):
        names = methods_of(ran, domain)
        tests = differences(
            ran, domain, [(DISTILLED, BASE), *((n, DISTILLED) for n in names if n not in (BASE, DISTILLED))]
        )
        tables += [methods_table(ran, domain), improvement_table(tests, f"{domain}: what each part brings", domain)]
        shown = [name for name in names if name != BASE]
        panels += [bars(ran, domain, m, shown, f"Ablations on {domain}", BASE) for m in ("recall@10", "ndcg@10")]
        found += tests
    few = len(study.teachers) < 3 and options.methods is None
    return Shown(tables, panels, found, ["w/o WA is left out: of fewer than three teachers none is dropped."] * few)


def _figure4(study: Study, ran: list[Ran], options: Options) -> Shown:
    tables, panels, found = [], [], []
    for domain in domains_of(ran):
        names = [name for name in UNIVERSAL.values() if name in methods_of(ran, domain)]
        tests = differences(ran, domain, [(f"{DISTILLED} {name}", name) for name in names])
        tables += [methods_table(ran, domain), improvement_table(tests, f"{domain}: with distillation", domain)]
        for metric in ("recall@10", "ndcg@10"):
            series = (
                Series("without", tuple(Point(n, spread_of(ran, domain, n, metric)) for n in names)),
                Series(
                    "with distillation",
                    tuple(Point(n, spread_of(ran, domain, f"{DISTILLED} {n}", metric)) for n in names),
                ),
            )
            title = f"Other students on {domain}"
            panels.append(Panel(title, domain, "bars", "Student", label(metric), series))
        found += tests
    return Shown(tables, panels, found)


def _figure4_methods(study: Study, options: Options) -> list[Method]:
    methods = universal(study.teachers)
    chosen = choose(methods, options.methods)
    # A student is shown with and without distillation, or not at all.
    return [method for method in methods if method.model in {each.model for each in chosen}]


# --- the others ------------------------------------------------------------------------------------------------------


def _sweep_spec(title: str, element: str | None, sweeps: tuple[Sweep, ...]) -> Spec:
    def methods(study: Study, options: Options) -> list[Method]:
        return sweep_methods(study, choose_sweeps(sweeps, options.what, len(study.teachers)))

    def show(study: Study, ran: list[Ran], options: Options) -> Shown:
        chosen = choose_sweeps(sweeps, options.what, len(study.teachers))
        notes = [
            f"{sweep.title} is left out: it has an effect with {sweep.least_teachers} teachers or more."
            for sweep in (sweeps if options.what is None else ())
            if sweep not in chosen
        ]
        return Shown(*show_sweeps(study, ran, chosen), notes)

    return Spec(title, element, methods, show)


EXPERIMENTS = {
    "table2": Spec("Statistics of the domains", "Table 2", lambda study, options: [], _table2),
    "table3": Spec("Teachers, students and baselines", "Tables 3 and 4", _table3_methods, _table3),
    "table5": Spec(
        "Time and memory of serving",
        "Table 5",
        lambda study, options: serving_methods(study),
        lambda study, ran, options: Shown(show_table5(study, ran)),
    ),
    "figure1": Spec(
        "Quality against time and memory of serving",
        "Figure 1",
        lambda study, options: serving_methods(study),
        lambda study, ran, options: Shown(*show_figure1(study, ran)),
    ),
    "figure3": Spec("Ablations", "Figure 3", _figure3_methods, _figure3),
    "figure4": Spec("Distillation into other students", "Figure 4", _figure4_methods, _figure4),
    "figure5": _sweep_spec("Temperature, weight and hidden size", "Figure 5", FIGURE_5),
    "open-questions": _sweep_spec("What the paper leaves open", None, OPEN_QUESTIONS),
    "cold-start": Spec(
        "Users by history length, items by popularity",
        None,
        lambda study, options: [BASE_METHOD, distilled(study.teachers)],
        lambda study, ran, options: Shown(*show_cold_start(study, ran)),
    ),
}
