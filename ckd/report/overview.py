"""Tables over all domains, runs and searches of a work folder."""

from __future__ import annotations

from collections.abc import Sequence

from ckd.pipelines.reproduce.result import Cell, Column, Table
from ckd.report.work import DomainInfo, Run, SearchInfo


def domains_table(domains: Sequence[DomainInfo]) -> Table:
    """The paper's Table 2 of the prepared domains, and what each is known by."""
    columns = (
        Column("Domain"),
        *(Column(name, "count") for name in ("#Users", "#Items", "#Inters.")),
        Column("Avg. n", "number"),
        Column("Sparsity", "percent"),
        Column("Fingerprint"),
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            d.name,
            *(d.statistics[k] for k in ("users", "items", "interactions", "average_length", "sparsity")),
            d.fingerprint,
        )
        for d in domains
    )
    return Table("Domains", columns, rows)


def runs_table(runs: Sequence[Run], searches: Sequence[SearchInfo]) -> Table:
    """One row for each run, with the search that its settings are from."""
    columns = (
        Column("Run"),
        *(Column(name) for name in ("Domain", "Model", "Kind")),
        Column("Seed", "text"),
        Column("Teachers"),
        *(Column(name, "count") for name in ("Epochs", "Best epoch")),
        *(Column(name, "metric") for name in ("Valid N@10", "Test R@10", "Test N@10")),
        Column("Training s", "count"),
        Column("Settings from"),
        Column("State"),
    )
    rows = tuple(_run_row(run, searches) for run in runs)
    return Table("Runs", columns, rows)


def _run_row(run: Run, searches: Sequence[SearchInfo]) -> tuple[Cell, ...]:
    seconds = [row["seconds"] for row in run.rows if isinstance(row.get("seconds"), int | float)]
    state = "finished" if run.finished else "unfinished"
    return (
        run.name,
        run.domain,
        run.model,
        run.kind,
        "–" if run.seed is None else str(run.seed),
        ", ".join(run.teachers) or "–",
        len(run.rows) or None,
        run.best_epoch,
        run.valid.get("ndcg@10"),
        run.test.get("recall@10"),
        run.test.get("ndcg@10"),
        sum(seconds) if seconds else None,
        settings_from(run, searches),
        f"{state}, override" if run.stamps else state,
    )


def settings_from(run: Run, searches: Sequence[SearchInfo]) -> str:
    """The search whose best values the run was trained with, and what that search was given."""
    chosen = [search for search in searches if run.kind == "student" and search.chose(run)]
    return "; ".join(f"search {s.name}: {budget(s)}" for s in chosen) or "no search"


def budget(search: SearchInfo) -> str:
    spent = search.budget
    return f"{spent.trials} trials, {spent.epochs:,} epochs, {spent.seconds:,.0f} s"


def searches_table(searches: Sequence[SearchInfo]) -> Table:
    """What each model's search was given and what it found."""
    columns = (
        Column("Search"),
        *(Column(name) for name in ("Domain", "Model", "Of", "Sampler")),
        *(Column(name, "count") for name in ("Trials", "Diverged", "Epochs", "Training s")),
        Column("Best trial", "count"),
        Column("Valid N@10", "metric"),
        Column("Best values"),
    )
    rows = tuple(
        (
            s.name,
            s.domain,
            s.identity["student"],
            s.identity["kind"],
            s.identity["sampler"],
            s.budget.trials,
            sum(trial.state == "diverged" for trial in s.trials),
            s.budget.epochs,
            s.budget.seconds,
            s.best["number"] if s.best else None,
            s.best["metric"] if s.best else None,
            values_text(s.best["values"]) if s.best else None,
        )
        for s in searches
    )
    note = "Trials are compared by validation NDCG@10; the test part is not read. Seconds are of training steps."
    return Table("Search budgets", columns, rows, notes=(note,))


def values_text(values: dict[str, object]) -> str:
    """Searched values on one line."""
    return ", ".join(f"{name} = {value}" for name, value in values.items()) or "as configured"


def unequal(searches: Sequence[SearchInfo], runs: Sequence[Run]) -> list[str]:
    """Models whose base and distilled runs here have settings of searches that were not given the same trials.

    Searches whose best nobody was trained with count nothing; where several of a kind were used, their largest does.
    """
    given: dict[tuple[str, str], dict[str, int]] = {}
    for search in searches:
        if any(run.kind == "student" and search.chose(run) for run in runs):
            kinds = given.setdefault((search.domain, search.identity["student"]), {})
            kind = search.identity["kind"]
            kinds[kind] = max(kinds.get(kind, 0), search.budget.trials)
    lines = []
    for (domain, student), kinds in given.items():
        base, distilled = kinds.get("base", 0), kinds.get("distilled", 0)
        if base != distilled:
            lines.append(
                f"{student} on {domain}: {base} trials for the base model, {distilled} for the distilled one: "
                "their comparison is not of equal budgets."
            )
    return lines
