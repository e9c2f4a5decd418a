"""What a work folder holds, read without loading a model: domains, plans, runs, searches, experiments.

A file that cannot be read becomes a line of the report, and no reason not to write one.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from safetensors import SafetensorError, safe_open

from ckd.config import PlanConfig
from ckd.data.described import read_json
from ckd.distill.curriculum import Bucket
from ckd.errors import CkdError, DataError
from ckd.pipelines.finetune_teacher import RESULT
from ckd.pipelines.reproduce.result import Experiment
from ckd.pipelines.train_student import STUDENT_FILE
from ckd.pipelines.tune_result import SEARCH_FILE, TRIALS_FILE
from ckd.tune.trials import Budget, Trial, load_trials

RunKind = Literal["student", "teacher", "pretrained teacher"]
T = TypeVar("T")

#: Run keys that say how a model was trained, and that a search's best trial is known by.
SEARCHED = ("student", "config", "train", "distill")


@dataclass(frozen=True)
class DomainInfo:
    """A domain: its name, content fingerprint and the paper's Table 2."""

    name: str
    fingerprint: str
    statistics: dict[str, float]


@dataclass(frozen=True)
class PlanInfo:
    """A batch plan: what was planned, and what its buckets hold."""

    domain: str
    id: str
    fingerprint: str
    seed: int
    config: PlanConfig
    curriculum: tuple[Bucket, ...]


@dataclass(frozen=True)
class Run:
    """A trained model, as its folder describes it.

    Attributes:
        domain: what it was trained on; of a pre-trained teacher its domains.
        name: of the run.
        kind: which folder it lies in.
        model: the registered name.
        seed: of the run; None where an imported checkpoint has none.
        identity: configuration, and fingerprints of its inputs.
        facts: what else its folder states: parameters, epsilon, weights of the teachers.
        rows: one log row for each epoch.
        best_epoch: None where nothing was validated yet.
        finished: whether early stopping or the last epoch was reached.
        valid, test: metrics of the best epoch; empty where nobody evaluated it.
        weights: fingerprint of the evaluated weights.
        stamps: what an override let through, one line each.
        versions: of packages, and the machine.
    """

    domain: str
    name: str
    kind: RunKind
    model: str
    seed: int | None
    identity: dict[str, Any]
    facts: dict[str, Any]
    rows: list[dict[str, Any]]
    best_epoch: int | None
    finished: bool
    valid: dict[str, float]
    test: dict[str, float]
    weights: str | None
    stamps: tuple[str, ...]
    versions: dict[str, str]

    @property
    def folder(self) -> str:
        """As `RunRecord.folder` has it, relative to the work folder."""
        if self.kind == "pretrained teacher":
            return f"pretrained/{self.name}"
        return f"{'students' if self.kind == 'student' else 'teachers'}/{self.domain}/{self.name}"

    @property
    def teachers(self) -> list[str]:
        return list(self.identity.get("teachers") or ())


@dataclass(frozen=True)
class SearchInfo:
    """A search: whose, how, what it was given and what it found."""

    domain: str
    name: str
    identity: dict[str, Any]
    trials: list[Trial]
    budget: Budget
    best: dict[str, Any] | None
    versions: dict[str, str]

    def chose(self, run: Run) -> bool:
        """Whether the run was trained with this search's best values."""
        return (
            self.best is not None
            and run.domain == self.domain
            and all(run.identity.get(key) == self.best["run"][key] for key in SEARCHED)
        )


@dataclass
class Work:
    """Everything found, each list sorted by name; `problems` are the files that could not be read."""

    domains: list[DomainInfo] = field(default_factory=list)
    plans: list[PlanInfo] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    searches: list[SearchInfo] = field(default_factory=list)
    experiments: list[Experiment] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _of_other_content(work: Work) -> list[str]:
    """Runs of domains that were prepared anew since: what stands beside them is of other data."""
    present = {domain.name: domain.fingerprint for domain in work.domains}
    return [
        f"{run.kind} {run.name}: trained on content {run.identity['domain']} of {run.domain}, which now has "
        f"{present[run.domain]}: its figures are of other data than that of this page."
        for run in work.runs
        if run.domain in present and run.identity.get("domain", present[run.domain]) != present[run.domain]
    ]


def read_work(work: Path) -> Work:
    """Read all descriptions below the work folder.

    Raises:
        DataError: there is no such folder, or nothing in it to report.
    """
    if not work.is_dir():
        raise DataError(f"{work}: no such folder. Give the work folder of `ckd reproduce` or `ckd train-student`.")
    found = Work()

    def collect(pattern: str, read: Callable[[Path], T], into: list[T]) -> None:
        for path in sorted(work.glob(pattern)):
            try:
                into.append(read(path))
            except CkdError as error:
                found.problems.append(_relative(str(error), work))
            except (KeyError, TypeError, ValueError, OSError) as error:
                place = path.relative_to(work)
                found.problems.append(f"{place}: not what ckd writes ({type(error).__name__}: {error}).")

    collect("domains/[!.]*/domain.json", _domain, found.domains)
    collect("plans/*/[!.]*/plan.json", _plan, found.plans)
    collect(f"pretrained/[!.]*/{RESULT}", _pretrained, found.runs)
    collect(f"teachers/*/[!.]*/{RESULT}", _teacher, found.runs)
    collect(f"students/*/[!.]*/{STUDENT_FILE}", _student, found.runs)
    collect(f"tune/*/[!.]*/{SEARCH_FILE}", _search, found.searches)
    found.problems += _of_other_content(found)
    collect("experiments/[!.]*.json", Experiment.load, found.experiments)
    found.experiments.sort(key=_in_the_papers_order)
    if not (found.domains or found.runs or found.experiments or found.searches or found.problems):
        raise DataError(f"{work}: nothing to report. Run `ckd reproduce` or `ckd train-student` first.")
    return found


