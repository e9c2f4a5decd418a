"""Trains a ckd student for a few epochs and prints what it cost as a line of JSON: the counterpart of recbole/peer.py.

python -m benchmarks.ours WORK DOMAIN [--student sasrec] [--teachers a,b] [--epochs 3] -- section.key=value ...
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.device import peak_memory
from ckd.config import load_config, parse
from ckd.data.domain import Domain
from ckd.distill.trainer import Trainer, with_defaults
from ckd.evaluation.ranks import rank_targets
from ckd.pipelines.distillation import distillation_from
from ckd.pipelines.plan import make_plan
from ckd.pipelines.score_binding import open_scores
from ckd.pipelines.workspace import domain_folder
from ckd.students import STUDENTS


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("domain")
    parser.add_argument("--student", default="sasrec")
    parser.add_argument("--teachers", default="")
    parser.add_argument("--epochs", type=int, default=3, help="the first is a warm-up")
    parser.add_argument("override", nargs="*")
    arguments = parser.parse_intermixed_args()
    config = load_config(overrides=["plan.difficulty=none", "plan.buckets=1", *arguments.override])
    domain = Domain.load(domain_folder(arguments.work, arguments.domain))
    plan = make_plan(arguments.work, arguments.domain, config).plan
    teachers = [name for name in arguments.teachers.split(",") if name]
    readers = {name: open_scores(arguments.work, domain, plan, name) for name in teachers}
    student_class = STUDENTS.get(arguments.student)
    torch.manual_seed(config.seed)
    model = student_class.create(parse(student_class.Config, config.student, "student"), domain)
    train = with_defaults(config.train, student_class.TRAIN_DEFAULTS).model_copy(update={"epochs": arguments.epochs})
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            domain,
            plan,
            train,
            Path(folder),
            identity={},
            distillation=distillation_from(arguments.work, domain, plan, readers, config.distill) if readers else None,
        )
        rows = trainer.fit().rows[1:]
    began = time.perf_counter()
    rank_targets(model, domain, "valid")
    result = {
        "student": arguments.student,
        "teachers": teachers,
        "precision": train.precision,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "instances_per_second": statistics.median(row["instances_per_second"] for row in rows),
        "epoch_seconds": statistics.median(row["seconds"] for row in rows),
        "waiting_share": statistics.median(row["waiting_share"] for row in rows),
        "evaluate_seconds": time.perf_counter() - began,
        **peak_memory(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
