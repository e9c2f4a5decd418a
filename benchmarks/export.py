"""Exports a student to RecBole and has RecBole rank with it: the same scores and ranks, and how to see that.

    python -m benchmarks.export WORK DOMAIN RUN [--python INTERPRETER]

RecBole runs in an environment of its own, made below `benchmarks/.cache` when missing, unless `--python` names one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.training import HERE, recbole_python
from ckd.data.batch import Batches
from ckd.data.domain import Domain
from ckd.evaluation.metrics import ranking_metrics
from ckd.evaluation.ranks import rank_targets
from ckd.pipelines.export import export_student
from ckd.pipelines.train_student import load_student
from ckd.pipelines.workspace import domain_folder

#: Test rows whose scores of all items are compared; of all rows, the ranks are.
SCORED_ROWS = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("domain")
    parser.add_argument("run")
    parser.add_argument("--python", type=Path, help="an interpreter with RecBole 1.2.1")
    arguments = parser.parse_args()
    domain = Domain.load(domain_folder(arguments.work, arguments.domain))
    model, _ = load_student(arguments.work, domain, arguments.run)
    ranks = rank_targets(model, domain, "test").rank
    instances = domain.instances("test")
    with torch.no_grad():
        batch = Batches(domain, instances)(np.arange(min(SCORED_ROWS, len(instances))))
        scores = model.score_items(model.encode(batch)).numpy()
    with tempfile.TemporaryDirectory() as folder:
        out = export_student(arguments.work, arguments.domain, arguments.run, "recbole", Path(folder) / "export").folder
        expected = Path(folder) / "expected.npz"
        np.savez(expected, ranks=ranks, scores=scores)
        command = [arguments.python or recbole_python(), HERE / "recbole" / "check_export.py", out, expected]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        sys.exit(done.stderr[-2000:])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(json.dumps({**found, "ckd_metrics": ranking_metrics(ranks)}, indent=1))
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
