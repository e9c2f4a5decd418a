"""One setting at a time over several values: the paper's Figure 5, and what the paper leaves open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ckd.errors import ConfigError, did_you_mean
from ckd.pipelines.reproduce.compare import describe, differences, label, runs_of, spread_of, valid_of
from ckd.pipelines.reproduce.methods import BASE, BASE_METHOD, DISTILLED, NO_CURRICULUM, Method
from ckd.pipelines.reproduce.result import Cell, Column, Difference, Panel, Point, Series, Table
from ckd.pipelines.reproduce.study import Ran, Study


@dataclass(frozen=True)
class Sweep:
    """A setting and its values; everything else stays as configured.

    Attributes:
        what: its name on the command line.
        title: for people.
        key: `section.key` of the configuration.
        values: what it takes.
        example_values: what it takes on the built-in example; none: the same.
        metric: what its figure shows.
        log_x: its axis is logarithmic; of values that are no numbers there is none.
        also: other keys that have to be set for this one to have an effect.
        least_teachers: with fewer, it has no effect.
        least_for: the same of single values.
    """

    what: str
    title: str
    key: str
    values: tuple[float | int | str, ...]
    example_values: tuple[float | int | str, ...] = ()
    metric: str = "ndcg@10"
    log_x: bool = False
    also: Mapping[str, Any] = field(default_factory=dict)
    least_teachers: int = 1
    least_for: Mapping[str, int] = field(default_factory=dict)

    @property
    def style(self) -> Literal["lines", "bars"]:
        return "bars" if any(isinstance(value, str) for value in self.values) else "lines"

    def methods(self, study: Study) -> list[Method]:
        """The distilled student at each value."""
        values = self.example_values if study.example and self.example_values else self.values
        return [
            Method(
                f"{self.title} {value}",
                "student",
                "sasrec",
                study.teachers,
                self._overrides(value),
                x=value if self.style == "lines" else str(value),
            )
            for value in values
            if self.least_for.get(str(value), 1) <= len(study.teachers)
        ]

    def _overrides(self, value: float | int | str) -> dict[str, Any]:
        # However the curriculum is switched off, it is one and the same run.
        off = (self.key, value) in (("plan.buckets", 1), ("plan.difficulty", "none"))
        return dict(NO_CURRICULUM) if off else {**self.also, self.key: value}


#: The paper's Figure 5, each with the metric that the paper shows.
FIGURE_5 = (
    Sweep("temperature", "Temperature τ", "distill.temperature", (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0), log_x=True),
    Sweep("lambda", "Weight λ", "distill.lambda", (0.1, 1.0, 3.0, 10.0, 30.0, 100.0), metric="recall@10", log_x=True),
    Sweep(
        "dimension",
        "Hidden size d",
        "student.hidden_size",
        (64, 100, 200, 300, 400),
        (16, 32, 64, 128),
        metric="recall@10",
    ),
)

#: What the paper leaves open.
OPEN_QUESTIONS = (
    Sweep("buckets", "Buckets B", "plan.buckets", (1, 2, 4, 8, 16), log_x=True),
    Sweep("alpha", "Popularity's weight α", "plan.alpha", (0.0, 0.5, 1.0, 2.0, 5.0)),
    Sweep(
        "epsilon",
        "Share that keeps every teacher",
        "distill.epsilon_quantile",
        (0.0, 0.25, 0.5, 0.75, 1.0),
        also={"distill.epsilon": None},
        least_teachers=3,
    ),
    Sweep(
        "difficulty",
        "Difficulty",
        "plan.difficulty",
        ("ssl", "length", "popularity", "teacher_loss", "teacher_disagreement", "none"),
        least_for={"teacher_disagreement": 2},
    ),
    Sweep("normalisation", "Normalisation", "distill.normalisation", ("softmax", "minmax", "zscore")),
    Sweep("direction", "First in KL", "distill.direction", ("student", "teacher")),
    Sweep("pool", "Pool", "plan.pool", (1, 2, 4, "fresh")),
)


def choose_sweeps(sweeps: Sequence[Sweep], what: Sequence[str] | None, teachers: int = 3) -> list[Sweep]:
    """Those of these names; without names, all that have an effect with so many teachers.

    Raises:
        ConfigError: there is none of that name, or it has no effect with so few teachers.
    """
    known = [sweep.what for sweep in sweeps]
    for name in what or ():
        if name not in known:
            raise ConfigError(f"--what {name}: no such setting.{did_you_mean(name, known)}")
        least = sweeps[known.index(name)].least_teachers
        if least > teachers:
            raise ConfigError(f"--what {name}: has an effect with {least} teachers or more, here are {teachers}.")
    if what is not None:
        return [sweep for sweep in sweeps if sweep.what in what]
    return [sweep for sweep in sweeps if sweep.least_teachers <= teachers]


def sweep_methods(study: Study, sweeps: Sequence[Sweep]) -> list[Method]:
    """The base model for comparison, the distilled student as configured, and at every value."""
    configured = Method(DISTILLED, "student", "sasrec", study.teachers)
    return [BASE_METHOD, configured, *(method for sweep in sweeps for method in sweep.methods(study))]


def show_sweeps(
    study: Study, ran: Sequence[Ran], sweeps: Sequence[Sweep]
) -> tuple[list[Table], list[Panel], list[Difference]]:
    """For each domain and setting a table and a figure; tests are against the student as configured."""
    tables, panels, found = [], [], []
    for domain in study.domains:
        for sweep in sweeps:
            methods = sweep.methods(study)
            configured = runs_of(ran, domain, DISTILLED)[0].record.run
            others = [m.name for m in methods if runs_of(ran, domain, m.name)[0].record.run != configured]
            tests = differences(ran, domain, [(name, DISTILLED) for name in others], (sweep.metric,))
            tables.append(_table(ran, domain, sweep, methods, tests))
            series = Series(
                DISTILLED,
                tuple(Point(m.x, spread_of(ran, domain, m.name, sweep.metric)) for m in methods if m.x is not None),
            )
            panels.append(
                Panel(
                    title=f"{sweep.title} on {domain}",
                    domain=domain,
                    style=sweep.style,
                    x_label=sweep.title,
                    y_label=label(sweep.metric),
                    series=(series,),
                    log_x=sweep.log_x,
                    reference=(BASE, spread_of(ran, domain, BASE, sweep.metric)),
                )
            )
            found += tests
    return tables, panels, found


def _table(
    ran: Sequence[Ran], domain: str, sweep: Sweep, methods: Sequence[Method], tests: Sequence[Difference]
) -> Table:
    rows: list[tuple[Cell, ...]] = []
    by_name = {test.method: test for test in tests}
    for name, shown in (
        (BASE, BASE),
        (DISTILLED, "as configured"),
        *((method.name, str(method.x)) for method in methods),
    ):
        test = by_name.get(name)
        rows.append(
            (
                shown,
                valid_of(ran, domain, name, "ndcg@10"),
                *(spread_of(ran, domain, name, metric) for metric in ("recall@10", "ndcg@10")),
                None if test is None else test.improvement,
                None if test is None else test.p_corrected,
            )
        )
    columns = (
        Column(sweep.title),
        Column("Validation N@10", "metric"),
        Column("R@10", "metric"),
        Column("N@10", "metric"),
        Column(f"{label(sweep.metric)} over configured", "change"),
        Column("p", "p"),
    )
    note = (
        f"Each value against {DISTILLED} as configured, in {label(sweep.metric)}; p from paired t-tests over users, "
        f"Holm-corrected over {len(tests)} comparisons. Test figures choose nothing: settings are chosen on validation."
    )
    return Table(f"{sweep.title}, {describe(ran, domain)}", columns, tuple(rows), domain, (note,))
