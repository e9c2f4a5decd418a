"""Test quality of SASRec beside RecBole's, both at the sizes of `benchmarks.training`, trained until they stop early.

    python -m benchmarks.quality --data FOLDER [--domain scientific] [--seeds 2020 2021 2022] [--patience 10]
        [--precision bf16]

RecBole runs with its padding trimmed, which changes nothing but the time it takes. Each run is kept below
`benchmarks/.cache`, so that the command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.training import CACHE, RECBOLE, WORK, peer, prepared, run
from ckd.config import RunConfig, load_config
from ckd.console import out
from ckd.data.atomic import write_json
from ckd.data.domain import Domain
from ckd.pipelines.evaluate import evaluate
from ckd.pipelines.plan import make_plan
from ckd.pipelines.reproduce.result import Spread, show_cell
from ckd.pipelines.train_student import train_student
from ckd.pipelines.workspace import domain_folder

METRICS = ("recall@10", "ndcg@10")
#: More than either needs to stop early.
EPOCHS = 100


def theirs(data: Path, domain: str, seed: int, patience: int) -> dict[str, float]:
    """Test metrics of RecBole's SASRec, which has stopped after `patience` validations without a better one."""
    content = Domain.load(domain_folder(WORK, domain)).fingerprint[:12]
    kept = CACHE / "quality" / f"{domain}-{content}-{seed}-{patience}.json"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            chosen = (*RECBOLE, f"seed={seed}", f"stopping_step={patience - 1}", f"checkpoint_dir={folder}")
            # RecBole stops when more than `stopping_step` validations were no better.
            found = run([*peer(data, domain, "SASRec"), "--trim", "--epochs", EPOCHS, *chosen])
        kept.parent.mkdir(exist_ok=True)
        write_json(kept, found)
    tested: dict[str, float] = json.loads(kept.read_text())["test"]
    return tested


def ours(domain: str, config: RunConfig) -> dict[str, float]:
    """The same of ckd's."""
    plan = make_plan(WORK, domain, config).plan
    name = f"bench-quality-{config.train.precision}-{config.train.patience}-{config.seed}"
    train_student(WORK, domain, "sasrec", config, plan_id=plan.id, run=name)
    return dict(evaluate(WORK, domain, name).metrics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--domain", default="scientific")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2020, 2021, 2022])
    parser.add_argument("--patience", type=int, default=10)
    parser.add_argument("--precision", default="bf16", help="ckd's; RecBole's is fp32, as shipped")
    arguments = parser.parse_args()
    name, patience = arguments.domain, arguments.patience
    prepared(arguments.data, name)
    overrides = [
        *("plan.difficulty=none", "plan.buckets=1", f"plan.epochs={EPOCHS}"),
        *(f"train.precision={arguments.precision}", f"train.patience={patience}"),
    ]
    found: dict[str, list[dict[str, Any]]] = {"RecBole": [], f"ckd, {arguments.precision}": []}
    for seed in arguments.seeds:
        config = load_config(overrides=overrides).model_copy(update={"seed": seed})
        for side, metrics in zip(
            found, (theirs(arguments.data, name, seed, patience), ours(name, config)), strict=True
        ):
            found[side].append(metrics)
            out.print(f"{side}, seed {seed}: " + ", ".join(f"{metric} {metrics[metric]:.4f}" for metric in METRICS))
    for line in (["SASRec", *METRICS], ["---"] * (1 + len(METRICS))):
        print("| " + " | ".join(line) + " |")
    for side, runs in found.items():
        cells = [show_cell(Spread.of([each[metric] for each in runs]), "metric") for metric in METRICS]
        print("| " + " | ".join([side, *cells]) + " |")


if __name__ == "__main__":
    main()