def _in_the_papers_order(experiment: Experiment) -> tuple[int, int, str]:
    """Tables, then figures, by their numbers; then the rest."""
    found = re.match(r"(table|figure)(\d+)", experiment.name)
    return (2, 0, experiment.name) if found is None else (found[1] == "figure", int(found[2]), experiment.name)


def _relative(message: str, work: Path) -> str:
    return message.replace(f"{work}/", "")


REMEDY = "Train or make it again."


def _domain(path: Path) -> DomainInfo:
    described = read_json(path, REMEDY)
    return DomainInfo(described["name"], described["fingerprint"], described["statistics"])


def _plan(path: Path) -> PlanInfo:
    described = read_json(path, REMEDY)
    return PlanInfo(
        domain=path.parent.parent.name,
        id=path.parent.name,
        fingerprint=described["fingerprint"],
        seed=described["seed"],
        config=PlanConfig.model_validate(described["config"]),
        curriculum=tuple(Bucket.from_json(bucket) for bucket in described["curriculum"]),
    )


def _student(path: Path) -> Run:
    folder = path.parent
    described = read_json(path, REMEDY)
    identity = described["identity"]
    state, best = _state(folder), _optional(folder / "best.json").get("log", {})
    return Run(
        domain=folder.parent.name,
        name=folder.name,
        kind="student",
        model=identity.get("baseline") or identity["student"],
        seed=identity["seed"],
        identity=identity,
        facts={key: value for key, value in described.items() if key not in ("identity", "versions")},
        rows=state["rows"],
        best_epoch=best.get("epoch"),
        finished=state["finished"],
        valid={k.removeprefix("valid_"): v for k, v in best.items() if k.startswith("valid_")},
        test=_optional(folder / "ranks-test.json").get("metrics", {}),
        weights=_optional(folder / "ranks-test.json").get("weights"),
        stamps=_stamps(folder, identity),
        versions=described["versions"],
    )


def _teacher(path: Path) -> Run:
    folder = path.parent
    described = read_json(path, REMEDY)
    state = _state(folder)
    rows = [row for row in state["rows"] if "valid_ndcg@10" in row]
    metrics = described["metrics"]
    return Run(
        domain=folder.parent.name,
        name=folder.name,
        kind="teacher",
        model=described["identity"]["teacher"],
        seed=described["identity"]["seed"],
        identity=described["identity"],
        facts={},
        rows=state["rows"],
        best_epoch=max(rows, key=lambda row: row["valid_ndcg@10"])["epoch"] if rows else None,
        finished=True,
        valid=metrics["valid"],
        test=metrics["test"],
        weights=_optional(folder / "ranks-test.json").get("weights"),
        stamps=_stamps(folder, described["identity"]),
        versions=described["versions"],
    )


def _pretrained(path: Path) -> Run:
    folder = path.parent
    described = read_json(path, REMEDY)
    identity = described.get("identity") or {"imported": described["imported"]}
    domains = identity.get("domains", ())
    return Run(
        domain=", ".join(domains),
        name=folder.name,
        kind="pretrained teacher",
        model=identity.get("teacher") or identity["imported"]["teacher"],
        seed=identity.get("seed"),
        identity=identity,
        facts={},
        rows=_state(folder)["rows"],
        best_epoch=None,
        finished=True,
        valid={},
        test={},
        weights=None,
        stamps=(),
        versions=described["versions"],
    )


def _search(path: Path) -> SearchInfo:
    described = read_json(path, REMEDY)
    trials = load_trials(path.parent / TRIALS_FILE)
    return SearchInfo(
        domain=path.parent.parent.name,
        name=path.parent.name,
        identity=described["identity"],
        trials=trials,
        budget=Budget.of(trials),
        best=described["best"],
        versions=described["versions"],
    )


def _state(folder: Path) -> dict[str, Any]:
    """How far training went, and its log: of the loop's own state, else of the log file."""
    state = _optional(folder / "last.json")
    if "rows" in state:
        return {"rows": state["rows"], "finished": bool(state.get("finished"))}
    return {"rows": list(_log(folder / "log.csv")), "finished": False}


def _log(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            yield {name: _value(text) for name, text in row.items() if text not in ("", None)}


def _value(text: Any) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, REMEDY) if path.exists() else {}


def _stamps(folder: Path, identity: dict[str, Any]) -> tuple[str, ...]:
    """What `--allow-mismatch` let through, wherever the run states it: in its description and in both checkpoints."""
    stated = [identity, _optional(folder / "best.json").get("identity", {}), _checkpoint(folder / "last.safetensors")]
    found = {
        f"trained on scores of {teacher} that were {mismatch}"
        for each in stated
        for teacher, mismatch in (each.get("mismatches") or {}).items()
    }
    return tuple(sorted(found))


def _checkpoint(path: Path) -> dict[str, Any]:
    """The identity in a checkpoint's header; the weights are not read."""
    if not path.exists():
        return {}
    try:
        with safe_open(path, "np") as file:
            found: dict[str, Any] = json.loads((file.metadata() or {}).get("identity", "{}"))
    except SafetensorError as error:
        raise DataError(f"{path}: not a readable checkpoint ({error}). {REMEDY}") from None
    return found
