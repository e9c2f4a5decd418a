"""What stage one costs each teacher, beside scoring every scheduled batch afresh.

    python -m benchmarks.scoring                                     # the built-in example
    python -m benchmarks.scoring --data FOLDER                       # scientific, in RecBole's benchmark form
    python -m benchmarks.scoring --work WORK --domain D --teachers RUN,RUN   # teachers that are there

Forwards are counted where they happen, in the teacher's own `encode_instances` and `encode_items`: for each plan what
scoring asked the teacher for, in instances and items. The plans of one teacher are scored one after the other in an
empty work folder, so that what a later plan asks for is what the first has not encoded already.

Afresh is what a distillation without a store would do: at every scheduled step the teacher encodes the batch's
instances and targets and the matrix is computed. A sample of the scheduled batches, evenly spread, is really scored
like that, and its mean time is scaled to the whole schedule; the tables of items that a teacher keeps between calls are
kept. Both sides use the same threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.device import synchronise
from benchmarks.training import WORK
from ckd.config import RunConfig
from ckd.data.domain import Domain
from ckd.data.example import TARGET
from ckd.data.features import IMAGE, TEXT, list_features
from ckd.distill.plan import Plan
from ckd.errors import CkdError
from ckd.nn.device import device_of
from ckd.pipelines.encode_items import EncodeConfig, encode_items
from ckd.pipelines.example import prepare_example
from ckd.pipelines.finetune_teacher import finetune_teacher, load_teacher
from ckd.pipelines.plan import make_plan
from ckd.pipelines.prepare import prepare
from ckd.pipelines.reproduce.example_sizes import EXAMPLE_TEACHERS
from ckd.pipelines.teacher_score import rescorer, teacher_score
from ckd.pipelines.workspace import domain_folder

REAL = "scientific"

#: Pool and codec of the plans that are scored. A fresh composition for every epoch is what `vectors` are for.
PLANS: tuple[tuple[int | str, str], ...] = ((1, "f16"), (3, "f16"), ("fresh", "vectors"))


@dataclass(frozen=True)
class Cost:
    """One teacher on one plan.

    Attributes:
        teacher, pool, codec: what was scored, and how it is stored.
        planned, scheduled: distinct batches, and steps over all epochs.
        instances, items: that the teacher encoded for this plan.
        bytes: of the store.
        seconds: of encoding, for this teacher's first plan and all that follow.
        writing: seconds of everything else.
        afresh: seconds of scoring every scheduled batch afresh, scaled from `sampled` of them.
        spread: lower and upper quartile of a sampled batch's seconds over their median.
        sampled: batches that were scored afresh.
    """

    teacher: str
    pool: int | str
    codec: str
    planned: int
    scheduled: int
    instances: int
    items: int
    bytes: int
    seconds: float
    writing: float
    afresh: float
    spread: tuple[float, float]
    sampled: int

    @property
    def ratio(self) -> float:
        """How many times longer afresh takes."""
        return self.afresh / (self.seconds + self.writing)


class Forwards:
    """What a teacher's class was asked for while it was counted, and for how long."""

    def __init__(self) -> None:
        self.instances = self.items = 0
        self.seconds = 0.0

    @contextmanager
    def counted(self, teacher_class: Any) -> Iterator[None]:
        """Counts calls of every teacher of this class."""
        original = {name: getattr(teacher_class, name) for name in ("encode_instances", "encode_items")}

        def wrap(name: str, kind: str) -> Any:
            def encode(teacher: Any, asked: Any) -> Any:
                device = device_of(teacher)
                synchronise(device)  # with what was launched before, which is no encoding
                began = time.perf_counter()
                vectors = original[name](teacher, asked)
                synchronise(device)
                self.seconds += time.perf_counter() - began
                setattr(self, kind, getattr(self, kind) + len(vectors))
                return vectors

            return encode

        teacher_class.encode_instances = wrap("encode_instances", "instances")
        teacher_class.encode_items = wrap("encode_items", "items")
        try:
            yield
        finally:
            for name, method in original.items():
                setattr(teacher_class, name, method)


def measure(work: Path, domain: Domain, run: str, epochs: int, sample: int, batch_size: int) -> list[Cost]:
    """The cost of one teacher on each plan."""
    teacher, _, _ = load_teacher(work, domain, run)
    costs = []
    first = 0.0
    for pool, codec in PLANS:
        config = RunConfig.model_validate(
            {"plan": {"pool": pool, "epochs": epochs, "batch_size": batch_size}, "score": {"codec": codec}}
        )
        plan = make_plan(work, domain.name, config).plan
        forwards = Forwards()
        began = time.perf_counter()
        with forwards.counted(type(teacher)):
            scored = teacher_score(work, domain.name, run, config, plan.id)
        seconds = time.perf_counter() - began
        first += forwards.seconds
        times = afresh(work, domain, plan, run, teacher.temperature, sample)
        low, middle, high = np.quantile(times, (0.25, 0.5, 0.75))
        scheduled = sum(len(plan.schedule_of(epoch)[1]) for epoch in range(plan.epochs))
        costs.append(
            Cost(
                teacher=run,
                pool=pool,
                codec=codec,
                planned=plan.n_batches,
                scheduled=scheduled,
                instances=forwards.instances,
                items=forwards.items,
                bytes=scored.manifest.bytes,
                seconds=first,
                writing=seconds - forwards.seconds,
                afresh=statistics.mean(times) * scheduled,
                spread=(float(low / middle), float(high / middle)),
                sampled=len(times),
            )
        )
    return costs


