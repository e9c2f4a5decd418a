"""Results as tables for people or JSON for programs: the command line's last step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckd.console import err, out, print_json, print_table, show
from ckd.distill import live

if TYPE_CHECKING:
    from ckd.data.domain import Domain
    from ckd.pipelines.evaluate import Evaluated
    from ckd.pipelines.finetune_teacher import FinetunedTeacher
    from ckd.pipelines.plan import Estimate, Planned, StageRow
    from ckd.pipelines.prepare import Prepared
    from ckd.pipelines.serving_cost import ServingCost, ServingTable
    from ckd.pipelines.teacher_score import Scored
    from ckd.pipelines.train_baseline import TrainedBaseline
    from ckd.pipelines.train_student import TrainedStudent
    from ckd.pipelines.tune import Tuned
    from ckd.pipelines.tune_result import Search
    from ckd.report.build import Report
    from ckd.tune.trials import Trial

#: Metrics that are shown, in this order; a table has no room for all that are kept.
SHOWN = tuple(f"{name}@{k}" for name in ("recall", "ndcg") for k in (5, 10, 20, 50))

STAGE_COLUMNS = {
    "stage": "Stage",
    "epochs": "Epochs",
    "buckets": "Buckets",
    "samples": "Samples",
    "instances": "Inst.",
    "batches": "Batches",
    "difficulty": "Diff.",
    "length": "Length",
    "popularity": "Pop.",
}

TABLE_2 = ("#Users", "#Items", "#Inters.", "Avg. n", "Sparsity")


def record(title: str, value: Any, json: bool) -> None:
    """Any result made of plain values: one row each."""
    values = asdict(value) if is_dataclass(value) and not isinstance(value, type) else dict(value)
    if json:
        print_json(values)
        return
    print_table(
        title, ["", ""], [[_spaced(name), _flat(each)] for name, each in values.items() if each not in ({}, None)]
    )


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_flat(each) for each in value)
    return show(value)


def _statistics(domain: Domain) -> list[str]:
    s = domain.statistics()
    return [
        f"{s['users']:,}",
        f"{s['items']:,}",
        f"{s['interactions']:,}",
        f"{s['average_length']:.2f}",
        f"{s['sparsity']:.2%}",
    ]


def domains(found: Sequence[Domain], json: bool) -> None:
    """The paper's Table 2 of several domains."""
    if json:
        print_json({d.name: {**d.statistics(), "fingerprint": d.fingerprint} for d in found})
        return
    print_table("Domains", ["Domain", *TABLE_2], [[d.name, *_statistics(d)] for d in found])


def prepared(result: Prepared, json: bool) -> None:
    """Table 2 of one domain, its instances, and what every filter took."""
    domain = result.domain
    instances = {split: len(domain.instances(split)) for split in ("train", "valid", "test")}
    if json:
        print_json(
            {
                "domain": domain.name,
                "format": result.format,
                "read": result.read,
                "statistics": result.statistics,
                "instances": instances,
                "removed": [asdict(r) for r in result.removed],
                "malformed": [asdict(m) for m in result.malformed],
                "fingerprint": domain.fingerprint,
            }
        )
        return
    domains([domain], json)
    counted = ", ".join(f"{count:,} {split}" for split, count in instances.items())
    out.print(f"read as {result.format}; {result.read:,} interactions; instances: {counted}")
    if result.removed:
        print_table(
            "Removed",
            ["Filter", "Interactions", "Users", "Items"],
            [[r.filter, r.interactions, r.users, r.items] for r in result.removed],
        )
    for each in result.malformed:
        out.print(f"left out: {each.rows:,} rows of {each.file}: {each.kind}, the first in line {each.first}")


def epoch_printer(json: bool) -> Callable[[dict[str, Any]], None]:
    """Prints a line on standard error for every finished epoch."""

    def print_epoch(row: dict[str, Any]) -> None:
        parts = [f"epoch {row['epoch']:3d} {live.stage(row):8s} {live.losses(row)}"]
        if dropped := live.dropped(row):
            parts.append(dropped)
        if "valid_ndcg@10" in row:
            parts.append(f"valid N@10 {row['valid_ndcg@10']:.4f} R@10 {row['valid_recall@10']:.4f}")
        parts.append(live.speed(row))
        err.print("  ".join(parts), soft_wrap=True)

    return (lambda _: None) if json else print_epoch


def baseline_epoch_printer(json: bool) -> Callable[[dict[str, Any]], None]:
    """The same for a baseline's epochs, whose losses have names of their own."""

    def print_epoch(row: dict[str, Any]) -> None:
        losses = [
            f"{name} {value:.4f}"
            for name, value in row.items()
            if name not in ("epoch", "phase", "seconds") and not name.startswith("valid_")
        ]
        parts = [f"epoch {row['epoch']:3d} {row['phase']:11s} {', '.join(losses)}"]
        if "valid_ndcg@10" in row:
            parts.append(f"valid N@10 {row['valid_ndcg@10']:.4f} R@10 {row['valid_recall@10']:.4f}")
        err.print("  ".join([*parts, f"{row['seconds']:.1f} s"]), soft_wrap=True)

    return (lambda _: None) if json else print_epoch


