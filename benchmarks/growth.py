"""How time and memory of training grow with the data: `python -m benchmarks.growth [--figure FILE.svg]`.

SASRec (d 64, two layers, batch 512) on generated sequences: 10 thousand to a million instances over 5,000 items, then
100,000 instances over 5,000 to 500,000 items, there with the full softmax, whose logits exist block by block, and with
the in-batch softmax and its logQ correction, which never looks at the catalogue. Every point is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks.device import memory_cells, memory_headers, peak_memory
from ckd.config import PlanConfig, TrainConfig
from ckd.data.domain import Domain
from ckd.distill.plan import build_plan
from ckd.distill.trainer import Trainer
from ckd.students import STUDENTS

INSTANCES = (10_000, 100_000, 1_000_000)
ITEMS = (5_000, 50_000, 500_000)
FEW_ITEMS, SOME_INSTANCES = ITEMS[0], INSTANCES[1]

#: Users who have a validation target: validation is not what is measured here.
VALIDATED = 64

#: Most steps that are timed where the catalogue grows; their epoch is scaled up, and the printed table says so.
STEPS = 40


def generated(n_instances: int, n_items: int, seed: int = 0) -> Domain:
    """Users of 2 to 17 items, drawn by a power law, until there are `n_instances` training instances."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 18, 2 * n_instances // 8 + VALIDATED)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths - 1), n_instances)) + 1]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rank = rng.pareto(1.0, indptr[-1])
    items = (np.minimum(rank / 200, 0.999999) * n_items).astype(np.int32) + 1
    split = np.zeros(len(items), np.uint8)
    split[indptr[1 : VALIDATED + 1] - 1] = 1
    names = pl.Series([str(number) for number in range(1, n_items + 1)])
    table = pl.DataFrame({"item": np.arange(1, n_items + 1), "raw_id": names, "text": [""] * n_items})
    return Domain("generated", indptr, items, split, table, pl.Series([str(u) for u in range(len(lengths))]))


def point(n_instances: int, n_items: int, ce: str, precision: str) -> dict[str, Any]:
    """Seconds of an epoch and peak memory of this process."""
    domain = generated(n_instances, n_items)
    plan = build_plan(domain, PlanConfig(difficulty="none", buckets=1, epochs=1, pool="fresh"), seed=0)
    torch.manual_seed(0)
    student = STUDENTS.get("sasrec")
    model = student.create(student.Config(hidden_size=64, inner_size=64), domain)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, domain, plan, TrainConfig(ce=ce, precision=precision), Path(folder), identity={})
        seconds: list[float] = []

        def on_step(epoch: int, step: int, steps: int, row: dict[str, Any]) -> None:
            seconds.append(row["seconds"])
            if n_items > FEW_ITEMS and len(seconds) == STEPS:
                raise StopIteration

        trainer.on_step = on_step
        with suppress(StopIteration):
            trainer.fit()
    # The first step pays for what is made once.
    steps = len(plan.schedule_of(0)[1])
    each = (seconds[-1] - seconds[0]) / (len(seconds) - 1)
    return {
        "instances": len(domain.instances("train")),
        "items": n_items,
        "ce": ce,
        "steps": steps,
        "timed_steps": len(seconds) - 1,
        "epoch_seconds": each * steps,
        **peak_memory(),
        "table_mb": n_items * 64 * 4 / 1e6,
    }


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Both series on logarithmic axes, with a line of slope one beside the first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    first = [p for p in points if p["items"] == FEW_ITEMS and p["ce"] == "full"]
    x, y = ([p[key] for p in first] for key in ("instances", "epoch_seconds"))
    left.loglog(x, y, "o-", color="#0072B2", label="measured")
    left.loglog(x, [y[0] * n / x[0] for n in x], "--", color="#666666", label="linear")
    left.set(xlabel="training instances", ylabel="seconds an epoch", title=f"{FEW_ITEMS:,} items")
    left.legend()
    for ce, colour, mark in (("full", "#0072B2", "o-"), ("in-batch-logq", "#D55E00", "s--")):
        some = [
            p
            for p in points
            if p["ce"] == ce and p["items"] in ITEMS and abs(p["instances"] / SOME_INSTANCES - 1) < 0.1
        ]
        right.loglog([p["items"] for p in some], [p["epoch_seconds"] for p in some], mark, color=colour, label=ce)
    right.set(xlabel="items", ylabel="seconds an epoch", title=f"{SOME_INSTANCES:,} instances")
    right.legend(title="train.ce")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, help="draw it here")
    parser.add_argument("--out", type=Path, help="the points as JSON")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        instances, items, ce = options.point
        print(json.dumps(point(int(instances), int(items), ce, options.precision)))
        return
    wanted = [(n, FEW_ITEMS, "full") for n in INSTANCES]
    wanted += [(SOME_INSTANCES, n, "full") for n in ITEMS[1:]]
    wanted += [(SOME_INSTANCES, n, "in-batch-logq") for n in ITEMS]
    points = []
    headers = ["instances", "items", "cross-entropy", "s/epoch", "instances/s", *memory_headers(), "item table MB"]
    print(f"| {' | '.join(headers)} |\n{'|---' * len(headers)}|")
    for each in wanted:
        command = [sys.executable, "-m", "benchmarks.growth", "--precision", options.precision]
        done = subprocess.run([*command, "--point", *map(str, each)], stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        points.append(found)
        rate = found["instances"] / found["epoch_seconds"]
        note = (
            "" if found["timed_steps"] + 1 == found["steps"] else f" ({found['timed_steps']} of {found['steps']} steps)"
        )
        print(
            f"| {found['instances']:,} | {found['items']:,} | {found['ce']} | {found['epoch_seconds']:.1f}{note} "
            f"| {rate:,.0f} | {' | '.join(memory_cells([found]))} | {found['table_mb']:,.0f} |",
            flush=True,
        )
    if options.figure:
        draw(points, options.figure)
    if options.out:
        options.out.write_text(json.dumps(points, indent=1) + "\n")


if __name__ == "__main__":
    main()
