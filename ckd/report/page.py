"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ckd.pipelines.reproduce.result import (
    Cell,
    Column,
    Experiment,
    Panel,
    Point,
    RunRecord,
    Series,
    Spread,
    Table,
)
from ckd.report.curriculum import data, pictures
from ckd.report.figures import figure, gallery, line
from ckd.report.markup import Anchors, behind, data_table, definition, element, esc, flatten
from ckd.report.overview import budget, domains_table, runs_table, searches_table, settings_from, unequal, values_text
from ckd.report.style import CSS
from ckd.report.tables import to_html
from ckd.report.training import figures_of, side_by_side
from ckd.report.work import PlanInfo, Run, SearchInfo, Work

#: A warning sign drawn, so that it is there in every font.
SIGN = (
    '<svg viewBox="0 0 20 20" aria-hidden="true"><path d="M10 1 L19 18 L1 18 Z" fill="none" stroke="currentColor" '
    'stroke-width="2" stroke-linejoin="round"/><path d="M10 7 V12.5 M10 14.6 V16" stroke="currentColor" '
    'stroke-width="2"/></svg>'
)

#: Parts of a run's identity that name its inputs; the rest is its configuration.
INPUTS = ("domain", "plan", "teachers", "features", "start", "mismatches", "domains", "source", "imported")