def _metric_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    headers = ["", *(f"{n[0].upper()}@{n.split('@')[1]}" for n in SHOWN)]
    print_table(title, headers, [[name, *(values[m] for m in SHOWN)] for name, values in rows.items()])


def finetuned(result: FinetunedTeacher, json: bool) -> None:
    """A teacher's metrics on both splits."""
    if json:
        kept = {"rankings": result.rankings} if result.rankings else {}
        print_json({"folder": result.folder, "metrics": result.metrics, "reused": result.reused, **kept})
        return
    _metric_table(f"{result.folder}{' (was there already)' if result.reused else ''}", result.metrics)
    if result.rankings:
        out.print(f"ranking lists kept of epochs {', '.join(map(str, result.rankings))}", soft_wrap=True)


def planned(result: Planned, rows: Sequence[StageRow], figure: Path | None, json: bool) -> None:
    """A plan's size, and its stages where asked for."""
    from ckd.distill.curriculum import FULL

    plan = result.plan
    if json:
        print_json(
            {
                "plan": plan.id,
                "fingerprint": plan.fingerprint,
                "folder": result.folder,
                "batches": plan.n_batches,
                "epochs": plan.epochs,
                "instances": plan.n_instances,
                "stages": [asdict(row) for row in rows],
                "figure": figure,
                "reused": result.reused,
            }
        )
        return
    out.print(
        f"plan {plan.id}: {plan.n_batches:,} batches of {plan.n_instances:,} instances, {plan.epochs} epochs"
        f"{' (was there already)' if result.reused else ''}"
    )
    stage, _ = plan.schedule_of(plan.epochs - 1)
    if stage != FULL and stage < plan.config.buckets:
        out.print(
            f"It ends in stage {stage} of {plan.config.buckets}: the harder instances are in no epoch. For all of them "
            f"plan.epochs has to be at least {(plan.config.buckets - 1) * plan.config.epochs_per_stage + 1}.",
            soft_wrap=True,
        )
    if rows:
        print_table("Curriculum", list(STAGE_COLUMNS.values()), [[getattr(r, n) for n in STAGE_COLUMNS] for r in rows])
    if figure:
        out.print(f"drawn: {figure}")


def plan_estimate(result: Estimate, json: bool) -> None:
    """What scoring a plan would write, by codec."""
    if json:
        print_json(asdict(result))
        return
    out.print(f"{result.batches:,} batches, {result.rows:,} rows, {result.scores:,} scores")
    print_table("Bytes for one teacher", ["Codec", "MB"], [[c, f"{b / 1e6:,.1f}"] for c, b in result.bytes.items()])


def scored(result: Scored, json: bool) -> None:
    """A finished store."""
    manifest = result.manifest
    binding = manifest.header.binding
    values = {
        "store": result.location,
        "codec": binding.codec,
        "temperature": binding.temperature,
        "batches": manifest.header.batches,
        "rows": manifest.rows,
        "shards": len(manifest.shards),
        "bytes": manifest.bytes,
        "encoded now": result.encoded,
        "seconds": round(result.seconds, 2),
    }
    record("Scored", values, json)


def trained(result: TrainedStudent | TrainedBaseline, json: bool) -> None:
    """A student's or a baseline's best epoch on validation."""
    t = result.trained
    mismatches = getattr(result, "mismatches", {})
    if json:
        print_json(
            {
                "folder": result.folder,
                "best_epoch": t.best_epoch,
                "valid": t.metrics,
                "log": t.rows,
                "reused": result.reused,
                "teachers": getattr(result, "weights", {}),
                "mismatches": mismatches,
            }
        )
        return
    note = " (was there already)" if result.reused else ""
    _metric_table(f"{result.folder}{note}: best epoch {t.best_epoch}", {"valid": t.metrics})
    weights = getattr(result, "weights", {})
    if weights:
        told = ", ".join(f"{teacher} (weight {show(weight)})" for teacher, weight in weights.items())
        out.print(f"distilled from {told}", soft_wrap=True)
    for teacher, mismatch in mismatches.items():
        out.print(f"trained on scores of {teacher} that were {mismatch}")


def evaluated(result: Evaluated, run: str, against: str | None, json: bool) -> None:
    """Metrics of a run, and its paired comparison."""
    if json:
        print_json(
            {
                "run": run,
                "metrics": result.metrics,
                "ranks": result.path,
                "against": against,
                "comparisons": {
                    name: asdict(c) | {"improvement": c.improvement} for name, c in result.comparisons.items()
                },
            }
        )
        return
    _metric_table(
        f"{run}, {len(result.ranks):,} users, {result.ranks.n_items:,} items", {result.ranks.split: result.metrics}
    )
    if against is not None:
        rows = [
            [name, c.other_mean, c.mean, f"{c.improvement:+.2%}", f"[{c.low:+.4f}, {c.high:+.4f}]", _p(c.p_value)]
            for name, c in result.comparisons.items()
            if name in SHOWN
        ]
        headers = ["Metric", against, run, "Relative", "Difference, 95%", "p"]
        print_table(f"{run} against {against}, paired t-test over users", headers, rows)


