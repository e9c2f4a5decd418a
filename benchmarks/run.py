"""The benchmarks of store, stage one and stage two: `make bench DATA=FOLDER`, or `make bench` without real data.

With data, the store is measured on a teacher's real scores of `scientific`, the cost of scoring on `scientific`, and
training beside RecBole; without, the store on synthetic scores, and the cost of scoring on the built-in example.
The others are run one by one: `python -m benchmarks.quality`, `models`, `growth`, `parts`, `image_coverage` and
`export`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.training import CACHE, WORK
from ckd.config import load_config
from ckd.data.domain import Domain
from ckd.pipelines.encode_items import EncodeConfig, encode_items
from ckd.pipelines.finetune_teacher import finetune_teacher
from ckd.pipelines.plan import make_plan
from ckd.pipelines.prepare import prepare
from ckd.pipelines.score_binding import open_scores
from ckd.pipelines.teacher_score import teacher_score
from ckd.pipelines.workspace import domain_folder

DOMAIN = "scientific"
BATCHES = 48


def real_scores(data: Path) -> Path:
    """(BATCHES, T, T) log-scores of a briefly fine-tuned UniSRec, as .npy; kept for the domain that they are of."""
    domain = prepare(WORK, data / DOMAIN, name=DOMAIN, replace=True).domain
    path = CACHE / f"{DOMAIN}-{domain.fingerprint[:12]}-scores.npy"
    if path.exists():
        return path
    encode_items(WORK, DOMAIN, EncodeConfig())
    chosen = ["plan.difficulty=none", "plan.buckets=1", "plan.layout=instance", "train.epochs=5"]
    config = load_config(overrides=chosen)
    plan = make_plan(WORK, DOMAIN, config).plan
    finetune_teacher(WORK, DOMAIN, "unisrec", config, run="bench-store")
    teacher_score(WORK, DOMAIN, "bench-store", config, plan.id)
    reader = open_scores(WORK, Domain.load(domain_folder(WORK, DOMAIN)), plan, "bench-store")
    full = np.flatnonzero(plan.sizes == plan.sizes.max())[:BATCHES]
    np.save(path, np.stack([reader.read(int(batch_id)) for batch_id in full]))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help=f"folder that holds the domain {DOMAIN!r} in RecBole's benchmark form"
    )
    arguments = parser.parse_args()
    store, scoring = ([sys.executable, "-m", f"benchmarks.{name}"] for name in ("store", "scoring"))
    if arguments.data is None:
        subprocess.run(store, check=True)
        subprocess.run(scoring, check=True)
        print("\nTraining beside RecBole needs real data: make bench DATA=FOLDER")
        return
    subprocess.run([*store, "--scores", real_scores(arguments.data)], check=True)
    subprocess.run([*scoring, "--data", arguments.data], check=True)
    subprocess.run([sys.executable, "-m", "benchmarks.training", "--data", arguments.data], check=True)


if __name__ == "__main__":
    main()
