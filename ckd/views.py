"""Results as tables for people or JSON for programs: the command line's last step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckd.console import err, out, print_json, print_table, show

if TYPE_CHECKING:
    from ckd.data.domain import Domain
    from ckd.pipelines.evaluate import Evaluated
    from ckd.pipelines.finetune_teacher import FinetunedTeacher
    from ckd.pipelines.plan import Estimate, Planned, StageRow
    from ckd.pipelines.prepare import Prepared
    from ckd.pipelines.reproduce import Table3
    from ckd.pipelines.teacher_score import Scored
    from ckd.pipelines.train_student import TrainedStudent

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
        stage = f"stage {row['stage']}" if row["stage"] else "full"
        parts = [f"epoch {row['epoch']:3d} {stage:8s} loss {row['loss']:.4f} (CE {row['ce']:.4f}"]
        if "kd" in row:
            parts[0] += f", KL {row['kd']:.4f}"
        parts[0] += ")"
        dropped = {name[8:]: share for name, share in row.items() if name.startswith("dropped_") and share}
        if dropped:
            parts.append("dropped " + ", ".join(f"{name} {share:.0%}" for name, share in dropped.items()))
        if "valid_ndcg@10" in row:
            parts.append(f"valid N@10 {row['valid_ndcg@10']:.4f} R@10 {row['valid_recall@10']:.4f}")
        parts.append(f"{row['instances_per_second']:,.0f} inst/s, waiting {row['waiting_share']:.1%}")
        err.print("  ".join(parts), soft_wrap=True)

    return (lambda _: None) if json else print_epoch


def _metric_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    headers = ["", *(f"{n[0].upper()}@{n.split('@')[1]}" for n in SHOWN)]
    print_table(title, headers, [[name, *(values[m] for m in SHOWN)] for name, values in rows.items()])


def finetuned(result: FinetunedTeacher, json: bool) -> None:
    """A teacher's metrics on both splits."""
    if json:
        print_json({"folder": result.folder, "metrics": result.metrics, "reused": result.reused})
        return
    _metric_table(f"{result.folder}{' (was there already)' if result.reused else ''}", result.metrics)


def planned(result: Planned, rows: Sequence[StageRow], figure: Path | None, json: bool) -> None:
    """A plan's size, and its stages where asked for."""
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


def trained(result: TrainedStudent, json: bool) -> None:
    """A student's best epoch on validation."""
    t = result.trained
    if json:
        print_json(
            {
                "folder": result.folder,
                "best_epoch": t.best_epoch,
                "valid": t.metrics,
                "log": t.rows,
                "reused": result.reused,
                "mismatches": result.mismatches,
            }
        )
        return
    note = " (was there already)" if result.reused else ""
    _metric_table(f"{result.folder}{note}: best epoch {t.best_epoch}", {"valid": t.metrics})
    for teacher, mismatch in result.mismatches.items():
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
                "comparisons": {name: asdict(c) for name, c in result.comparisons.items()},
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
        headers = ["Metric", against, run, "Relative", "95% interval", "p"]
        print_table(f"{run} against {against}, paired t-test over users", headers, rows)


def _p(value: float) -> str:
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def say(json: bool) -> Callable[[str], None]:
    """Prints what a long pipeline is about to do, on standard error."""
    return (lambda _: None) if json else (lambda text: err.print(text, style="dim"))


def table3(result: Table3, json: bool) -> None:
    """Methods side by side for each domain."""
    if json:
        print_json(result.as_dict())
        return
    if result.steps:
        print_table("Steps", ["Step", "State"], [[step, state] for step, state in result.steps])
        return
    for domain in result.domains:
        headers = ["", *domain.methods, "Improv.", "p"]
        rows = [
            [
                f"{metric[0].upper()}@{metric.split('@')[1]}",
                *(domain.cell(method, metric) for method in domain.methods),
                f"{domain.improvement(metric):+.2%}",
                _p(domain.p_value(metric)),
            ]
            for metric in domain.metrics
        ]
        print_table(f"{domain.domain}: test, {domain.describe()}", headers, rows)
    out.print(
        "Improv.: the distilled student over its base. p: paired t-test over users of the mean over seeds, "
        "Holm-corrected over the metrics of a table."
    )
