"""The steps of an experiment: what each does, whether it is done, and how long it takes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ckd.config import PlanConfig
from ckd.data.atomic import write_json
from ckd.pipelines.reproduce.example_sizes import EXAMPLE_INSTANCES, EXAMPLE_SECONDS
from ckd.pipelines.reproduce.methods import Method

State = Literal["done", "begun", "to do"]

#: Where an estimate comes from: a like step in the work folder, the same on another domain, or an assumed rate.
Source = Literal["measured", "scaled", "assumed", "unknown"]

#: Instances a second, times epochs until early stopping, of a model at the paper's sizes on two cores: what is
#: assumed of a model on real data while no like run is in the work folder. SASRec's and UniSRec's rates are measured.
ASSUMED = {
    "unisrec": (3_100, 40),
    "recformer": (15, 15),
    "unim2rec": (2_500, 40),
    "sasrec": (7_700, 25),
    "gru4rec": (3_500, 25),
    "bert4rec": (2_000, 60),
    "fm": (10_000, 25),
    "deepfm": (1_000, 25),
    "lightgcn": (5_000, 40),
    "hetcomp": (6_000, 200),
    "recguru": (700, 100),
}
#: Ends the name that a distilled student's runs and costs go by.
WITH_TEACHERS = "-ckd"

#: Of a model that is not listed.
ASSUMED_OTHERWISE = (3_000, 30)

#: Instances a second of everything that trains nothing: encoding, planning, scoring.
ASSUMED_RATE = 5_000


@dataclass(frozen=True)
class Step:
    """One step of an experiment; those with equal keys are the same step.

    Attributes:
        key: what it makes, relative to the work folder.
        what: for people, such as `train CKD-MDSR on scientific, seed 2024`.
        action: `prepare`, `encode`, `pretrain`, `fine-tune`, `plan`, `score` or `train`.
        model: what is trained or scores, a distilled student apart from its base model; the feature that is encoded;
            empty where there is none.
        domain: where; the source domains of pre-training with commas between them.
        state: whether it is done.
        run: do it; what is done already is found and kept.
        epochs: of training that does not stop early.
    """

    key: str
    what: str
    action: str
    model: str
    domain: str
    state: Callable[[], State]
    run: Callable[[], object]
    epochs: int | None = None


@dataclass(frozen=True)
class Trained:
    """A run that a chain of steps ends in.

    Attributes:
        domain, method, seed: what it is of.
        run: its name.
        key: its folder, relative to the work folder; also its step's key.
        teachers: runs that it learns from.
        settings: what it uses, by section, where that differs from the defaults.
    """

    domain: str
    method: Method
    seed: int
    run: str
    key: str
    teachers: tuple[str, ...]
    settings: dict[str, Any]


@dataclass(frozen=True)
class PlannedStep:
    """A step of a dry run.

    Attributes:
        what: for people.
        state: whether it is done.
        seconds: how long it will take; 0 of a step that is done, None where nothing tells.
        source: where that comes from.
    """

    what: str
    state: State
    seconds: float | None
    source: Source


@dataclass(frozen=True)
class Cost:
    """Time spent on a step, over all its sessions but those that were killed."""

    key: str
    action: str
    model: str
    domain: str
    seconds: float
    finished: bool


class Costs:
    """What steps have cost, kept in `work/experiments/costs`, one file each."""

    def __init__(self, work: Path) -> None:
        self.folder = work / "experiments" / "costs"

    def carry_out(self, step: Step) -> None:
        """Run the step and add the time it took; of one that is done only its being there is checked."""
        state = step.state()
        if state == "done":
            step.run()
            return
        began = time.perf_counter()
        finished = False
        try:
            step.run()
            finished = True
        finally:
            # What was discarded since is not part of it.
            before = self.of(step.key) if state == "begun" else None
            seconds = time.perf_counter() - began + (before.seconds if before and not before.finished else 0.0)
            cost = Cost(step.key, step.action, step.model, step.domain, round(seconds, 3), finished)
            write_json(self._path(step.key), asdict(cost))

    def of(self, key: str) -> Cost | None:
        """What a step has cost so far; None where nobody measured it."""
        return _read(self._path(key))

    def all(self) -> list[Cost]:
        """What finished steps have cost."""
        found = (_read(path) for path in sorted(self.folder.glob("[!.]*.json")))
        return [cost for cost in found if cost is not None and cost.finished]

    def _path(self, key: str) -> Path:
        return self.folder / f"{key.replace('/', '__')}.json"


def _read(path: Path) -> Cost | None:
    try:
        return Cost(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


class Estimates:
    """How long steps will take.

    Args:
        costs: of what was done in this work folder.
        instances: training instances of a domain; None where it is not known yet.
        example: the domains are the built-in example's, and models have the sizes that they are cut to there.
    """

    def __init__(self, costs: Costs, instances: Callable[[str], int | None], example: bool = False) -> None:
        self.costs, self.example = costs, example
        self.measured = costs.all()
        self.instances = instances

    def of(self, steps: Iterable[Step]) -> list[PlannedStep]:
        """The steps with states and times."""
        return [self._plan(step) for step in steps]

    def _plan(self, step: Step) -> PlannedStep:
        state = step.state()
        if state == "done":
            return PlannedStep(step.what, state, 0.0, "measured")
        seconds, source = self._whole(step)
        spent = self.costs.of(step.key) if state == "begun" else None
        if seconds is not None and spent is not None:
            seconds = max(0.0, seconds - spent.seconds)
        return PlannedStep(step.what, state, seconds, source)

    def _whole(self, step: Step) -> tuple[float | None, Source]:
        alike = [c for c in self.measured if (c.action, c.model) == (step.action, step.model)]
        here = [c.seconds for c in alike if c.domain == step.domain]
        if here:
            return sum(here) / len(here), "measured"
        n = self._size(step.domain)
        if n is None:
            return None, "unknown"
        rates = [c.seconds / size for c in alike if (size := self._size(c.domain))]
        if rates:
            return n * sum(rates) / len(rates), "scaled"
        return self._assumed(step, n), "assumed"

    def _size(self, domains: str) -> int | None:
        """Training instances of one domain or of several together; None where one is not known yet."""
        sizes = [self.instances(name) for name in domains.split(",")]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def _assumed(self, step: Step, n: int) -> float:
        """Seconds of a step over n instances, of which nothing like it was measured here."""
        trains = step.action in ("train", "fine-tune")
        kind = step.model if trains else step.action
        if self.example and kind in EXAMPLE_SECONDS:
            return EXAMPLE_SECONDS[kind] * n / EXAMPLE_INSTANCES
        if trains or step.action == "pretrain":
            rate, epochs = ASSUMED.get(step.model.split(WITH_TEACHERS)[0], ASSUMED_OTHERWISE)
            return n * (step.epochs or epochs) / rate
        return n / ASSUMED_RATE


def exists(path: Path) -> Callable[[], State]:
    """Done where the file is there."""
    return lambda: "done" if path.exists() else "to do"


def finished_in(folder: Path, file: str, key: str | None = None) -> Callable[[], State]:
    """Done where the folder holds the file, and the file says so under the key; begun where there is a folder."""

    def state() -> State:
        if not folder.exists():
            return "to do"
        try:
            values: dict[str, Any] = json.loads((folder / file).read_text())
        except (OSError, ValueError):
            return "begun"
        return "done" if key is None or values.get(key) else "begun"

    return state


def summary(plan: PlanConfig) -> str:
    """A plan in a few words."""
    curriculum = (
        "no curriculum" if plan.buckets == 1 else f"{plan.difficulty}, {plan.buckets} buckets, α {plan.alpha:g}"
    )
    return f"{curriculum}, pool {plan.pool}"