def afresh(work: Path, domain: Domain, plan: Plan, run: str, temperature: float, sample: int) -> list[float]:
    """Seconds of each of `sample` scheduled batches, evenly spread over all epochs."""
    schedule = np.concatenate([plan.schedule_of(epoch)[1] for epoch in range(plan.epochs)])
    chosen = schedule[np.linspace(0, len(schedule) - 1, min(sample, len(schedule))).astype(np.int64)]
    score = rescorer(work, domain, plan, run, temperature)
    score(int(chosen[0]))  # what is made once, such as the table of items, is no batch's
    times = []
    for batch_id in chosen:
        began = time.perf_counter()
        score(int(batch_id))
        times.append(time.perf_counter() - began)
    return times


def untrained(work: Path, domain: Domain) -> list[str]:
    """A run of each teacher, hardly trained and small: what scoring takes does not depend on what was learned."""
    runs = []
    for name in ("unisrec", "recformer", "unim2rec"):
        keys = dict(EXAMPLE_TEACHERS.get(name, {}))
        assert domain.folder is not None
        if name == "unim2rec" and IMAGE not in list_features(domain.folder):
            keys["image_feature"] = None
        config = RunConfig.model_validate({"teacher": keys, "train": {"epochs": 1, "validate_every": 1}})
        run = f"bench-scoring-{name}"
        try:
            finetune_teacher(work, domain.name, name, config, run=run)
        except CkdError as error:
            print(f"left out: {name}: {error}", file=sys.stderr)
            continue
        runs.append(run)
    return runs


def own_domain(data: Path | None) -> Domain:
    """The example, or the real domain, prepared in the benchmarks' work folder."""
    name = TARGET if data is None else REAL
    if data is None:
        prepare_example(WORK)
    elif not domain_folder(WORK, name).exists():
        prepare(WORK, data / name, name=name)
    if TEXT not in list_features(domain_folder(WORK, name)):
        encode_items(WORK, name, EncodeConfig())
    return Domain.load(domain_folder(WORK, name))


@contextmanager
def emptied(work: Path, domain: str) -> Iterator[Path]:
    """A work folder with the domain and its teachers, and nothing that was planned, encoded or scored."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        for part in ("domains", "teachers"):
            (folder / part).mkdir()
            (folder / part / domain).symlink_to((work / part / domain).resolve(), target_is_directory=True)
        yield folder


def report(costs: list[Cost], epochs: int) -> None:
    """A table for docs, and what it means."""
    headers = ["teacher", "pool", "codec", "batches", "steps", "instances", "items", "MB", "s", "s afresh", "ratio"]
    for line in (headers, ["---"] * len(headers), *map(_row, costs)):
        print("| " + " | ".join(line) + " |")
    low, high = min(cost.spread[0] for cost in costs), max(cost.spread[1] for cost in costs)
    fewest = min(cost.sampled for cost in costs)
    print(
        f"\n{epochs} epochs. instances, items: encoded for this plan; s: encoding for this plan and those above it, "
        f"and writing; s afresh: estimated from {fewest} or more scheduled batches, whose quartiles lie between "
        f"{low:.2f} and {high:.2f} of their medians."
    )


def _row(cost: Cost) -> list[str]:
    return [
        cost.teacher,
        str(cost.pool),
        cost.codec,
        f"{cost.planned:,}",
        f"{cost.scheduled:,}",
        f"{cost.instances:,}",
        f"{cost.items:,}",
        f"{cost.bytes / 1e6:,.1f}",
        f"{cost.seconds + cost.writing:.1f}",
        f"{cost.afresh:,.1f}",
        f"{cost.ratio:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=f"folder that holds the domain {REAL!r}")
    parser.add_argument("--work", type=Path, help="a work folder with fine-tuned teachers")
    parser.add_argument("--domain", default=REAL, help="with --work: the domain")
    parser.add_argument("--teachers", help="with --work: their runs, separated by commas")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--sample", type=int, default=20, help="scheduled batches that are scored afresh")
    parser.add_argument("--out", type=Path, help="JSON of all figures")
    arguments = parser.parse_args()
    if (arguments.work is None) != (arguments.teachers is None) or (arguments.work and arguments.data):
        parser.error("--work and --teachers go together, and without --data")
    if arguments.work is None:
        domain = own_domain(arguments.data)
        work, runs = WORK, untrained(WORK, domain)
    else:
        work, runs = arguments.work, arguments.teachers.split(",")
        domain = Domain.load(domain_folder(work, arguments.domain))
    costs = []
    with emptied(work, domain.name) as folder:
        inside = Domain.load(domain_folder(folder, domain.name))
        for run in runs:
            costs += measure(folder, inside, run, arguments.epochs, arguments.sample, arguments.batch_size)
    report(costs, arguments.epochs)
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(cost) | {"ratio": cost.ratio} for cost in costs], indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except CkdError as error:
        sys.exit(f"benchmarks.scoring: {error}")