class Page:
    """Writes a work folder's page, section by section.

    Args:
        work: what was found.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.anchor = Anchors()
        self.run_ids = {run.folder: self.anchor("run", run.folder) for run in work.runs}
        self.runs = {run.folder: run for run in work.runs}

    def html(self) -> str:
        """The whole document."""
        sections = [
            *(
                self._experiment(experiment, title)
                for experiment, title in zip(self.work.experiments, titles(self.work.experiments), strict=True)
            ),
            self._searches(),
            self._curricula(),
            self._runs(),
            self._machines(),
            self._domains(),
        ]
        there = [(title, ident, body) for title, ident, body in sections if body]
        links = "".join(f'<li><a href="#{ident}">{esc(title)}</a></li>' for title, ident, _ in there)
        main = "".join(
            f'<section aria-labelledby="{ident}"><h2 id="{ident}">{esc(title)}</h2>{body}</section>'
            for title, ident, body in there
        )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>ckd: report</title><style>{CSS}</style></head><body>"
            f"<header><h1>Curriculum-scheduled knowledge distillation: report</h1>{self._summary()}</header>"
            f'<nav aria-label="Sections"><ul>{links}</ul></nav><main>{main}</main></body></html>\n'
        )

    def _summary(self) -> str:
        """What the page is of, and everything that must not be overlooked."""
        work = self.work
        seeds = sorted({run.seed for run in work.runs if run.seed is not None})
        said = [
            _count(len(work.experiments), "experiment"),
            _count(len(work.runs), "run"),
            _count(len(work.searches), "search", "searches"),
            _count(len(work.domains), "domain"),
        ]
        if seeds:
            said.append(f"seeds {', '.join(map(str, seeds))}")
        stamps = [stamp(f"{run.folder}: {text}.") for run in work.runs for text in run.stamps]
        problems = [problem(text) for text in [*unequal(work.searches, work.runs), *work.problems]]
        return f'<p class="lead">{esc(" · ".join(said))}</p>' + "".join([*stamps, *problems])

    # --- experiments -------------------------------------------------------------------------------------------------

    def _experiment(self, experiment: Experiment, title: str) -> tuple[str, str, str]:
        e = experiment
        facts = [
            ", ".join(e.domains),
            "seeds " + ", ".join(map(str, e.seeds)) if len(e.seeds) > 1 else f"seed {e.seeds[0]}" if e.seeds else "",
        ]
        if e.seconds is not None:
            facts.append(f"{_duration(e.seconds)} of training")
        parts = [element("p", esc(" · ".join(fact for fact in facts if fact)), class_="lead")]
        if e.made_with is not None:
            parts.append(element("p", esc(e.made_with), class_="note"))
        parts.append(element("pre", esc(e.command)))
        if e.example:
            parts.append(
                problem(
                    "The built-in example, at the example's sizes: it shows that everything works, not how large the "
                    "effect is."
                )
            )
        stamped = [record for record in e.runs if record.folder in self.runs and self.runs[record.folder].stamps]
        parts += [
            stamp(f"{record.method}, seed {record.seed}: {text}.")
            for record in stamped
            for text in self.runs[record.folder].stamps
        ]
        parts += [element("p", esc(note), class_="note") for note in e.notes]
        parts += [to_html(table) for table in e.tables]
        panels = [*e.panels, *self._curves(e)]
        parts.append(gallery([figure(panel, f"{e.stem}-{n}") for n, panel in enumerate(panels, start=1)]))
        parts += [self._differences(e), self._records(e), folded("Configuration", definition(e.config))]
        parts.append(folded("Versions and machine", definition(e.versions)))
        return title, self.anchor(e.name), "".join(parts)

    def _curves(self, experiment: Experiment) -> list[Panel]:
        """Validation while training of the methods that an experiment compares, of its first seed."""
        found: list[Panel] = []
        if not experiment.differences:
            return found
        for domain in experiment.domains:
            records = [r for r in experiment.runs if r.domain == domain and r.seed == experiment.seeds[0]]
            there = [(r.method, self.runs[r.folder]) for r in records if r.folder in self.runs]
            if there:
                found += side_by_side(there, domain, experiment.seeds[0])
        return found

    def _differences(self, experiment: Experiment) -> str:
        """Paired tests, every one of them."""
        if not experiment.differences:
            return ""
        columns = (
            Column("Method"),
            *(Column(name) for name in ("Against", "Domain", "Metric")),
            *(Column(name, "metric") for name in ("Value", "Other")),
            Column("Improvement", "change"),
            *(Column(name, "metric") for name in ("95% low", "95% high")),
            *(Column(name, "p") for name in ("p", "p, corrected")),
            Column("Comparisons", "count"),
        )
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (
                d.method,
                d.against,
                d.domain,
                d.metric,
                d.value,
                d.other,
                d.improvement,
                d.low,
                d.high,
                d.p,
                d.p_corrected,
                d.family,
            )
            for d in experiment.differences
        )
        title = "Paired t-tests over users, corrected by Holm's method over the comparisons named"
        return folded(f"Paired tests ({len(rows)})", to_html(Table(title, columns, rows)))

    def _records(self, experiment: Experiment) -> str:
        """The runs behind the tables, each linked to its own part of the page."""
        if not experiment.runs:
            return ""
        columns = (
            Column("Run"),
            *(Column(name) for name in ("Method", "Domain", "Seed")),
            *(Column(name, "metric") for name in ("Valid N@10", "Test R@10", "Test N@10")),
            Column("Training s", "count"),
            Column("Changes"),
            Column("Settings from"),
        )
        rows = tuple(self._record_row(record) for record in experiment.runs)
        ids = [self.run_ids.get(record.folder) for record in experiment.runs]
        links = [f"#{ident}" if ident else None for ident in ids]
        return folded(f"Runs ({len(rows)})", to_html(Table("Runs of this experiment", columns, rows), links))

    def _record_row(self, record: RunRecord) -> tuple[Cell, ...]:
        run = self.runs.get(record.folder)
        changes = ", ".join(f"{key} = {value}" for key, value in flatten(record.overrides)) or "–"
        tests = (record.metrics.get("recall@10"), record.metrics.get("ndcg@10"))
        return (
            record.run,
            record.method,
            record.domain,
            str(record.seed),
            record.valid.get("ndcg@10"),
            *tests,
            record.seconds,
            changes,
            settings_from(run, self.work.searches) if run else "–",
        )

    # --- searches ----------------------------------------------------------------------------------------------------

    def _searches(self) -> tuple[str, str, str]:
        searches = self.work.searches
        body = to_html(searches_table(searches)) if searches else ""
        return "Search budgets", self.anchor("searches"), body + "".join(self._search(search) for search in searches)

    def _search(self, search: SearchInfo) -> str:
        names = list(dict.fromkeys(name for trial in search.trials for name in trial.values))
        headers = ["trial", "state", "valid NDCG@10", "valid Recall@10", "best epoch", "epochs", "seconds", *names]
        rows: list[list[Any]] = [
            [t.number, t.state, t.metric, t.recall, t.best_epoch, t.epochs, t.seconds]
            + [t.values.get(name, "as configured") for name in names]
            for t in search.trials
        ]
        panel = _trials_panel(search)
        drawn = gallery([figure(panel, f"search-{search.name}")]) if panel else ""
        inner = (
            drawn
            + data_table(headers, rows, f"Trials of {search.name}")
            + folded("What was searched, and from where", definition(search.identity))
        )
        best = values_text(search.best["values"]) if search.best else "no trial came to its end"
        summary = f"{esc(search.domain)} · {esc(search.name)} <small>{esc(budget(search))} · {esc(best)}</small>"
        return element("details", f"<summary>{summary}</summary>{inner}", class_="run")

    # --- curricula ---------------------------------------------------------------------------------------------------

    def _curricula(self) -> tuple[str, str, str]:
        """One picture for plans that differ in nothing but the seed."""
        groups: dict[tuple[str, str], list[PlanInfo]] = {}
        for plan in self.work.plans:
            if len(plan.curriculum) > 1:
                groups.setdefault((plan.domain, plan.config.model_dump_json()), []).append(plan)
        body = "".join(_curriculum(plans) for plans in groups.values())
        return "Curriculum", self.anchor("curriculum"), body

    # --- runs --------------------------------------------------------------------------------------------------------

    def _runs(self) -> tuple[str, str, str]:
        runs = self.work.runs
        if not runs:
            return "Runs", self.anchor("runs"), ""
        links = [f"#{self.run_ids[run.folder]}" for run in runs]
        table = to_html(runs_table(runs, self.work.searches), links)
        return "Runs", self.anchor("runs"), table + "".join(self._run(run) for run in runs)

    def _run(self, run: Run) -> str:
        """One run: stamps, curves, configuration, fingerprints, versions."""
        metric = f"valid N@10 {run.valid['ndcg@10']:.4f}" if "ndcg@10" in run.valid else ""
        facts = [run.kind, run.model, f"seed {run.seed}" if run.seed is not None else "", metric]
        facts += ["" if run.finished else "unfinished", "OVERRIDE" if run.stamps else ""]
        summary = f"{esc(run.folder)} <small>{esc(' · '.join(fact for fact in facts if fact))}</small>"
        inputs = {key: run.identity[key] for key in INPUTS if run.identity.get(key)}
        config = {key: value for key, value in run.identity.items() if key not in INPUTS}
        parts = [
            *(stamp(f"{text}.") for text in run.stamps),
            figures_of(run, run.folder.replace("/", "-")),
            f"<h4>Configuration</h4>{definition(config)}",
            f"<h4>Fingerprints of inputs and weights</h4>{definition({**inputs, 'weights': run.weights})}",
            f"<h4>Measured</h4>{definition(run.facts)}" if run.facts else "",
            f"<h4>Versions and machine</h4>{definition({'cpu': 'not recorded', **run.versions})}",
        ]
        body = f"<summary>{summary}</summary>{''.join(parts)}"
        return element("details", body, class_="run", id=self.run_ids[run.folder])

    # --- machines, domains -------------------------------------------------------------------------------------------

    def _machines(self) -> tuple[str, str, str]:
        """Which versions and machines there were, and how many results each made."""
        made: dict[str, list[str]] = {}
        for run in self.work.runs:
            made.setdefault(json.dumps(run.versions, sort_keys=True), []).append(run.folder)
        for search in self.work.searches:
            made.setdefault(json.dumps(search.versions, sort_keys=True), []).append(
                f"tune/{search.domain}/{search.name}"
            )
        parts = [
            definition(json.loads(key))
            + folded(f"{_count(len(names), 'result')} made so", element("p", esc(", ".join(names)), class_="note"))
            for key, names in made.items()
        ]
        return "Machines and versions", self.anchor("machines"), "<hr>".join(parts)

    def _domains(self) -> tuple[str, str, str]:
        body = to_html(domains_table(self.work.domains)) if self.work.domains else ""
        return "Domains", self.anchor("domains"), body


def titles(experiments: Sequence[Experiment]) -> list[str]:
    """What each is called; experiments of one title are told apart by domains, then by methods, then by their marks."""
    plain = [f"{e.element}: {e.title}" if e.element else e.title for e in experiments]
    domains = [f"{title}, on {', '.join(e.domains)}" for title, e in zip(plain, experiments, strict=True)]
    methods = [
        f"{title}: {', '.join(dict.fromkeys(run.method for run in e.runs))}"
        for title, e in zip(domains, experiments, strict=True)
    ]
    marked = [f"{title} ({e.mark})" if e.mark else title for title, e in zip(domains, experiments, strict=True)]
    return [
        next((name for name, known in ((a, plain), (b, domains), (c, methods)) if known.count(name) == 1), d)
        for a, b, c, d in zip(plain, domains, methods, marked, strict=True)
    ]


def _trials_panel(search: SearchInfo) -> Panel | None:
    """Validation by trial, and the best so far."""
    done = [(trial.number, trial.metric) for trial in search.trials if trial.metric is not None]
    if not done:
        return None
    best = [(float(n), max(m for k, m in done if k <= n)) for n, _ in done]
    single = Series("each trial", tuple(Point(float(n), Spread.of([m])) for n, m in done))
    title = f"{search.name} on {search.domain}"
    return Panel(title, search.domain, "lines", "trial", "validation NDCG@10", (single, line("best so far", best)))


def _curriculum(plans: Sequence[PlanInfo]) -> str:
    plan = plans[0]
    headers, rows = data(plan)
    drawn = [
        element(
            "figure",
            f"<figcaption>{esc(title)}</figcaption>{picture}" + behind(headers, rows, f"{plan.id}-{number}", title),
        )
        for number, (title, picture) in enumerate(pictures(plan), start=1)
    ]
    same = ", ".join(f"{each.id} (seed {each.seed})" for each in plans)
    note = "Boxes: middle half of a bucket's sequences. Whiskers: middle 80%. Line: mean of what a stage trains on."
    head = f"<h3>{esc(plan.domain)}: {_count(len(plan.curriculum), 'bucket')} by {esc(plan.config.difficulty)}</h3>"
    said = element("p", esc(f"Plans of these settings: {same}. {note}"), class_="note")
    return (
        head + said + gallery(drawn) + folded("Settings of the plan", definition(plan.config.model_dump(mode="json")))
    )


def folded(summary: str, content: str) -> str:
    """Content that opens on demand; nothing where there is none."""
    return f"<details><summary>{esc(summary)}</summary>{content}</details>" if content else ""


def stamp(text: str) -> str:
    """What an override let through: in red, with a sign and the word, for whoever sees no red."""
    return element("p", f"{SIGN}<span>Override: {esc(text)}</span>", class_="stamp", role="note")


def problem(text: str) -> str:
    """What a reader has to know about the page itself."""
    return element("p", f"{SIGN}<span>{esc(text)}</span>", class_="problem", role="note")


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