def _p(value: float) -> str:
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def serving(table: ServingTable, json: bool) -> None:
    """What requests of the runs cost (the paper's Table 5): what each needs, then the time of each size of request."""
    if json:
        print_json(table.as_dict())
        return
    first, largest = table.rows[0].run, max(table.rows[0].latency)
    print_table(
        f"{table.domain}: serving {table.n_items:,} items on {table.device}, {table.threads} threads; MFLOPs of one "
        f"user, peak of {largest}, memory over that of {first}",
        ["", "Model", "Parameters", "MFLOPs", "Ready MiB", "Peak MiB", "Memory"],
        [
            [
                *(row.run, row.model, row.parameters),
                *(f"{n:,.2f}" for n in (row.flops / 1e6, row.resident_bytes / 2**20, row.peak_bytes[largest] / 2**20)),
                f"{table.memory_ratio(row, largest):.2f}x",
            ]
            for row in table.rows
        ],
    )
    for size in table.rows[0].latency:
        print_table(
            f"Requests of {size} user{'s' if size > 1 else ''}: median of {table.repeats}, time over that of {first}",
            ["", "Request ms", "25% to 75%", "User ms", "Time"],
            [[*_latency_cells(row, size), f"{table.time_ratio(row, size):.2f}x"] for row in table.rows],
        )


def _latency_cells(row: ServingCost, size: int) -> list[str]:
    latency = row.latency[size]
    return [
        row.run,
        f"{latency.median_ms:,.3f}",
        f"{latency.low_ms:,.3f} to {latency.high_ms:,.3f}",
        f"{latency.median_ms / size:,.4f}",
    ]


def say(json: bool) -> Callable[[str], None]:
    """Prints what a long pipeline is about to do, on standard error."""
    return (lambda _: None) if json else (lambda text: err.print(text, style="dim"))


def trial_printer(json: bool) -> Callable[[Search, Trial], None]:
    """Prints a line on standard error for every finished trial."""

    def print_trial(search: Search, trial: Trial) -> None:
        result = "diverged" if trial.metric is None else f"valid N@10 {trial.metric:.4f} R@10 {trial.recall:.4f}"
        best = ", the best so far" if search.best == trial else ""
        err.print(
            f"{search.kind} trial {trial.number:3d}  {result}  {trial.epochs} epochs, {trial.seconds:,.0f} s  "
            f"{_flat(trial.values) or 'as configured'}{best}",
            soft_wrap=True,
        )

    return (lambda *_: None) if json else print_trial


def _setting(value: object) -> str:
    """A searched value: of a learning rate the first digits count, wherever they stand."""
    return f"{value:.4g}" if isinstance(value, float) else show(value)


def tuned(result: Tuned, json: bool) -> None:
    """The trials of each search, best first, what it was given, and its best values as a configuration."""
    if json:
        print_json(asdict(result))
        return
    for search in result.searches:
        names = list(dict.fromkeys(name for trial in search.trials for name in trial.values))
        ordered = sorted(search.trials, key=lambda trial: (-(trial.metric or -1.0), trial.number))
        headers = ["Trial", "valid N@10", "R@10", "Best epoch", "Epochs", "Seconds", *names]
        rows = [
            [
                str(t.number),
                "diverged" if t.metric is None else t.metric,
                *(t.recall, t.best_epoch, t.epochs, f"{t.seconds:,.0f}"),
                *(_setting(t.values[name]) if name in t.values else "as configured" for name in names),
            ]
            for t in ordered
        ]
        spent = search.budget
        print_table(
            f"{search.folder}: {spent.trials} trials, {spent.epochs:,} epochs, {spent.seconds:,.0f} s of training",
            headers,
            rows,
        )
        out.print(search.settings, markup=False, soft_wrap=True)
    if result.methods is not None:
        out.print(f"both for `ckd reproduce --config`: {result.methods}", markup=False, soft_wrap=True)


def reported(result: Report, json: bool) -> None:
    """What was written, and what must not be overlooked in it."""
    if json:
        print_json(asdict(result))
        return
    out.print(
        f"{result.path}: {result.experiments} experiments, {result.runs} runs, {result.searches} searches, "
        f"{result.bytes / 1e6:.1f} MB",
        markup=False,
        soft_wrap=True,
    )
    for path in result.tables:
        out.print(f"written: {path}", markup=False, soft_wrap=True)
    for text in result.overrides:
        out.print(f"override: {text}", style="bold red", markup=False, soft_wrap=True)
    for text in result.problems:
        out.print(f"left out: {text}", markup=False, soft_wrap=True)
